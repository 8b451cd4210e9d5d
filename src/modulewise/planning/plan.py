"""What a plan says: one row a part, beside end-to-end backpropagation and checkpointing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..balance import Slice, memory, recomputed_memory
from ..metering import Category
from ..partition import Partition
from .rehearsing import Rehearsal
from .sizes import size_text
from .task import Residence, Task

__all__ = ["Control", "Plan", "PlannedPart", "part_rows"]


@dataclass(frozen=True, kw_only=True)
class PlannedPart:
    """What one part takes. Bytes of its kinds do not add up to the peak: gradients grow while activations go.

    Args:
        part: its index.
        ends: the module at whose output it ends; "" for the last part.
        parameters: their number.
        parameter_bytes: their bytes.
        gradient_bytes: bytes of their gradients.
        optimizer_bytes: bytes of its optimiser's state.
        head_bytes: the objective: parameters, optimiser state, and what of its work lives at the peak.
        activation_bytes: activations, boundaries, temporaries and the batch at the peak.
        peak: most bytes alive while the part learns, every other part's weights and optimiser state included.
        alone: the same without the other parts: on a device of its own.
        flops: floating-point operations of its share of a step, objective included.
        forward_flops: those of its forward, objective excluded; so the next two.
        input_flops: of the backward that leads to its input.
        weight_flops: of the rest of its backward.
        output_bytes: of the boundary above it.
        kept_bytes: parameters, optimiser state and head between steps.
    """

    part: int
    ends: str
    parameters: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    head_bytes: int
    activation_bytes: int
    peak: int
    alone: int
    flops: int
    forward_flops: int
    input_flops: int
    weight_flops: int
    output_bytes: int
    kept_bytes: int

    @property
    def plain_flops(self) -> int:
        """Operations of the part in end-to-end backpropagation: without an objective of its own."""
        return self.forward_flops + self.input_flops + self.weight_flops


@dataclass(frozen=True, kw_only=True)
class Control:
    """What the same batch takes another way, in one process.

    Args:
        name: of the way.
        peak: most bytes alive in the step.
        flops: floating-point operations of the step.
    """

    name: str
    peak: int
    flops: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Cuts, and what training with them takes.

    Args:
        method: its name.
        batch: N.
        memory: bytes that the plan was to fit into; None where it was not.
        residence: what is on the device beside the part that learns.
        cuts: names for `Partition(cuts=...)`.
        parts: one row a part.
        controls: end-to-end backpropagation first.
        waits: whether parts wait for messages, so that what they keep lives together.
        flops: floating-point operations of a step.
    """

    method: str
    batch: int
    memory: int | None
    residence: Residence
    cuts: tuple[str, ...]
    parts: tuple[PlannedPart, ...]
    controls: tuple[Control, ...]
    waits: bool
    flops: int

    @property
    def peak(self) -> int:
        """The predicted peak: of the neediest part, with what is on the device beside it."""
        return max(part.peak if self.residence is Residence.ALL else part.alone for part in self.parts)

    @property
    def time(self) -> float:
        """Operations of a step, all parts one after another, relative to end-to-end backpropagation."""
        return self.flops / self.controls[0].flops

    def __str__(self) -> str:
        headings, rows = part_rows(self)
        widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in (headings, *rows)]
        return "\n".join(line.rstrip() for line in lines)


def drawn(
    task: Task,
    partition: Partition,
    rehearsal: Rehearsal,
    slices: Sequence[Sequence[Slice]],
    controls: Sequence[Control],
    limit: int | None,
) -> Plan:
    """A plan out of a rehearsed step.

    Args:
        task: what is trained.
        partition: where it was cut.
        rehearsal: one step of it.
        slices: those of every part.
        controls: end-to-end backpropagation first.
        limit: bytes it was to fit into.
    """
    cost = recomputed_memory if task.recompute else memory
    own_laps = not rehearsal.waits
    kept = sum(state.kept for state in rehearsal.states)
    heads = sum(state.head_bytes for state in rehearsal.states)
    rows, plans = [], partition.plans(task.x)
    for index, (state, run) in enumerate(zip(rehearsal.states, slices, strict=True)):
        worst = max(rehearsal.laps, key=lambda lap: lap.report.peak_bytes)
        lap = rehearsal.laps[index] if own_laps else worst
        at_peak = lap.report.at_peak
        # The input travels no further than the first part, unless a later one makes side inputs of it.
        unread = task.input_bytes if index and not plans[index].reads_batch else 0
        without = int(cost(run)) + state.kept + task.fed_bytes - unread
        alone = lap.report.peak_bytes - (kept - state.kept) - unread if own_laps else without
        plain = sum(piece.forward_flops + piece.input_flops + piece.weight_flops for piece in run)
        rows.append(
            PlannedPart(
                part=index,
                ends=partition.cuts[index] if index < len(partition.cuts) else "",
                parameters=state.parameters,
                parameter_bytes=state.parameter_bytes,
                gradient_bytes=state.gradient_bytes,
                optimizer_bytes=state.optimizer_bytes,
                head_bytes=at_peak[Category.HEADS] - (heads - state.head_bytes) if own_laps else state.head_bytes,
                activation_bytes=at_peak[Category.ACTIVATIONS] + at_peak[Category.INPUTS],
                peak=lap.report.peak_bytes,
                alone=alone,
                flops=lap.flops if own_laps else plain,
                forward_flops=sum(piece.forward_flops for piece in run),
                input_flops=sum(piece.input_flops for piece in run),
                weight_flops=sum(piece.weight_flops for piece in run),
                output_bytes=run[-1].output_bytes,
                kept_bytes=state.kept,
            )
        )
    return Plan(
        method=type(task.method).__name__,
        batch=task.batch,
        memory=limit,
        residence=task.residence,
        cuts=partition.cuts,
        parts=tuple(rows),
        controls=tuple(controls),
        waits=rehearsal.waits,
        flops=rehearsal.flops,
    )


def part_rows(plan: Plan) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and one row of words a part."""
    headings = (
        *("part", "ends at", "parameters", "their bytes", "gradients", "optimiser", "activations", "head"),
        *("peak", "on its own", "GFLOP", "step time / E2EBP"),
    )
    rows = [
        (
            str(row.part),
            row.ends or "(the output)",
            f"{row.parameters:,}",
            *map(size_text, (row.parameter_bytes, row.gradient_bytes, row.optimizer_bytes)),
            *map(size_text, (row.activation_bytes, row.head_bytes, row.peak, row.alone)),
            f"{row.flops / 1e9:,.3g}" if row.flops < 1e12 else f"{row.flops / 1e9:,.0f}",
            f"{row.flops / plan.controls[0].flops:.3f}",
        )
        for row in plan.parts
    ]
    return headings, rows
