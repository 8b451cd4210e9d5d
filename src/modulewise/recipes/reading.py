"""Recipes from their files: strictly checked, every complaint with the file and the key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from .. import registry
from ..compare import Experiment, configurations
from ..errors import ModulewiseError, suggest
from .places import EMBEDDED, FOLDERS
from .recipe import Evaluation, Machine, Measure, Recipe, Row, with_epochs
from .words import Table, experiment_values

__all__ = ["load", "names", "read"]

_REQUIRED = ("title", "paper", "link", "proves", "data", "measure", "device", "minutes", "experiment", "quick", "rows")
_OPTIONAL = ("seeds", "departures", "paper_epochs", "evaluation")
_ROW = ("method", "neighbour", "published", "source", "paper_epochs", "departure", "evaluation", "experiment")


def names() -> list[str]:
    """Every recipe that the library has, sorted, numbers by their value (k2 before k16)."""
    folder = resources.files(__package__) / "files"
    found = [path.name.removesuffix(".toml") for path in folder.iterdir() if path.name.endswith(".toml")]
    return sorted(found, key=natural)


def natural(name: str) -> list[tuple[int, str]]:
    """The key by which numbers in names are sorted by value.

    >>> sorted(["k16", "k2"], key=natural)
    ['k2', 'k16']
    """
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", name)]


def load(name: str) -> Recipe:
    """A recipe of the library.

    Raises:
        ModulewiseError: there is none of this name.
    """
    if name not in names():
        raise ModulewiseError(f"unknown recipe {name!r}{suggest(name, names())}; `modulewise recipe list` lists them")
    return _recipe(name, (resources.files(__package__) / "files" / f"{name}.toml").read_text(encoding="utf-8"))


def read(path: str | Path) -> Recipe:
    """A recipe of one's own.

    Raises:
        ModulewiseError: the file cannot be read, or a key of it is wrong; the message names both.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ModulewiseError(f"{path}: {error.strerror or error}") from error
    return _recipe(Path(path).name.removesuffix(".toml"), text)


def _recipe(name: str, text: str) -> Recipe:
    try:
        facts = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ModulewiseError(f"{name}.toml: no TOML ({error})") from error
    table = Table(f"{name}.toml", "", facts)
    table.only(_REQUIRED + _OPTIONAL, required=_REQUIRED)
    table.one_of("data", (*EMBEDDED, *FOLDERS))
    seeds = table.numbers("seeds", (0,))
    shared = table.table("experiment")
    rows = tuple(_row(table, item, shared=shared, seeds=seeds) for item in table.tables("rows"))
    recipe = Recipe(
        name=name,
        title=table.text("title"),
        paper=table.text("paper"),
        link=table.text("link"),
        proves=table.text_or_texts("proves"),
        data=table.text("data"),
        measure=Measure(table.one_of("measure", tuple(Measure))),
        device=Machine(table.one_of("device", tuple(Machine))),
        minutes=table.positive("minutes"),
        seeds=seeds,
        departures=table.texts("departures"),
        rows=rows,
    )
    _check(table, recipe)
    return recipe


def _row(top: Table, item: Table, *, shared: Table, seeds: Sequence[int]) -> Row:
    item.only(_ROW, required=("method",))
    method = item.text("method")
    own = item.table("experiment") if "experiment" in item.facts else None
    values = experiment_values(shared) | (experiment_values(own) if own is not None else {})
    fixed: dict[str, Any] = {
        "methods": (method,),
        "data": top.text("data"),
        "device": top.one_of("device", tuple(Machine)),
        "seeds": tuple(seeds),
        "probe": False,
    }
    item.made("method", lambda: _named(method))
    full = item.made("experiment", lambda: _one(Experiment(**values, **fixed)))
    if ("published" in item.facts) != ("source" in item.facts):
        item.wrong("published", "expected with `source`, which says where the figure was read")
    paper = item if "paper_epochs" in item.facts else top
    return Row(
        method=method,
        experiment=full,
        quick=_quick(top.table("quick"), values, fixed, full),
        neighbour=item.text("neighbour") if "neighbour" in item.facts else None,
        published=item.positive("published") if "published" in item.facts else None,
        source=item.text("source") if "source" in item.facts else None,
        paper_epochs=paper.whole("paper_epochs") if "paper_epochs" in paper.facts else None,
        departure=item.text("departure") if "departure" in item.facts else None,
        evaluation=Evaluation(
            (item if "evaluation" in item.facts else top).one_of(
                "evaluation", tuple(Evaluation), default=Evaluation.CLASSIFIER
            )
        ),
    )


def _named(method: str) -> None:
    name = registry.parse(method.partition("@")[0])
    if name.wraps and name.inner is None:
        raise ModulewiseError(f"{name} stands for several rows; name the method in parentheses")
    configurations(Experiment(methods=(method,)))


def _one(experiment: Experiment) -> Experiment:
    if len(experiment.parts) != 1:
        raise ModulewiseError(f"parts={list(experiment.parts)}, expected one number of parts a row")
    return experiment


def _quick(quick: Table, values: Mapping[str, Any], fixed: Mapping[str, Any], full: Experiment) -> Experiment:
    words = experiment_values(quick)
    if "train_limit" not in words or "epochs" not in words:
        quick.wrong("train_limit", "expected together with epochs: a quick run has fewer examples and fewer epochs")
    if words["epochs"] > full.epochs:
        quick.wrong("epochs", f"expected at most the {full.epochs} of the full run")
    scaled = with_epochs(full, words["epochs"])
    steps = {key: getattr(scaled, key) for key in ("epochs", "schedule_lr", "milestones")}
    return quick.made("epochs", lambda: Experiment(**(dict(values) | steps | words), **fixed))


def _check(table: Table, recipe: Recipe) -> None:
    """What holds between rows."""
    for name in recipe.proves:
        if name not in registry.known():
            table.wrong("proves", f"there is no method {name!r}{suggest(name, registry.known())}")
    if len(recipe.by_method) != len(recipe.rows):
        table.wrong("rows", "expected every method once")
    for number, row in enumerate(recipe.rows):
        _check_row(table, recipe, row, f"rows[{number}]")
    for name in recipe.proves:
        if not any(row.name == name and not row.end_to_end for row in recipe.rows):
            table.wrong("rows", f"expected a row of {name} with a neighbour, which is what the recipe proves")


def _check_row(table: Table, recipe: Recipe, row: Row, place: str) -> None:
    if row.neighbour is None:
        if not row.learns_end_to_end:
            table.wrong(f"{place}.neighbour", f"missing: {row.method} needs the end-to-end row that it is read against")
        return
    other = recipe.by_method.get(row.neighbour)
    if other is None or not other.end_to_end:
        table.wrong(f"{place}.neighbour", f"expected the method of an end-to-end row, {row.neighbour!r} was given")
    if row.experiment.epochs != other.experiment.epochs and row.departure is None:
        table.wrong(
            f"{place}.experiment.epochs",
            f"{row.experiment.epochs} is not the budget of {other.method}, {other.experiment.epochs}; make them equal "
            "or say why in `departure`",
        )
