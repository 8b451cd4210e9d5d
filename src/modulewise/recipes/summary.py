"""Published figures beside reached ones: a line for every recipe, for every row, and for every method."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .. import registry
from ..compare.summary import bytes_text, seconds_text
from ..method import Family
from .recipe import Evaluation, Machine, Recipe, Row
from .records import Record, setting

__all__ = [
    "DETAIL",
    "LISTING",
    "NOT_RUN",
    "UNPROVEN",
    "Reached",
    "detail",
    "listing",
    "method_columns",
    "reached",
    "rows_table",
]

NOT_RUN = "not run yet"
UNPROVEN = "unproven"
LISTING = ("recipe", "proves", "data", "device", "CPU minutes", "published", "reached", "epochs")
DETAIL = ("method", "published", "reached", "difference to E2EBP", "epochs", "peak memory", "step time", "note")


@dataclass(frozen=True)
class Reached:
    """The runs of one row in its recipe's present setting.

    Args:
        full: on the device that the recipe is meant for, or else on the other one.
        quick: likewise, with fewer examples and epochs; only ever shown as such.
    """

    full: tuple[Record, ...]
    quick: tuple[Record, ...]

    @property
    def figures(self) -> list[float]:
        """Of the full runs that did not fail."""
        return _figures(self.full)

    @property
    def proven(self) -> bool:
        """Whether a full run has a figure."""
        return bool(self.figures)

    def text(self) -> str:
        """Mean ± standard deviation (n - 1) over seeds, or what there is instead."""
        if self.full:
            failed = len(self.full) - len(self.figures)
            text = _mean(self.figures) if self.figures else "failed"
            return text + (f" ({failed} failed)" if failed and self.figures else "")
        if self.quick:
            figures = _figures(self.quick)
            return f"quick: {_mean(figures)}" if figures else "quick: failed"
        return NOT_RUN


def _figures(records: Sequence[Record]) -> list[float]:
    return [record.figure for record in records if record.figure is not None]


def _mean(figures: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(figures):.2f}" if len(figures) > 1 else ""
    return f"{statistics.fmean(figures):.2f}{spread}"


def reached(recipe: Recipe, row: Row, records: Sequence[Record]) -> Reached:
    """What was reached for a row; records of settings that the recipe no longer has, or never had, do not count."""
    return Reached(*(_found(recipe, row, records, quick=quick) for quick in (False, True)))


def _found(recipe: Recipe, row: Row, records: Sequence[Record], *, quick: bool) -> tuple[Record, ...]:
    devices = [recipe.device.value, *(machine.value for machine in Machine if machine is not recipe.device)]
    for device in devices:
        key = setting(recipe, row, experiment=row.chosen(quick=quick), quick=quick, device=device)
        found = {record.seed: record for record in records if record.setting == key and record.recipe == recipe.name}
        if found:
            return tuple(found[seed] for seed in sorted(found))
    return ()


def _published(row: Row | None) -> str:
    return "-" if row is None or row.published is None else f"{row.published:.2f}"


def _epochs(row: Row) -> str:
    epochs = row.experiment.epochs
    if row.paper_epochs is None:
        return str(epochs)
    if epochs < row.paper_epochs:
        return f"{epochs}, short of the paper's {row.paper_epochs}"
    return f"{epochs} of {row.paper_epochs}"


def _minutes(recipe: Recipe) -> str:
    return f"{recipe.minutes:,.0f}" if recipe.minutes >= 1 else f"{recipe.minutes:.1f}"


def listing(recipes: Sequence[Recipe], records: Sequence[Record]) -> list[tuple[str, ...]]:
    """A line for every recipe, under `LISTING`; figures are E2EBP's / the method's."""
    return [_line(recipe, records) for recipe in recipes]


def _line(recipe: Recipe, records: Sequence[Record]) -> tuple[str, ...]:
    row = recipe.headline
    other = recipe.neighbour(row)
    assert other is not None, "a headline has a neighbour"
    mine, theirs = reached(recipe, row, records), reached(recipe, other, records)
    run = mine.full or mine.quick or theirs.full or theirs.quick
    return (
        recipe.name,
        recipe.proves,
        recipe.data,
        recipe.device.value,
        _minutes(recipe),
        f"{_published(other)} / {_published(row)} % {recipe.measure.value}",
        f"{theirs.text()} / {mine.text()}" if run else NOT_RUN,
        _epochs(row),
    )


def detail(recipe: Recipe, records: Sequence[Record]) -> list[tuple[str, ...]]:
    """A line for every row of a recipe, under `DETAIL`."""
    return [_detail(recipe, row, records) for row in recipe.rows]


def _detail(recipe: Recipe, row: Row, records: Sequence[Record]) -> tuple[str, ...]:
    mine = reached(recipe, row, records)
    runs = mine.full or mine.quick
    return (
        row.method,
        _published(row),
        mine.text(),
        _difference(recipe, row, records),
        _epochs(row) if not runs or mine.full else f"{runs[0].epochs} (quick)",
        bytes_text(runs[0].peak_memory_bytes) if runs else "",
        seconds_text(runs[0].step_seconds) if runs else "",
        _note(row, runs),
    )


def _difference(recipe: Recipe, row: Row, records: Sequence[Record]) -> str:
    other = recipe.neighbour(row)
    if other is None:
        return ""
    mine, theirs = reached(recipe, row, records), reached(recipe, other, records)
    if not mine.proven or not theirs.proven:
        return ""
    pairs = _common(recipe, row, other, records)
    return f"{statistics.fmean(a - b for a, b in pairs):+.2f}" if pairs else ""


def _common(recipe: Recipe, row: Row, other: Row, records: Sequence[Record]) -> list[tuple[float, float]]:
    """The figures of two rows for the seeds that both have finished."""
    mine, theirs = (
        {r.seed: r.figure for r in _found(recipe, one, records, quick=False) if r.figure is not None}
        for one in (row, other)
    )
    return [(mine[seed], theirs[seed]) for seed in mine.keys() & theirs.keys()]


def _note(row: Row, runs: Sequence[Record]) -> str:
    notes = [row.departure] if row.departure else []
    first = runs[0] if runs else None
    if first is not None and row.evaluation is Evaluation.PROBE and first.neighbours_accuracy is not None:
        online = first.test_accuracy if first.test_accuracy is not None else float("nan")
        notes.append(
            f"linear probe; {100 * first.neighbours_accuracy:.2f} % by nearest neighbours, {100 * online:.2f} % by the "
            "classifier trained on the fly (first seed)"
        )
    if first is not None and first.error:
        notes.append(first.error)
    return "; ".join(notes)


def rows_table(recipes: Sequence[Recipe], records: Sequence[Record]) -> list[tuple[str, ...]]:
    """A line for every row of every recipe: recipe, method, set, device, published, reached, unit, epochs."""
    return [
        (
            f"`{recipe.name}`",
            f"`{row.method}`",
            recipe.data,
            recipe.device.value,
            _published(row),
            reached(recipe, row, records).text(),
            f"% {recipe.measure.value}",
            _epochs(row),
        )
        for recipe in recipes
        for row in recipe.rows
    ]


def method_columns(name: str, recipes: Sequence[Recipe], records: Sequence[Record]) -> tuple[str, str]:
    """Published and reproduced figure of a method, each with that of E2EBP in parentheses.

    Of its recipes the one is taken that has a full run, then one with a published figure, then the first.

    Args:
        name: of the method.
        recipes: all of them, in the order of `names`.
        records: all of them.
    """
    if registry.known()[name].family is Family.REFERENCE:
        return "reference", "reference"
    own = [recipe for recipe in recipes if recipe.proves == name]
    if not own:
        return "-", UNPROVEN
    best = min(own, key=lambda recipe: (not _proven(recipe, records), recipe.headline.published is None))
    row = best.headline
    other = best.neighbour(row)
    assert other is not None, "a headline has a neighbour"
    said = f"% {best.measure.value}, `{best.name}`"
    published = "-" if row.published is None else f"{_published(row)} ({_published(other)}) {said}"
    if not _proven(best, records):
        return published, UNPROVEN
    mine, theirs = reached(best, row, records), reached(best, other, records)
    short = "" if row.paper_epochs is None or row.experiment.epochs >= row.paper_epochs else f"; {_epochs(row)} epochs"
    theirs_text = theirs.text() if theirs.full else NOT_RUN
    return published, f"{mine.text()} ({theirs_text}) {said if published == '-' else '% ' + best.measure.value}{short}"


def _proven(recipe: Recipe, records: Sequence[Record]) -> bool:
    return reached(recipe, recipe.headline, records).proven
