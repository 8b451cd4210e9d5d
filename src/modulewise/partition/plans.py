"""How each part of a cut model is run: what is stood in for, what is recomputed, what is fed in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten

from .crossings import needed_before, reads_between
from .recording import END, Call, Recording, Slot

__all__ = ["PartPlan", "StandIn", "make_plans"]


@dataclass(frozen=True)
class Shape:
    """A recorded tensor whose sizes are linear in the batch size: size = base + slope * N."""

    base: tuple[int, ...]
    slope: tuple[int, ...]
    dtype: torch.dtype
    dense: bool

    def make(self, n: int, device: torch.device) -> Tensor:
        """A stand-in of the right shape that takes no memory (unless something writes to it)."""
        sizes = [base + slope * n for base, slope in zip(self.base, self.slope, strict=True)]
        if self.dense:
            return torch.zeros(sizes, dtype=self.dtype, device=device)
        return torch.zeros((), dtype=self.dtype, device=device).expand(sizes)


@dataclass(frozen=True)
class StandIn:
    """What a stubbed call returns: the recorded structure with stand-in tensors, or a boundary that was fed in."""

    leaves: tuple[Any, ...]
    structure: Any
    boundary: int | None = None

    def make(self, n: int, device: torch.device, fed: Tensor | None = None) -> Any:
        """The value to return at batch size n."""
        leaves = [
            (fed if fed is not None else leaf.make(n, device)) if isinstance(leaf, Shape) else leaf
            for leaf in self.leaves
        ]
        return tree_unflatten(leaves, self.structure)


@dataclass
class PartPlan:
    """How one part is run.

    Attributes:
        stubs: for every module called before the part, what its calls return in order (None: run it).
        feed: the cut below the part and what it returns; None for part 0.
        stop: the cut above the part; None for the last.
        reads: the boundaries the part reads, its own input last.
        copies: those of them that the part changes in place, so that it must be given a copy.
        reads_batch: whether the part reads side inputs, so that x is needed to run it.
        inside: outermost modules called in the part, in order of call.
    """

    stubs: list[tuple[nn.Module, list[StandIn | None]]] = field(default_factory=list)
    feed: tuple[nn.Module, StandIn] | None = None
    stop: nn.Module | None = None
    reads: tuple[int, ...] = ()
    copies: frozenset[int] = frozenset()
    reads_batch: bool = False
    inside: list[Call] = field(default_factory=list)


def _shape(small: Slot, large: Slot, sizes: tuple[int, int], dense: bool) -> Shape:
    n, m = sizes
    slope = tuple((b - a) // (m - n) for a, b in zip(small.shape, large.shape, strict=True))
    base = tuple(a - s * n for a, s in zip(small.shape, slope, strict=True))
    return Shape(base, slope, small.dtype, dense)


def _stand_in(small: Call, large: Call, sizes: tuple[int, int], changed: set[int], boundary: int | None) -> StandIn:
    leaves: list[Any] = []
    for a, b in zip(small.leaves, large.leaves, strict=True):
        if isinstance(a, Slot):
            leaves.append(_shape(a, b, sizes, a.key in changed))
        else:
            leaves.append(a if isinstance(a, bool | int | float | str) else None)
    return StandIn(tuple(leaves), small.structure, boundary)


def _outermost(call: Call, start: int, stop: int) -> list[Call]:
    """Outermost calls that begin and end within (start, stop]."""
    found: list[Call] = []
    for child in call.children:
        if child.exit <= start or child.enter > stop:
            continue
        if child.enter > start and child.exit <= stop:
            found.append(child)
        else:
            found += _outermost(child, start, stop)
    return found


class _Planner:
    def __init__(self, small: Recording, large: Recording, cuts: list[Call], sizes: tuple[int, int]) -> None:
        self.small, self.large, self.sizes = small, large, sizes
        self.twin = {id(a): b for a, b in zip(small.calls, large.calls, strict=True)}
        self.cuts = cuts
        self.clocks = [cut.exit for cut in cuts]
        self.index = {id(cut): position for position, cut in enumerate(cuts)}
        self.slots = [cut.outputs[0] for cut in cuts]

    def plan(self, part: int) -> PartPlan:
        """The plan of one part."""
        start = self.clocks[part - 1] if part else -1
        last = part == len(self.cuts)
        stop = END if last else self.clocks[part]
        plan = PartPlan(stop=None if last else self.cuts[part].module)
        plan.inside = _outermost(self.small.root, start, stop)
        if part == 0:
            plan.reads_batch = True
            return plan
        self._inputs(plan, part, start, stop)
        below = self.cuts[part - 1]
        plan.feed = (below.module, self._stand_in(below, part - 1))
        return plan

    def _stand_in(self, call: Call, boundary: int | None) -> StandIn:
        changed = {key for operation in self.small.operations for key in operation.changes}
        return _stand_in(call, self.twin[id(call)], self.sizes, changed, boundary)

    def _inputs(self, plan: PartPlan, part: int, start: int, stop: int) -> None:
        """Ports, side inputs, and what is stood in for before the part."""
        values = self.small.values
        earlier = {slot.key: index for index, slot in enumerate(self.slots[:part])}
        read = reads_between(self.small, start, stop)
        # A storage may be the boundary of several cuts (an identity); the latest cut at or below the part feeds it.
        plan.reads = tuple(sorted({earlier[key] for key in read if key in earlier} | {part - 1}))
        side = {key for key in read if key not in earlier and not values[key].upstream}
        plan.reads_batch = any(values[key].batch for key in side)
        changed = {
            key for operation in self.small.operations if start < operation.clock <= stop for key in operation.changes
        }
        plan.copies = frozenset(index for index in plan.reads if self.slots[index].key in changed)
        needed = needed_before(self.small, start, side)
        actions: dict[nn.Module, list[StandIn | None]] = {}
        self._stub(self.small.root, start, needed, set(plan.reads), actions)
        plan.stubs = list(actions.items())

    def _stub(
        self,
        call: Call,
        start: int,
        needed: set[int],
        ports: set[int],
        actions: dict[nn.Module, list[StandIn | None]],
    ) -> None:
        for child in call.children:
            if child.enter > start:
                return
            here = self.index.get(id(child))
            if child.exit > start:
                self._stub(child, start, needed, ports, actions)
            elif here is not None and here in ports:
                if self.clocks[here] < start:
                    actions.setdefault(child.module, []).append(self._stand_in(child, here))
            elif any(child.enter < clock < child.exit for clock in needed) or self._holds(child, ports):
                actions.setdefault(child.module, []).append(None)
                self._stub(child, start, needed, ports, actions)
            else:
                actions.setdefault(child.module, []).append(self._stand_in(child, None))

    def _holds(self, call: Call, ports: set[int]) -> bool:
        """Whether a cut whose boundary is read later lies inside this call."""
        return any(call.enter < self.cuts[port].enter and self.cuts[port].exit < call.exit for port in ports)


def make_plans(small: Recording, large: Recording, cuts: list[Call], sizes: tuple[int, int]) -> list[PartPlan]:
    """The plans of all parts, from recordings at two batch sizes."""
    planner = _Planner(small, large, cuts, sizes)
    return [planner.plan(part) for part in range(len(cuts) + 1)]
