"""The fewest parts whose predicted peak fits: an estimate out of slices, then whole steps without memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

from ..balance import Slice, memory, recomputed_memory, split
from ..errors import MethodError
from ..methods import Backprop, Checkpointed
from ..partition import Partition
from .plan import Control, Plan, drawn
from .rehearsing import Rehearsal
from .task import Residence, Task

__all__ = ["Costs", "Found", "costs_of", "fewest", "foretell", "named"]


CAUTION = 0.85
"""What estimates are taken times when it is asked whether fewer parts might fit: they err on the side of too much."""

TRIES = 8
"""Most numbers of parts that are tried before a limit is given up."""

CHECKPOINTS = 24
"""Most parts that the checkpointed control is tried with."""


@dataclass(frozen=True, eq=False)
class Costs:
    """Estimated peaks of runs of slices, from which cuts are chosen before they are tried.

    Args:
        task: what is trained.
        slices: all of them, in order.
        extras: for every slice what an objective at its end takes on top of the slice's own peak.
        kept: for every slice its parameters and optimiser state.
        ratio: the measured peak of one slice a part relative to its estimate.
    """

    task: Task
    slices: tuple[Slice, ...]
    extras: tuple[int, ...]
    kept: tuple[int, ...]
    ratio: float = 1.0
    known: dict[tuple[int, int], float] = field(default_factory=dict)

    @cached_property
    def base(self) -> int:
        """What is there whatever learns: the batch, and with `Residence.ALL` all parts' state."""
        return self.task.fed_bytes + (sum(self.kept) if self.task.residence is Residence.ALL else 0)

    def of(self, task: Task) -> Costs:
        """The same of the task at another batch size, residence or recomputation: activations follow the batch."""
        share = task.batch / self.task.batch
        slices = tuple(
            replace(
                piece,
                **{
                    name: round(share * getattr(piece, name))
                    for name in ("input_bytes", "output_bytes", "saved_bytes", "shared_bytes", "transient_bytes")
                },
            )
            for piece in self.slices
        )
        return Costs(task, slices, tuple(round(share * extra) for extra in self.extras), self.kept, self.ratio)

    def needs(self, ends: Sequence[int]) -> float:
        """The peak of the neediest part of a split."""
        edges = [0, *(end + 1 for end in ends), len(self.slices)]
        return max(self.peak(a, b) for a, b in pairwise(edges))

    def moved(self, start: int, stop: int) -> float:
        """What the part's slices need for themselves."""
        if (start, stop) not in self.known:
            cost = recomputed_memory if self.task.recompute else memory
            self.known[start, stop] = cost(self.slices[start:stop])
        return self.known[start, stop]

    def peak(self, start: int, stop: int) -> float:
        """The peak of a part of slices start, ..., stop - 1."""
        own = 0 if self.task.residence is Residence.ALL else sum(self.kept[start:stop])
        extra = self.extras[stop - 1] if stop < len(self.slices) else 0
        return self.base + own + extra + self.moved(start, stop)

    def flops(self, start: int, stop: int) -> float:
        """Operations of a part."""
        return float(sum(s.forward_flops + s.input_flops + s.weight_flops for s in self.slices[start:stop]))

    def ends(self, parts: int) -> list[int]:
        """The split into so many parts whose neediest part needs least; of those the one of most even work."""
        return split(self.peak, len(self.slices), parts, spread=self.flops)

    def even(self, parts: int, limit: float) -> list[int] | None:
        """The split of most even work among those that fit the limit; None where none does."""
        infinite = float("inf")

        def cost(start: int, stop: int) -> float:
            return self.flops(start, stop) if self.peak(start, stop) <= limit else infinite

        found = split(cost, len(self.slices), parts, spread=self.flops)
        edges = [0, *(end + 1 for end in found), len(self.slices)]
        fits = all(cost(a, b) < infinite for a, b in pairwise(edges))
        return found if fits and len(edges) == parts + 1 else None

    def least(self, limit: float) -> int:
        """The fewest parts that are estimated to fit; a slice that is too large by itself is a part."""
        parts, start = 0, 0
        while start < len(self.slices):
            stop = start + 1
            while stop < len(self.slices) and self.peak(start, stop + 1) <= limit:
                stop += 1
            parts, start = parts + 1, stop
        return parts

    def within(self, parts: int) -> float:
        """The estimated peak of the best split into at most so many parts, by bisection of `least`."""
        low, high = self.largest, self.peak(0, len(self.slices))
        while high - low > 0.002 * high:
            middle = (low + high) / 2
            low, high = (low, middle) if self.least(middle) <= parts else (middle, high)
        return high

    @cached_property
    def largest(self) -> float:
        """The estimated peak of the neediest slice."""
        return max(self.peak(index, index + 1) for index in range(len(self.slices)))


@dataclass(frozen=True)
class Found:
    """A partition and its rehearsed step."""

    partition: Partition
    rehearsal: Rehearsal
    groups: tuple[tuple[Slice, ...], ...]

    def plan(self, task: Task, controls: Sequence[Control], limit: int | None) -> Plan:
        """As a plan."""
        return drawn(task, self.partition, self.rehearsal, self.groups, controls, limit)


def named(task: Task, costs: Costs, ends: Sequence[int]) -> Found:
    """Try cuts at the ends of these slices."""
    partition = task.partition([costs.slices[end].name for end in ends])
    edges = [0, *(end + 1 for end in ends), len(costs.slices)]
    groups = tuple(costs.slices[a:b] for a, b in pairwise(edges))
    return Found(partition, task.rehearse(partition), groups)


def costs_of(task: Task, whole: Partition) -> Costs:
    """Measure the slices between a model's cut points, and the objectives that would sit there."""
    slices = tuple(whole.measure(timed=False))
    cost = recomputed_memory if task.recompute else memory
    fed = task.fed_bytes
    try:
        finest = task.partition([piece.name for piece in slices[:-1]])
        rehearsal = task.rehearse(finest, counted=False)
    except MethodError:
        if len(slices) > 1:  # the method does not take parts as small as that; whether it takes others is tried later
            return Costs(task, slices, (0,) * len(slices), tuple(2 * piece.parameter_bytes for piece in slices))
        raise
    kept = tuple(state.parameter_bytes + state.optimizer_bytes for state in rehearsal.states)
    everything = sum(state.kept for state in rehearsal.states)
    extras = []
    for index, piece in enumerate(slices):
        if rehearsal.waits:
            extras.append(rehearsal.states[index].head_bytes)
            continue
        beside = rehearsal.laps[index].report.peak_bytes - everything - fed - int(cost([piece]))
        extras.append(max(0, beside) + rehearsal.states[index].head_bytes)
    costs = Costs(task, slices, tuple(extras), kept)
    # On its own, since the heads of all slices together are those of no plan.
    estimate = replace(costs, task=replace(task, residence=Residence.PART)).largest
    groups = tuple((piece,) for piece in slices)
    alone = max(part.alone for part in Found(finest, rehearsal, groups).plan(task, (), None).parts)
    return replace(costs, ratio=min(1.0, alone / estimate))


def fewest(task: Task, costs: Costs, limit: int) -> Found | None:
    """The fewest parts that fit a limit, as whole steps without memory say; None where no number does.

    Estimates say where to begin and which fewer parts may fit as well; a step's peak decides, never an estimate.
    """
    most, ratios = len(costs.slices), [costs.ratio]
    best, parts = None, min(most, costs.least(limit / costs.ratio))
    if costs.largest * costs.ratio * CAUTION > limit:
        return None
    while best is None:
        found, peak, ratio = _tried(task, costs, parts, limit)
        ratios.append(ratio)
        if peak <= limit:
            best = found
            break
        # Heads of all parts may live together, so that more parts need more.
        more = [k for k in range(parts + 1, most + 1) if costs.within(k) * ratio * CAUTION <= limit]
        if not more or len(ratios) > TRIES:
            return None
        parts = next((k for k in more if costs.within(k) * ratio <= limit), more[-1])
    for fewer in range(parts - 1, 0, -1):
        if costs.within(fewer) * min(ratios) * CAUTION > limit:
            break
        found, peak, ratio = _tried(task, costs, fewer, limit)
        ratios.append(ratio)
        best = found if peak <= limit else best
    return best


def _tried(task: Task, costs: Costs, parts: int, limit: int) -> tuple[Found, int, float]:
    """So many parts, their peak, and how it compares with its estimate."""
    ends = costs.ends(parts)
    found = named(task, costs, ends)
    peak = found.plan(task, (), limit).peak
    return found, peak, peak / costs.needs(ends)


def _checkpoints(costs: Costs) -> list[int]:
    """Where checkpointing keeps least: the boundaries, and the neediest part that is run again."""
    slices, most = costs.slices, min(len(costs.slices), CHECKPOINTS)
    plain = Costs(replace(costs.task, recompute=False), slices, (0,) * len(slices), (0,) * len(slices))

    def needs(ends: Sequence[int]) -> float:
        return plain.needs(ends) + sum(slices[end].output_bytes for end in ends)

    return min((plain.ends(parts) for parts in range(2, most + 1)), key=needs, default=[])


def foretell(task: Task, whole: Partition, costs: Costs, found: Found, limit: int | None) -> Plan:
    """The plan of what was found, beside end-to-end backpropagation and checkpointing."""
    plain = task.rehearse(whole, Backprop(), recompute=False)
    controls = [Control(name="E2EBP", peak=plain.peak, flops=plain.flops)]
    best = tuple(costs.slices[end].name for end in _checkpoints(costs))
    for name, names in {"at these cuts": found.partition.cuts, "at its best cuts": best}.items():
        if names and (name == "at these cuts" or best != found.partition.cuts):
            step = task.rehearse(task.partition(names), Checkpointed(), recompute=False)
            controls.append(Control(name=f"E2EBP, checkpointed {name}", peak=step.peak, flops=step.flops))
    return found.plan(task, controls, limit)
