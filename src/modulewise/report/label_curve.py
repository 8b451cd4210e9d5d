"""Test error against the number of labelled examples, one line an arm."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from ..workflow.labels.rows import LabelRow
from .drawing import colour_of, figure, legend_above, style

__all__ = ["label_figure", "label_picture"]


def label_figure(rows: Sequence[LabelRow]) -> Figure:
    """Mean test error over draws, on a logarithmic axis where none is 0; bands reach from best to worst draw."""
    arms = list(dict.fromkeys(row.arm for row in rows))
    columns = list(dict.fromkeys(row.per_class for row in rows))
    made, axes = figure(8.4, 4.6)
    axis = axes[0][0]
    for index, arm in enumerate(arms):
        own = [row for row in rows if row.arm == arm]
        at = [columns.index(row.per_class) for row in own]
        axis.plot(at, [100 - 100 * row.mean for row in own], color=colour_of(index), marker="o", markersize=4)
        low, high = ([100 - 100 * choose(row.accuracies) for row in own] for choose in (max, min))
        axis.fill_between(at, low, high, color=colour_of(index), alpha=0.15, linewidth=0)
    axis.set_xticks(range(len(columns)), ["all" if n is None else str(n) for n in columns])
    if max(max(row.accuracies) for row in rows) < 1:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("labelled examples a class")
    axis.set_ylabel("test error, %")
    legend_above(made, [Line2D([], [], color=colour_of(i)) for i in range(len(arms))], arms, columns=4)
    return made


def label_picture(rows: Sequence[LabelRow]) -> bytes:
    """The figure as an SVG file that is the same for the same rows."""
    buffer = io.BytesIO()
    with style():
        label_figure(rows).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
