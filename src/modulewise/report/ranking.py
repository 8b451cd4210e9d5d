"""A ranking of parts as a picture: every score a panel, every part a bar."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from ..errors import ModulewiseError
from ..workflow.ranking.ranking import Scored
from .drawing import colour_of, figure, style

__all__ = ["ranking_svg"]


def ranking_svg(entries: Sequence[Scored]) -> str:
    """One panel a score, parts in the order of the entries; a score that could not be computed has no bar.

    Args:
        entries: of `workflow.rank`, at least one.

    Returns:
        An SVG file's text, the same for the same entries.

    Raises:
        ModulewiseError: there is no entry.
    """
    if not entries:
        raise ModulewiseError("there is no score to draw, expected at least one; rank some parts first")
    parts = list(dict.fromkeys(entry.part for entry in entries))
    names = list(dict.fromkeys(entry.score for entry in entries))
    columns = min(4, len(names))
    lines = math.ceil(len(names) / columns)
    with style():
        made, axes = figure(1.5 + 2.3 * columns, lines * (0.7 + 0.24 * len(parts)), rows=lines, columns=columns)
        for index, axis in enumerate(axes.flat):
            axis.set_visible(index < len(names))
        for index, (axis, name) in enumerate(zip(axes.flat, names, strict=False)):
            own = {entry.part: entry.value for entry in entries if entry.score == name}
            bars = [(place, own[part]) for place, part in enumerate(parts) if own.get(part) is not None]
            axis.barh([place for place, _ in bars], [value for _, value in bars], color=colour_of(0), height=0.7)
            axis.set_yticks(range(len(parts)), parts if index % columns == 0 else [""] * len(parts))
            axis.set_ylim(len(parts) - 0.4, -0.6)
            axis.set_title(name)
        buffer = io.StringIO()
        made.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return buffer.getvalue()
