"""Other calls for the modules inside a part: compiled ones."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..partition import Partition
from ..partition.shadowing import original_call

__all__ = ["GraphBreak", "compiled"]

Calls = dict[nn.Module, Callable[..., Any]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GraphBreak:
    """A place where a module could not be compiled in one piece.

    Args:
        part: index of the part.
        module: the compiled module's name in the user's model.
        reason: the compiler's reason, in one line.
    """

    part: int
    module: str
    reason: str

    def __str__(self) -> str:
        return f"part {self.part}, {self.module or 'the model'}: {self.reason}"


def compiled(partition: Partition, breaks: list[GraphBreak]) -> list[Calls]:
    """For every part, compiled calls of the outermost modules between its cuts.

    Args:
        partition: the parts.
        breaks: where to add every graph break, when it is met; it is logged as well.
    """
    return [
        {module: _compiled(part, name, module, breaks) for name, module in partition.part(part).modules()}
        for part in range(len(partition))
    ]


def _compiled(part: int, name: str, module: nn.Module, breaks: list[GraphBreak]) -> Callable[..., Any]:
    from torch._dynamo.utils import counters  # costs a second, so only where something is compiled

    run, seen = torch.compile(original_call(module)), counters["graph_break"]

    def call(*args: Any, **kwargs: Any) -> Any:
        before = dict(seen)
        result = run(*args, **kwargs)
        if len(seen) != len(before) or sum(seen.values()) != sum(before.values()):
            for reason, count in seen.items():
                for _ in range(count - before.get(reason, 0)):
                    breaks.append(GraphBreak(part, name, str(reason).strip().partition("\n")[0]))
                    _log.warning("graph break in %s", breaks[-1])
        return result

    return call
