"""Published figures beside reached ones: a line for every recipe, for every row, and for every method."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .. import registry
from ..compare.summary import bytes_text, flops_text, ratio_text, seconds_text
from ..method import Family
from .costs import Cost, relative
from .recipe import Evaluation, Machine, Recipe, Row
from .records import Record, setting

__all__ = [
    "DETAIL",
    "LISTING",
    "NOT_RUN",
    "UNPROVEN",
    "Reached",
    "cost",
    "detail",
    "listing",
    "method_columns",
    "reached",
    "rows_table",
    "speaks_for",
]

NOT_RUN = "not run yet"
UNPROVEN = "unproven"
LISTING = ("recipe", "proves", "data", "device", "CPU minutes", "published", "reached", "epochs")
DETAIL = (
    *("method", "published", "reached", "difference to E2EBP", "epochs", "peak memory", "step time", "FLOPs"),
    "note",
)


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
    """A line for every method that a recipe proves, under `LISTING`; figures are E2EBP's / the method's.

    The minutes, which are the whole recipe's, stand in its first line.
    """
    return [_line(recipe, name, records) for recipe in recipes for name in recipe.proves]


def _line(recipe: Recipe, name: str, records: Sequence[Record]) -> tuple[str, ...]:
    row = recipe.headline_of(name)
    other = recipe.neighbour(row)
    assert other is not None, "a headline has a neighbour"
    mine, theirs = reached(recipe, row, records), reached(recipe, other, records)
    run = mine.full or mine.quick or theirs.full or theirs.quick
    return (
        recipe.name,
        name,
        recipe.data,
        recipe.device.value,
        _minutes(recipe) if name == recipe.proves[0] else "",
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
        *_costs(recipe, row, records, runs),
        _note(row, runs),
    )


def _costs(recipe: Recipe, row: Row, records: Sequence[Record], runs: Sequence[Record]) -> tuple[str, str, str]:
    if not runs:
        return "", "", ""
    found, first = cost(recipe, row, records), runs[0]
    return (
        ratio_text(bytes_text(first.peak_memory_bytes), found.memory),
        ratio_text(seconds_text(first.step_seconds), found.seconds),
        ratio_text(flops_text(first.flops), found.flops),
    )


def cost(recipe: Recipe, row: Row, records: Sequence[Record]) -> Cost:
    """What a step of a row costs beside one of its end-to-end row, both of full runs or else both of quick ones."""
    mine, theirs = reached(recipe, row, records), reached(recipe, recipe.neighbour(row) or row, records)
    same = not row.configuration.solves  # a method with its own update may take other batches
    if mine.full and theirs.full:
        return relative(mine.full, theirs.full, same_batches=same)
    if mine.full or theirs.full:
        return relative(mine.full, ())
    return relative(mine.quick, theirs.quick, same_batches=same)


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
    """A line for every row of every recipe: recipe, method, set, device, published, reached, unit, epochs, costs.

    The costs are those of a step relative to the end-to-end row's: operations, time, memory.
    """
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
            *cost(recipe, row, records).texts(),
        )
        for recipe in recipes
        for row in recipe.rows
    ]


def method_columns(name: str, recipes: Sequence[Recipe], records: Sequence[Record]) -> tuple[str, str]:
    """Published and reproduced figure of a method, each with that of E2EBP in parentheses.

    Of its recipes the one is taken that `speaks_for` it.

    Args:
        name: of the method.
        recipes: all of them, in the order of `names`.
        records: all of them.
    """
    if registry.known()[name].family is Family.REFERENCE:
        return "reference", "reference"
    best = speaks_for(name, recipes, records)
    if best is None:
        return "-", UNPROVEN
    row = best.headline_of(name)
    other = best.neighbour(row)
    assert other is not None, "a headline has a neighbour"
    said = f"% {best.measure.value}, `{best.name}`"
    published = "-" if row.published is None else f"{_published(row)} ({_published(other)}) {said}"
    if not _proven(best, name, records):
        return published, UNPROVEN
    mine, theirs = reached(best, row, records), reached(best, other, records)
    short = "" if row.paper_epochs is None or row.experiment.epochs >= row.paper_epochs else f"; {_epochs(row)} epochs"
    theirs_text = theirs.text() if theirs.full else NOT_RUN
    return published, f"{mine.text()} ({theirs_text}) {said if published == '-' else '% ' + best.measure.value}{short}"


def speaks_for(name: str, recipes: Sequence[Recipe], records: Sequence[Record]) -> Recipe | None:
    """The recipe of a method that is shown: with a full run, then with a published figure, then the first."""
    own = [recipe for recipe in recipes if name in recipe.proves]
    if not own:
        return None
    return min(own, key=lambda recipe: (not _proven(recipe, name, records), recipe.headline_of(name).published is None))


def _proven(recipe: Recipe, name: str, records: Sequence[Record]) -> bool:
    return reached(recipe, recipe.headline_of(name), records).proven
