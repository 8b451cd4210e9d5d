"""Other calls for the modules inside a part: compiled, or recomputing their activations in the backward."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..partition import Partition
from ..partition.shadowing import original_call, scratch_buffers

__all__ = ["compiled", "recomputing"]

Calls = dict[nn.Module, Callable[..., Any]]


def recomputing(partition: Partition) -> list[Calls]:
    """For every part, calls that keep the input of each composite module and run it again in the backward.

    Random draws are replayed and buffers are written to copies the second time, so numbers and statistics are those of
    an ordinary run.
    """
    return [{module: _recomputing(module) for module in partition.steps(part)} for part in range(len(partition))]


def _recomputing(module: nn.Module) -> Callable[..., Any]:
    run = original_call(module)

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), scratch_buffers(module)

    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return run(*args, **kwargs)
        return checkpoint(run, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return call


def compiled(partition: Partition) -> list[Calls]:
    """For every part, compiled calls of the outermost modules between its cuts."""
    return [
        {module: torch.compile(original_call(module)) for _, module in partition.part(part).modules()}
        for part in range(len(partition))
    ]
