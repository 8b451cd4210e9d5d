"""Results over seeds: one row a method, schedule and number of parts, with ratios to backpropagation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .results import Result

__all__ = [
    "HEADINGS",
    "Row",
    "bytes_text",
    "cells",
    "flops_text",
    "markdown",
    "ratio_text",
    "seconds_text",
    "summarise",
]

HEADINGS = (
    "method@schedule",
    "K",
    "accuracy",
    "peak memory",
    "step time",
    "FLOPs",
    "locality",
    "class",
    "params",
    "head params",
    "part-updates",
)


@dataclass(frozen=True)
class Row:
    """A method under a schedule on K parts, over seeds.

    Args:
        results: its runs.
        accuracy: mean test accuracy over the runs that finished; None where none did.
        spread: sample standard deviation (n - 1) of it; None for one run.
        memory_ratio: peak bytes of a step relative to backprop on the same K; None where it was not run.
        time_ratio: seconds of a step for every sample of it, likewise; a method with its own update has other batches.
        flops_ratio: operations of a step for every sample of it, likewise; None where either was not counted.
    """

    results: tuple[Result, ...]
    accuracy: float | None
    spread: float | None
    memory_ratio: float | None
    time_ratio: float | None
    flops_ratio: float | None

    @property
    def first(self) -> Result:
        """Any of its runs, for what they share."""
        return self.results[0]

    @property
    def label(self) -> str:
        """METHOD@SCHEDULE."""
        return self.first.label

    @property
    def failed(self) -> int:
        """How many runs stopped with an error."""
        return sum(result.error is not None for result in self.results)


def summarise(results: Sequence[Result]) -> list[Row]:
    """Group results, in the order in which rows first appear."""
    groups: dict[tuple[str, int], list[Result]] = {}
    for result in results:
        groups.setdefault((result.label, result.parts), []).append(result)
    controls = {result.parts: result for result in results if result.method == "backprop"}
    return [_row(tuple(group), controls.get(parts)) for (_, parts), group in groups.items()]


def _row(group: tuple[Result, ...], control: Result | None) -> Row:
    accuracies = [result.test_accuracy for result in group if result.test_accuracy is not None]
    first = group[0]
    return Row(
        results=group,
        accuracy=statistics.fmean(accuracies) if accuracies else None,
        spread=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        memory_ratio=first.peak_memory_bytes / control.peak_memory_bytes if control else None,
        time_ratio=_per_sample(first, first.step_seconds, control, control.step_seconds) if control else None,
        flops_ratio=_per_sample(first, first.flops, control, control.flops) if control else None,
    )


def _per_sample(first: Result, mine: float | None, control: Result, theirs: float | None) -> float | None:
    """The ratio of two figures, each by the samples of its step; exactly 1 where they are the same."""
    if mine is None or theirs is None:
        return None
    return (mine / first.batch_size) / (theirs / control.batch_size)


def bytes_text(count: float) -> str:
    """Bytes for people.

    >>> bytes_text(1_234_567), bytes_text(820)
    ('1.23 MB', '820 B')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def flops_text(count: float | None) -> str:
    """Floating-point operations for people; a dash where they were not counted.

    >>> flops_text(2_345_000_000), flops_text(None)
    ('2.35 GFLOP', '-')
    """
    return "-" if count is None else bytes_text(count).removesuffix("B").replace("k", "K") + "FLOP"


def seconds_text(seconds: float) -> str:
    """Seconds for people.

    >>> seconds_text(0.01234), seconds_text(2.5)
    ('12.3 ms', '2.5 s')
    """
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _count(number: int) -> str:
    if number < 10_000:
        return f"{number:,}"
    exponent = min(3, int(math.log10(number)) // 3)
    return f"{number / 1000**exponent:.3g} {('', 'k', 'M', 'G')[exponent]}"


def _accuracy(row: Row) -> str:
    if row.accuracy is None:
        return "failed"
    spread = f" ± {100 * row.spread:.2f}" if row.spread is not None else ""
    failed = f" ({row.failed} failed)" if row.failed else ""
    return f"{100 * row.accuracy:.2f}{spread} %{failed}"


def ratio_text(text: str, ratio: float | None) -> str:
    """A figure with its ratio to end-to-end backpropagation's, where there is one."""
    return text if ratio is None else f"{text} ({ratio:.2f}x)"


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, under `HEADINGS`."""
    first = row.first
    audit = "audit ok" if all(result.locality_audit["ok"] for result in row.results) else "VIOLATED"
    observed = first.locality_audit["observed"]
    if observed is None:
        audit = "declared"
    elif audit == "VIOLATED":
        audit += f": {observed}"
    return (
        row.label,
        str(first.parts),
        _accuracy(row),
        ratio_text(bytes_text(first.peak_memory_bytes), row.memory_ratio),
        ratio_text(seconds_text(first.step_seconds), row.time_ratio),
        ratio_text(flops_text(first.flops), row.flops_ratio),
        f"{first.locality}, {audit}",
        first.modular,
        _count(first.params),
        _count(first.head_params),
        _count(first.part_updates),
    )


def markdown(rows: Sequence[Row]) -> str:
    """The table for a README."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    return "\n".join([*lines, *(f"| {' | '.join(cells(row))} |" for row in rows)])
