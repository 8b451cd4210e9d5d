"""The survey's summary from what was run here: every method beside end-to-end backpropagation, family by family."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .. import registry
from ..checks import unlocking
from ..errors import ModulewiseError
from ..method import Family
from .costs import Cost
from .recipe import Measure, Recipe, Row
from .records import Record
from .summary import NOT_RUN, cost, reached, speaks_for

__all__ = ["SURVEY", "survey_rows"]

SURVEY = (
    *("method", "accuracy, %", "E2EBP, %", "difference", "FLOPs / E2EBP", "step time / E2EBP", "peak memory / E2EBP"),
    *("auxiliary parameters, %", "angle, degrees", "locality", "class", "unlocked", "recipe"),
)


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One method.

    Args:
        name: of the method.
        recipe: that speaks for it; None where it has none.
        accuracy: mean ± deviation over seeds in %, or what there is instead.
        reference: that of the end-to-end row.
        difference: of the two means over the seeds that both have, in %; None where one is missing.
        cost: of a step.
    """

    name: str
    recipe: Recipe | None
    accuracy: str
    reference: str
    difference: float | None
    cost: Cost

    @property
    def run(self) -> bool:
        """Whether it has a full run."""
        return self.accuracy != NOT_RUN

    @property
    def angles(self) -> list[float]:
        """Of the parts before the last, which minimises the task loss in most methods."""
        return [angle for angle in (self.cost.angles or ())[:-1] if angle is not None]


def survey_rows(recipes: Sequence[Recipe], records: Sequence[Record]) -> list[tuple[str, ...]]:
    """Lines under `SURVEY`: for every family one with the range of its methods, then one for every method.

    Args:
        recipes: all of them.
        records: all of them; full runs alone count.
    """
    found: list[tuple[str, ...]] = []
    for family in Family:
        if family is Family.REFERENCE:
            continue
        names = [name for name, method in registry.known().items() if method.family is family]
        lines = [_line(name, recipes, records) for name in names]
        found += [_head(family, lines), *(_cells(line) for line in lines)]
    return found


def _line(name: str, recipes: Sequence[Recipe], records: Sequence[Record]) -> _Line:
    recipe = speaks_for(name, recipes, records)
    row = None if recipe is None else recipe.headline_of(name)
    if recipe is None or row is None or not reached(recipe, row, records).proven:
        return _Line(name=name, recipe=recipe, accuracy=NOT_RUN, reference="-", difference=None, cost=Cost())
    other = recipe.neighbour(row)
    assert other is not None, "a headline has a neighbour"
    mine, theirs = (_accuracies(recipe, one, records) for one in (row, other))
    common = mine.keys() & theirs.keys()
    return _Line(
        name=name,
        recipe=recipe,
        accuracy=_mean(list(mine.values())),
        reference=_mean(list(theirs.values())) if theirs else NOT_RUN,
        difference=statistics.fmean(mine[seed] - theirs[seed] for seed in common) if common else None,
        cost=cost(recipe, row, records),
    )


def _accuracies(recipe: Recipe, row: Row, records: Sequence[Record]) -> dict[int, float]:
    """Of the full runs that did not fail, by seed, in %."""
    runs = reached(recipe, row, records).full
    error = recipe.measure is Measure.ERROR
    return {run.seed: 100 - run.figure if error else run.figure for run in runs if run.figure is not None}


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def _cells(line: _Line) -> tuple[str, ...]:
    costs = line.cost
    return (
        f"`{line.name}`",
        line.accuracy,
        line.reference,
        "-" if line.difference is None else f"{line.difference:+.2f}",
        *costs.texts(),
        "-" if costs.auxiliary is None else f"{100 * costs.auxiliary:.1f}",
        _range(line.angles, "{:.0f}"),
        *_derived(line.name),
        "-" if line.recipe is None else f"`{line.recipe.name}`",
    )


def _derived(name: str) -> tuple[str, str, str]:
    """Locality, class and open locks, from the method itself."""
    entry = next(entry for entry in registry.table() if entry.name == name)
    try:
        opened = unlocking(registry.build(registry.parse(name), classes=3))
    except ModulewiseError:
        opened = None
    return entry.locality, entry.modularity, "-" if opened is None else str(opened)


_RANGES: tuple[tuple[Callable[[_Line], float | None], str], ...] = (
    (lambda line: line.difference, "{:+.2f}"),
    (lambda line: line.cost.flops, "{:.2f}"),
    (lambda line: line.cost.seconds, "{:.2f}"),
    (lambda line: line.cost.memory, "{:.2f}"),
    (lambda line: None if line.cost.auxiliary is None else 100 * line.cost.auxiliary, "{:.1f}"),
)


def _head(family: Family, lines: Sequence[_Line]) -> tuple[str, ...]:
    run = sum(line.run for line in lines)
    reaches = dict.fromkeys(str(registry.known()[line.name].locality) for line in lines)
    known = (([value for line in lines if (value := get(line)) is not None], form) for get, form in _RANGES)
    ranges = [_range(values, form) for values, form in known]
    angles = _range([angle for line in lines for angle in line.angles], "{:.0f}")
    return (
        f"**{family.value}**, {run} of {len(lines)} run",
        *("", "", *_bold([*ranges, angles])),
        ", ".join(reaches),
        *("", "", ""),
    )


def _bold(texts: Sequence[str]) -> Iterator[str]:
    return (text if text == "-" else f"**{text}**" for text in texts)


def _range(values: Sequence[float], form: str) -> str:
    """From the least to the most; a dash for none.

    >>> _range([3.0, 1.0, 2.0], "{:.1f}"), _range([2.0], "{:+.1f}"), _range([], "{}")
    ('1.0 to 3.0', '+2.0', '-')
    """
    if not values:
        return "-"
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"
