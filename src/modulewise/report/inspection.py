"""The page about the inside of runs: what was found, every part's state, heat maps and projections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..errors import ModulewiseError
from ..workflow.inspection.findings import Finding, find
from ..workflow.inspection.pictured import Features
from ..workflow.inspection.recording import Record
from ..workflow.inspection.states import INPUT
from .drawing import style, svg
from .maps import MEASURES, part_maps, projections

__all__ = ["Look", "render_look", "state_table"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """One run, looked at.

    Args:
        title: which run it is.
        records: oldest first, at least one.
        features: for projections; None where none were kept.
    """

    title: str
    records: Sequence[Record]
    features: Features | None = None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the last record comes to."""
        return find(self.records[-1].states, samples=max(1, self.records[-1].samples))


def state_table(record: Record) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row for the input and every part; measures that were not taken are left out.

    Args:
        record: the moment to show.
    """
    taken = [shown for shown in MEASURES if any(getattr(state, shown.field) is not None for state in record.states)]
    rows = []
    for state in record.states:
        values = [getattr(state, shown.field) for shown in taken]
        cells = ["" if value is None else shown.text(value) for shown, value in zip(taken, values, strict=True)]
        rows.append(["-" if state.part == INPUT else str(state.part), state.name, *cells])
    return ["part", "ends at", *(shown.title for shown in taken)], rows


def render_look(looks: Sequence[Look], *, title: str, facts: Sequence[str], command: str) -> str:
    """The page as HTML; it refers to nothing outside itself.

    Args:
        looks: one a run, at least one.
        title: of the page.
        facts: shown below the title.
        command: what was typed.

    Raises:
        ModulewiseError: there is no run, or one without records.
    """
    if not looks or not all(look.records for look in looks):
        raise ModulewiseError("there is no record of a run to show, expected at least one; train with --inspect")
    environment = Environment(
        loader=PackageLoader("modulewise"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    with style():
        shown = [_shown(look) for look in looks]
    return environment.get_template("inspect.html.j2").render(title=title, facts=facts, looks=shown, command=command)


def _shown(look: Look) -> dict[str, Any]:
    last = look.records[-1]
    headings, rows = state_table(last)
    pictures = [
        (
            "Parts over training",
            "Rows are parts, the input at the bottom; columns are passes over the data. Every panel has colours of its "
            "own.",
            part_maps(look.records),
        )
    ]
    if look.features is not None and len(look.features.features[0]) >= 4:
        count = len(look.features.features[0])
        caption = (
            f"{count} samples when last looked at, coloured by class: principal components above, t-SNE below. In "
            "t-SNE only who is near whom has a meaning."
        )
        pictures.append(("Features of every part", caption, projections(look.features)))
    return {
        "title": look.title,
        "findings": look.findings,
        "held_out": last.held_out,
        "samples": last.samples,
        "passes": last.passes,
        "headings": headings,
        "rows": rows,
        "pictures": [
            {
                "title": f"{look.title}: {name.lower()}",
                "caption": text,
                "svg": svg(drawn, title=f"{look.title}: {name}"),
            }
            for name, text, drawn in pictures
        ],
    }
