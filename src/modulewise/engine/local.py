"""What all steps over a partition in this process share, and the slices of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..objective import Objective
from ..partition import AnyPartition
from ..seeding import preserved_generators
from .updating import Updater

if TYPE_CHECKING:
    from .session import Session

__all__ = ["Guard", "LocalEngine", "Micro"]

Calls = Mapping[nn.Module, Callable[..., Any]]


class LocalEngine:
    """What all steps share.

    Args:
        partition: the parts.
        objectives: one a part.
        updater: their optimisers.
        seed: the run's seed.
        precision: type of the forward's matrix products; float32 for no autocast.
        calls: for every part, other calls for modules inside it (compiled ones).
        recompute: keep for a part's backward only the inputs of its pieces, and run those again.

    Attributes:
        pending: earlier batches from which delayed parts have yet to learn, oldest first.
        crossed: called with a session and a part, when the boundary above the part is there.
        reduced: called with parameters whose gradients are all there, before they are clipped and the optimisers step.
    """

    def __init__(
        self,
        partition: AnyPartition,
        objectives: Sequence[Objective],
        updater: Updater,
        *,
        seed: int,
        precision: torch.dtype,
        calls: Sequence[Calls],
        recompute: bool = False,
    ) -> None:
        self.partition, self.objectives, self.updater = partition, objectives, updater
        self.seed, self.precision, self.calls, self.recompute = seed, precision, calls, recompute
        self.pending: list[Session] = []
        self.crossed: Callable[[Session, int], None] | None = None
        self.reduced: Callable[[Sequence[nn.Parameter]], None] | None = None

    def autocast(self, device: str) -> AbstractContextManager[Any]:
        """Forward in lower precision, ours or the caller's; no cache: a cached weight would survive its update."""
        dtype = self.precision
        if dtype is torch.float32:
            if not torch.is_autocast_enabled(device):
                return nullcontext()
            dtype = torch.get_autocast_dtype(device)
        return torch.autocast(device, dtype=dtype, cache_enabled=False)

    def rule(self, part: int) -> AbstractContextManager[None]:
        """The part's layer rule, installed on the modules it calls."""
        rule = self.objectives[part].rule
        if rule is None:
            return nullcontext()
        return rule.installed(self.modules(part))

    def modules(self, part: int) -> list[tuple[str, nn.Module]]:
        """All (name, module) pairs that a part calls, the inner ones too."""
        outer = self.partition.part(part).modules()
        return [
            (f"{name}.{sub}" if sub else name, module) for name, top in outer for sub, module in top.named_modules()
        ]


class Guard:
    """Generators put back after a block, and gradients dropped if it fails.

    Args:
        engine: whose gradients.
    """

    def __init__(self, engine: LocalEngine) -> None:
        self.engine, self.generators = engine, preserved_generators()

    def __enter__(self) -> None:
        self.generators.__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.generators.__exit__(None, None, None)
        if kind is not None:
            self.engine.updater.clear()
            self.engine.pending.clear()


@dataclass(frozen=True)
class Micro:
    """One slice of a step whose gradients accumulate.

    Args:
        draw: index that seeds the random draws.
        last: whether optimisers step after it.
        rows: n, the number of its samples.
        weight: what the sum is multiplied with at the last, n(last) / N, so that a mean over slices is the batch's.
        units: for every part the n of the slice whose mean its gradients are gathered in; shared by the slices.
    """

    draw: int = 0
    last: bool = True
    rows: int = 1
    weight: float = 1.0
    units: dict[int, int] = field(default_factory=dict)

    def factor(self, part: int) -> float:
        """What brings the gradients of a part's earlier slices to this slice's number of samples."""
        before = self.units.get(part, self.rows)
        self.units[part] = self.rows
        return before / self.rows
