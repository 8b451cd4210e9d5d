"""How each part of a cut model is run: what is stood in for, what is recomputed, what is fed in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten

from ..errors import PartitionError
from .crossings import needed_before, reads_between
from .recording import END, Call, Operation, Recording, Slot
from .shadowing import is_compiled

__all__ = ["PartPlan", "StandIn", "make_plans"]


@dataclass(frozen=True)
class Sizes:
    """Numbers that are linear in the batch size: base + slope * N."""

    base: tuple[int, ...]
    slope: tuple[int, ...]

    def at(self, n: int) -> list[int]:
        """The numbers at batch size n."""
        return [max(0, base + slope * n) for base, slope in zip(self.base, self.slope, strict=True)]


@dataclass(frozen=True)
class Shape:
    """A recorded tensor, by its sizes."""

    sizes: Sizes
    dtype: torch.dtype
    dense: bool

    def make(self, n: int, device: torch.device) -> Tensor:
        """A stand-in of the right shape that takes no memory (unless something writes to it)."""
        if self.dense:
            return torch.zeros(self.sizes.at(n), dtype=self.dtype, device=device)
        return torch.zeros((), dtype=self.dtype, device=device).expand(self.sizes.at(n))


@dataclass(frozen=True)
class Number:
    """A recorded integer, or a `torch.Size`, that goes with the batch size."""

    sizes: Sizes
    kind: type

    def make(self, n: int) -> Any:
        """The number at batch size n."""
        return self.kind(self.sizes.at(n) if self.kind is torch.Size else self.sizes.at(n)[0])


@dataclass(frozen=True)
class StandIn:
    """What a stubbed call returns: the recorded structure with stand-in tensors, or a boundary that was fed in."""

    leaves: tuple[Any, ...]
    structure: Any
    boundary: int | None = None

    def make(self, n: int, device: torch.device, fed: Tensor | None = None) -> Any:
        """The value to return at batch size n."""
        leaves = [
            leaf.make(n) if isinstance(leaf, Number)
            else leaf if not isinstance(leaf, Shape)
            else leaf.make(n, device) if fed is None
            else fed
            for leaf in self.leaves
        ]  # fmt: skip
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
        tables: parameters, frozen and on no way of the batch's, that make its side inputs.
        below: name of the cut below.
        above: name of the cut above.
    """

    stubs: list[tuple[nn.Module, list[StandIn | None]]] = field(default_factory=list)
    feed: tuple[nn.Module, StandIn] | None = None
    stop: nn.Module | None = None
    reads: tuple[int, ...] = ()
    copies: frozenset[int] = frozenset()
    reads_batch: bool = False
    inside: list[Call] = field(default_factory=list)
    tables: frozenset[str] = frozenset()
    below: str = ""
    above: str = ""


def _sizes(small: tuple[int, ...], large: tuple[int, ...], sizes: tuple[int, int]) -> Sizes:
    n, m = sizes
    slope = tuple((b - a) // (m - n) for a, b in zip(small, large, strict=True))
    return Sizes(tuple(a - s * n for a, s in zip(small, slope, strict=True)), slope)


def _leaf(a: Any, b: Any, sizes: tuple[int, int], changed: set[int]) -> Any:
    if isinstance(a, Slot):
        return Shape(_sizes(a.shape, b.shape, sizes), a.dtype, a.key in changed)
    if isinstance(a, torch.Size):
        return Number(_sizes(tuple(a), tuple(b), sizes), torch.Size)
    if isinstance(a, int) and not isinstance(a, bool):
        return Number(_sizes((a,), (b,), sizes), int)
    return a


def _stand_in(small: Call, large: Call, sizes: tuple[int, int], changed: set[int], boundary: int | None) -> StandIn:
    kinds = [[(type(leaf), len(getattr(leaf, "shape", ()))) for leaf in call.leaves] for call in (small, large)]
    if kinds[0] != kinds[1]:
        raise PartitionError(
            f"{small.name!r} returns another structure at another batch size, expected one; a partition runs later "
            "parts on stand-ins of what earlier modules return"
        )
    leaves = tuple(_leaf(a, b, sizes, changed) for a, b in zip(small.leaves, large.leaves, strict=True))
    return StandIn(leaves, small.structure, boundary)


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
        self.changed = {key for operation in small.operations for key in operation.changes}
        self.handed: set[int] = set()

    def plan(self, part: int) -> PartPlan:
        """The plan of one part."""
        start = self.clocks[part - 1] if part else -1
        last = part == len(self.cuts)
        stop = END if last else self.clocks[part]
        plan = PartPlan(stop=None if last else self.cuts[part].module, above="" if last else self.cuts[part].name)
        plan.inside = _outermost(self.small.root, start, stop)
        if part == 0:
            plan.reads_batch = True
            return plan
        below = self.cuts[part - 1]
        plan.feed, plan.below = (below.module, self._stand_in(below, part - 1)), below.name
        self._inputs(plan, part, start, stop)
        return plan

    def _stand_in(self, call: Call, boundary: int | None) -> StandIn:
        return _stand_in(call, self.twin[id(call)], self.sizes, self.changed, boundary)

    def _inputs(self, plan: PartPlan, part: int, start: int, stop: int) -> None:
        """Ports, side inputs, and what is stood in for before the part."""
        values = self.small.values
        earlier = {slot.key: index for index, slot in enumerate(self.slots[:part])}
        read = reads_between(self.small, start, stop)
        # A storage may be the boundary of several cuts (an identity); the latest cut at or below the part feeds it.
        plan.reads = tuple(sorted({earlier[key] for key in read if key in earlier} | {part - 1}))
        side = {key for key in read if key not in earlier and not values[key].upstream(start)}
        needed = needed_before(self.small, start, side)
        self._refuse_random(part, needed)
        plan.tables = frozenset(
            name
            for operation in needed
            for slot in operation.reads
            for name, span, learned in self.small.constants.get(slot.key, ())
            if learned and slot.overlaps(span)
        )
        # What the batch tells Python (`if mask.all():`) may decide anything, so it is told again.
        told = [escape for escape in self.small.escapes if escape.batch and not escape.upstream]
        plan.reads_batch = any(values[key].batch for key in side) or any(escape.clock <= stop for escape in told)
        changed = {
            key for operation in self.small.operations if start < operation.clock <= stop for key in operation.changes
        }
        plan.copies = frozenset(index for index in plan.reads if self.slots[index].key in changed)
        handed = side | {slot.key for operation in needed for slot in operation.reads}
        self.handed = {key for key in handed if not values[key].upstream(start)} - self.small.constants.keys()
        clocks = {operation.clock for operation in needed}
        actions: dict[nn.Module, list[StandIn | None]] = {}
        self._stub(self.small.root, start, clocks, {escape.clock for escape in told}, set(plan.reads), actions)
        plan.stubs = list(actions.items())

    def _refuse_random(self, part: int, needed: list[Operation]) -> None:
        drawn = next((operation for operation in needed if operation.random), None)
        if drawn is not None:
            raise PartitionError(
                f"part {part} (after {self.cuts[part - 1].name!r}) reads random numbers drawn before it, in "
                f"{drawn.where or 'the forward'!r}, expected each part to draw its own; draw them where they are used, "
                "or cut after their last use"
            )

    def _stub(
        self,
        call: Call,
        start: int,
        needed: set[int],
        told: set[int],
        ports: set[int],
        actions: dict[nn.Module, list[StandIn | None]],
    ) -> None:
        for child in call.children:
            if child.enter > start:
                return
            here = self.index.get(id(child))
            if child.exit > start:
                self._stub(child, start, needed, told, ports, actions)
            elif here is not None and here in ports:
                if self.clocks[here] < start:
                    actions.setdefault(child.module, []).append(self._stand_in(child, here))
            elif self._runs(child, needed, told) or self._holds(child, ports):
                actions.setdefault(child.module, []).append(None)
                if not is_compiled(child.module):
                    self._stub(child, start, needed, told, ports, actions)
            else:
                actions.setdefault(child.module, []).append(self._stand_in(child, None))

    def _runs(self, call: Call, needed: set[int], told: set[int]) -> bool:
        """Whether a call before the part must be run for what the batch alone determines."""
        if any(call.enter < clock < call.exit for clock in needed):
            return True
        # A module that hands on a view of the input, or of another side input, makes nothing itself.
        if any(isinstance(leaf, Slot) and leaf.key in self.handed for leaf in call.leaves):
            return True
        values = self.small.values
        known = all(isinstance(leaf, Slot) and values[leaf.key].upstream(call.exit) for leaf in call.leaves)
        return not known and any(call.enter < clock < call.exit for clock in told)

    def _holds(self, call: Call, ports: set[int]) -> bool:
        """Whether a cut whose boundary is read later lies inside this call."""
        return any(call.enter < self.cuts[port].enter and self.cuts[port].exit < call.exit for port in ports)


def make_plans(small: Recording, large: Recording, cuts: list[Call], sizes: tuple[int, int]) -> list[PartPlan]:
    """The plans of all parts, from recordings at two batch sizes.

    Raises:
        PartitionError: a part reads random numbers drawn before it, or what a module returns has no one structure.
    """
    planner = _Planner(small, large, cuts, sizes)
    return [planner.plan(part) for part in range(len(cuts) + 1)]
