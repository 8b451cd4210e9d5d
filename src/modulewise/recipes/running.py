"""Run recipes: row by row, every finished run on disk at once, what is there already not made again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .. import compare
from ..compare import Experiment, Result, Run, Watcher
from ..compare.assembling import Workshop, device_of
from ..compare.scoring import Scores, hidden_scores
from ..errors import DataError, ModulewiseError
from ..partition import AnyPartition
from .places import data_place
from .recipe import Evaluation, Machine, Recipe, Row
from .records import Book, Record, fingerprint, setting

__all__ = ["DEFAULT_OUT", "Orders", "run", "run_all"]

DEFAULT_OUT = Path("results") / "recipes.jsonl"


@dataclass(frozen=True, kw_only=True)
class Orders:
    """How recipes are run.

    Args:
        device: 'cpu', 'cuda' or 'cuda:N'; None for what each recipe is meant for, or the CPU for a quick run.
        epochs: instead of the recipes' own; None for those.
        quick: fewer examples and epochs; marked as such and never mixed with full rows.
        data: folder that holds the sets; None for the usual places.
        seeds: instead of the recipes' own; None for those, or the first of them in a quick run.
        threads: of torch on the CPU; None for what they are.
        out: file of records.

    Raises:
        ModulewiseError: a number is below 1, or no seed is given.
    """

    device: str | None = None
    epochs: int | None = None
    quick: bool = False
    data: str | Path | None = None
    seeds: tuple[int, ...] | None = None
    threads: int | None = None
    out: Path = DEFAULT_OUT

    def __post_init__(self) -> None:
        for name in ("epochs", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ModulewiseError(f"{name}={value}, expected at least 1")
        if self.seeds == ():
            raise ModulewiseError("seeds=() was given, expected at least one")

    def seeds_for(self, recipe: Recipe) -> tuple[int, ...]:
        """The seeds asked for, or else the recipe's; of these the first alone in a quick run."""
        return self.seeds or (recipe.seeds[:1] if self.quick else recipe.seeds)

    def device_for(self, recipe: Recipe) -> str:
        """Where a recipe is run."""
        return self.device or (Machine.CPU.value if self.quick else recipe.device.value)


class _Scorer(Watcher):
    """Scores the hidden features of a trained model, where the row is evaluated by them."""

    def __init__(self, row: Row) -> None:
        self._wanted = row.evaluation is Evaluation.PROBE
        self.scores: Scores | None = None

    def trained(self, run: Run, partition: AnyPartition, workshop: Workshop) -> None:
        """Fit to the training split, score on the test split."""
        if self._wanted:
            material = workshop.material
            self.scores = hidden_scores(partition, workshop.plain(material.train), workshop.plain(material.test))


@dataclass(frozen=True)
class _Task:
    """One run that a recipe comes to."""

    recipe: Recipe
    row: Row
    experiment: Experiment
    quick: bool
    setting: str
    fingerprint: str


def _tasks(recipe: Recipe, orders: Orders, device: str) -> list[_Task]:
    """All runs, seed by seed, so that an interrupted recipe has every row for its first seeds."""
    found = []
    for seed in dict.fromkeys(orders.seeds_for(recipe)):
        for row in recipe.rows:
            experiment = replace(
                row.chosen(quick=orders.quick, epochs=orders.epochs),
                seeds=(seed,),
                device=device,
                threads=orders.threads,
            )
            key = setting(recipe, row, experiment=experiment, quick=orders.quick, device=device)
            found.append(_Task(recipe, row, experiment, orders.quick, key, fingerprint(key, seed=seed)))
    return found


def run(
    recipe: Recipe,
    orders: Orders | None = None,
    *,
    watchers: Callable[[], Sequence[Watcher]] = tuple,
    stop: Callable[[], bool] = lambda: False,
) -> list[Record]:
    """Run what is left of a recipe.

    Args:
        recipe: which.
        orders: how; a full run on the device it is meant for where left out.
        watchers: makes those who are told of a run.
        stop: asked before every run; where it says yes, nothing more is started.

    Returns:
        All records of these runs, those of earlier calls among them.

    Raises:
        ModulewiseError: the device or the data is not there, or a row does not fit them.
    """
    orders = orders or Orders()
    device = orders.device_for(recipe)
    device_of(device)
    book = Book(orders.out)
    place = data_place(recipe.data, folder=orders.data)
    for task in _tasks(recipe, orders, device):
        done = {(record.recipe, record.fingerprint): record for record in book.records()}
        if (recipe.name, task.fingerprint) in done:
            continue
        twin = next((record for (_, key), record in done.items() if key == task.fingerprint), None)
        if twin is not None:
            book.append(_shared(task, twin))
            continue
        if stop():
            break
        book.append(_made(task, place=place, watchers=watchers()))
    wanted = {task.fingerprint for task in _tasks(recipe, orders, device)}
    return [record for record in book.records() if record.recipe == recipe.name and record.fingerprint in wanted]


def _made(task: _Task, *, place: str, watchers: Sequence[Watcher]) -> Record:
    scorer = _Scorer(task.row)
    try:
        (result,) = compare.run(replace(task.experiment, data=place), watchers=[*watchers, scorer])
    except ModulewiseError as error:
        raise type(error)(f"{task.recipe.name}, {task.row.method}: {error}") from error
    return _record(task, result, scorer.scores)


def _record(task: _Task, result: Result, scores: Scores | None) -> Record:
    recipe, row, experiment = task.recipe, task.row, task.experiment
    share = result.test_accuracy if row.evaluation is Evaluation.CLASSIFIER else scores.linear if scores else None
    return Record(
        **recipe.facts(),
        **_said(row, experiment),
        seed=experiment.seeds[0],
        quick=task.quick,
        epochs=experiment.epochs,
        device=experiment.device,
        threads=int(result.versions["threads"]),
        test_accuracy=result.test_accuracy,
        probe_accuracy=scores.linear if scores else None,
        neighbours_accuracy=scores.neighbours if scores else None,
        figure=None if share is None else recipe.measure.of(share),
        error=result.error,
        parts=result.parts,
        seconds=result.train_seconds,
        peak_memory_bytes=result.peak_memory_bytes,
        step_seconds=result.step_seconds,
        versions=result.versions,
        git=result.git,
        setting=task.setting,
        fingerprint=task.fingerprint,
        flops=result.flops,
        batch_size=result.batch_size,
        params=result.params,
        head_params=result.head_params,
        angles=result.angles,
    )


def _said(row: Row, experiment: Experiment) -> dict[str, Any]:
    return {
        "method": row.method,
        "role": "end-to-end" if row.end_to_end else "method",
        "published": row.published,
        "paper_epochs": row.paper_epochs,
        "short": row.paper_epochs is not None and experiment.epochs < row.paper_epochs,
    }


def _shared(task: _Task, twin: Record) -> Record:
    """The record of the same run in another recipe, told as this one's."""
    recipe, row = task.recipe, task.row
    share = twin.test_accuracy if row.evaluation is Evaluation.CLASSIFIER else twin.probe_accuracy
    figure = None if share is None else recipe.measure.of(share)
    said = recipe.facts() | _said(row, task.experiment)
    return replace(twin, **said, figure=figure, shared=twin.shared or twin.recipe)


def _missing(recipe: Recipe, orders: Orders) -> str | None:
    """Why a recipe cannot be run here; None if it can."""
    if orders.device_for(recipe).startswith("cuda") and not torch.cuda.is_available():
        return "no GPU"
    try:
        data_place(recipe.data, folder=orders.data)
    except DataError:
        return f"no data set {recipe.data}"
    return None


def run_all(
    recipes: Iterable[Recipe],
    orders: Orders,
    *,
    hours: float | None = None,
    watchers: Callable[[], Sequence[Watcher]] = tuple,
    told: Callable[[Recipe], None] = lambda recipe: None,
    clock: Callable[[], float] = time.monotonic,
) -> list[tuple[Recipe, str]]:
    """Run what is left of many recipes, those of the CPU first, the quickest of them first.

    Args:
        recipes: which.
        orders: how; a recipe whose device or data is not there is left out.
        hours: nothing is started after so many; None for no end. The same call goes on from there.
        watchers: makes those who are told of a run.
        told: called with every recipe that is begun.
        clock: seconds.

    Returns:
        The recipes left out, each with the reason.

    Raises:
        ModulewiseError: hours is not above 0, or a row does not fit its data.
    """
    if hours is not None and not hours > 0:
        raise ModulewiseError(f"hours={hours}, expected a number above 0")
    end = None if hours is None else clock() + 3600 * hours
    left_out = []
    for recipe in sorted(recipes, key=lambda one: (one.device is not Machine.CPU, one.minutes, one.name)):
        missing = _missing(recipe, orders)
        if missing is not None:
            left_out.append((recipe, missing))
            continue
        told(recipe)
        run(recipe, orders, watchers=watchers, stop=lambda: end is not None and clock() >= end)
        if end is not None and clock() >= end:
            break
    return left_out
