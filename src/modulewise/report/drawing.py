"""Figures as inline SVG: one look for all, no state outside a figure, no reference to anything outside the page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.figure import Figure

__all__ = ["PALETTE", "colour_of", "figure", "legend_above", "shades", "style", "svg"]

PALETTE = (
    "#3b6fb6",
    "#e07b39",
    "#3a9a5b",
    "#c8435a",
    "#8159b3",
    "#8c6d4f",
    "#d070ae",
    "#5d6b7a",
    "#a5a231",
    "#2ea3b0",
)
_INK, _FAINT = "#1f2933", "#d9dfe5"
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#9aa5b1",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": "#52606d",
    "ytick.color": "#52606d",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "path",
    "svg.hashsalt": "modulewise",
}


@contextmanager
def style() -> Iterator[None]:
    """The look of the figures, for the block."""
    with matplotlib.rc_context(_STYLE):
        yield


def figure(width: float, height: float, *, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure and its axes, (rows, columns), laid out without overlaps."""
    made = Figure(figsize=(width, height), layout="constrained")
    return made, made.subplots(rows, columns, squeeze=False, **options)


def colour_of(index: int) -> str:
    """The colour of the index-th method."""
    return PALETTE[index % len(PALETTE)]


def shades(count: int) -> list[Any]:
    """Colours of parts, from the first to the last."""
    return [matplotlib.colormaps["viridis"](0.05 + 0.8 * i / max(1, count - 1)) for i in range(count)]


def legend_above(made: Figure, handles: Sequence[Any], labels: Sequence[str], *, columns: int) -> None:
    """One legend for all axes, above them."""
    made.legend(handles, labels, loc="outside upper left", ncols=columns, handlelength=1.4, columnspacing=1.6)


def svg(made: Figure, *, title: str) -> str:
    """A figure as an element to put into a page: no prolog, no metadata, no address of a schema.

    Args:
        made: the figure.
        title: said by screen readers.
    """
    buffer = io.StringIO()
    made.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'(<svg[^>]*?)\s+width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?)\s+height="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1).strip()
