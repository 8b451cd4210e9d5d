"""What the report shows: accuracy against cost, where memory goes, every part over time, error against K."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..compare.results import Result
from ..compare.summary import Row
from .drawing import colour_of, figure, legend_above, shades

__all__ = ["angles", "cost", "error_against_parts", "losses", "memory", "probes"]

_MARKERS = "osD^vP*X"
_CATEGORIES = {
    "parameters": "#52606d",
    "gradients": "#c8435a",
    "optimizer": "#e07b39",
    "heads": "#8159b3",
    "activations": "#3b6fb6",
    "inputs": "#a8b3bd",
}


def _labels(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.label for row in rows))


def _named(row: Row, rows: Sequence[Row]) -> str:
    """The row's label, with K where rows differ in it; the usual schedule is not said."""
    label = row.label.removesuffix("@simultaneous")
    return f"{label}, K = {row.first.parts}" if len({r.first.parts for r in rows}) > 1 else label


def cost(rows: Sequence[Row]) -> Figure:
    """Test accuracy against memory, time and operations of a step; a dot a run, a large one their mean.

    Operations are left out where a row has none counted.
    """
    labels, parts = _labels(rows), sorted({row.first.parts for row in rows})
    scales: list[tuple[Callable[[Result], float], str]] = [
        (lambda result: result.peak_memory_bytes / 1e6, "peak memory of a step, MB"),
        (lambda result: result.step_seconds * 1e3, "time of a step, ms"),
    ]
    if all(row.first.flops is not None for row in rows):
        scales.append((lambda result: (result.flops or 0) / 1e9, "operations of a step, GFLOP"))
    made, axes = figure(9.6, 4.4, columns=len(scales), sharey=True)
    for axis, (measure, name) in zip(axes[0], scales, strict=True):
        for row in rows:
            if row.accuracy is None:
                continue
            colour = colour_of(labels.index(row.label))
            marker = _MARKERS[parts.index(row.first.parts) % len(_MARKERS)]
            at = [(measure(r), 100 * r.test_accuracy) for r in row.results if r.test_accuracy is not None]
            axis.scatter(*zip(*at, strict=True), s=16, color=colour, alpha=0.55, marker=marker, linewidths=0)
            mean = (statistics.fmean(x for x, _ in at), 100 * row.accuracy)
            axis.scatter(*mean, s=95, color=colour, marker=marker, edgecolors="white", linewidths=1.2, zorder=3)
        axis.set_xlabel(name)
        axis.set_xlim(0, 1.07 * max(measure(row.first) for row in rows))
        axis.margins(y=0.12)
    axes[0][0].set_ylabel("test accuracy, %")
    handles: list[Any] = [Line2D([], [], marker="o", linestyle="", color=colour_of(i)) for i in range(len(labels))]
    names = [label.removesuffix("@simultaneous") for label in labels]
    if len(parts) > 1:
        markers = [Line2D([], [], marker=_MARKERS[i % 8], linestyle="", color="#52606d") for i in range(len(parts))]
        handles, names = handles + markers, names + [f"K = {k}" for k in parts]
    legend_above(made, handles, names, columns=3)
    return made


def memory(rows: Sequence[Row]) -> Figure:
    """What is alive at the peak of one step, by category."""
    made, axes = figure(9.6, 1.1 + 0.36 * len(rows))
    axis, left = axes[0][0], [0.0] * len(rows)
    for category, colour in _CATEGORIES.items():
        sizes = [row.first.peak_breakdown.get(category, 0) / 1e6 for row in rows]
        axis.barh(range(len(rows)), sizes, left=left, color=colour, height=0.66)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    axis.set_yticks(range(len(rows)), [_named(row, rows) for row in rows])
    axis.invert_yaxis()
    axis.grid(False, axis="y")
    axis.set_xlabel("MB alive at the peak of a step")
    legend_above(made, [Patch(color=c) for c in _CATEGORIES.values()], list(_CATEGORIES), columns=len(_CATEGORIES))
    return made


def _curves(row: Row, value: Callable[[Mapping[str, Any], int], float | None]) -> list[list[tuple[float, list[float]]]]:
    """For every part the points (part-updates a part, values over seeds) of its curve."""
    length = min(len(result.history) for result in row.results)
    parts = row.first.parts
    found: list[list[tuple[float, list[float]]]] = [[] for _ in range(parts)]
    for index in range(length):
        entries = [result.history[index] for result in row.results]
        for part in range(parts):
            values = [v for entry in entries if (v := value(entry, part)) is not None and math.isfinite(v)]
            if values:
                found[part].append((entries[0]["part_updates"] / parts, values))
    return found


def _panels(
    rows: Sequence[Row], value: Callable[[Mapping[str, Any], int], float | None], name: str, *, shared: bool
) -> Figure:
    """One panel a row, one line a part; lines are means over seeds, bands reach from least to most."""
    columns = min(3, len(rows))
    lines = math.ceil(len(rows) / columns)
    made, axes = figure(3.2 * columns, 0.9 + 2.3 * lines, rows=lines, columns=columns, sharey=shared)
    most = max(row.first.parts for row in rows)
    colours = shades(most)
    for axis, row in zip(axes.flat, rows, strict=False):
        curves = _curves(row, value)
        for colour, curve in zip(colours, curves, strict=False):
            x = [at for at, _ in curve]
            axis.plot(x, [statistics.fmean(v) for _, v in curve], color=colour, marker=".", markersize=4)
            if any(len(v) > 1 for _, v in curve):
                low, high = [min(v) for _, v in curve], [max(v) for _, v in curve]
                axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        values = [v for curve in curves for _, some in curve for v in some]
        if not shared and values and min(values) > 0 and max(values) > 20 * min(values):
            axis.set_yscale("log")
        axis.set_title(_named(row, rows), fontsize=8.5)
    for axis in axes.flat[len(rows) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel(name)
    for index in range(len(rows)):
        if index + columns >= len(rows):
            axes.flat[index].set_xlabel("updates of a part")
    handles = [Line2D([], [], color=colour) for colour in colours]
    legend_above(made, handles, [f"part {k}" for k in range(most)], columns=min(8, most))
    return made


def losses(rows: Sequence[Row]) -> Figure:
    """Training loss of every part over its updates."""
    return _panels(rows, lambda entry, part: entry["losses"].get(str(part)), "training loss", shared=False)


def probes(rows: Sequence[Row]) -> Figure | None:
    """Accuracy of a linear probe on every part over its updates; None where no probe was run."""
    if any(result.history[0]["probe"] is None for row in rows for result in row.results):
        return None

    def percent(entry: Mapping[str, Any], part: int) -> float:
        return 100 * entry["probe"][part]

    return _panels(rows, percent, "probe accuracy, %", shared=True)


def angles(rows: Sequence[Row]) -> Figure | None:
    """Degrees to end-to-end backpropagation, every part over its updates; None where no run was measured."""
    measured = [row for row in rows if any(result.angles is not None for result in row.results)]
    if not measured:
        return None

    def degrees(entry: Mapping[str, Any], part: int) -> float | None:
        found = entry.get("alignment")
        return None if found is None else found["angle"][part]

    made = _panels(measured, degrees, "angle, degrees", shared=True)
    for axis in made.axes:
        axis.axhline(90, color="#9aa5b1", linewidth=0.9, linestyle="--", zorder=1)
        axis.set_ylim(0, max(95.0, axis.get_ylim()[1]))
    return made


def error_against_parts(rows: Sequence[Row]) -> Figure | None:
    """Test error against K; None where K does not vary."""
    if len({row.first.parts for row in rows}) < 2:
        return None
    made, axes = figure(9.6, 4.2)
    axis, labels = axes[0][0], _labels(rows)
    for index, label in enumerate(labels):
        own = sorted((row for row in rows if row.label == label and row.accuracy is not None), key=_parts)
        errors = [100 * (1 - row.accuracy) for row in own if row.accuracy is not None]
        spread = [100 * (row.spread or 0) for row in own]
        axis.errorbar([_parts(row) for row in own], errors, yerr=spread, color=colour_of(index), marker="o", capsize=3)
    axis.set_xticks(sorted({_parts(row) for row in rows}))
    axis.set_xlabel("number of parts K")
    axis.set_ylabel("test error, %")
    axis.set_ylim(bottom=0)
    handles = [Line2D([], [], marker="o", color=colour_of(i)) for i in range(len(labels))]
    legend_above(made, handles, [label.removesuffix("@simultaneous") for label in labels], columns=3)
    return made


def _parts(row: Row) -> int:
    return row.first.parts
