"""What a recipe is: a published setting in words, a row for every method in it, and what the paper reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from .. import registry
from ..compare import Configuration, Experiment, RateSchedule, configurations
from ..method import Reach

__all__ = ["Evaluation", "Machine", "Measure", "Recipe", "Row", "with_epochs"]


class Measure(StrEnum):
    """Unit of a recipe's figures, in %."""

    ACCURACY = "accuracy"
    ERROR = "error"

    def of(self, share: float) -> float:
        """The figure of a share of correct answers.

        >>> Measure.ERROR.of(0.9938) == 100 * (1 - 0.9938)
        True
        """
        return 100 * share if self is Measure.ACCURACY else 100 * (1 - share)


class Machine(StrEnum):
    """What a full run is meant for."""

    CPU = "cpu"
    CUDA = "cuda"


class Evaluation(StrEnum):
    """Whose accuracy is the figure: the network's own classifier, or a linear probe on its last hidden part."""

    CLASSIFIER = "classifier"
    PROBE = "probe"


def with_epochs(experiment: Experiment, epochs: int) -> Experiment:
    """The experiment with another number of epochs, milestones at the same shares of it.

    A milestone that would fall on the start, the end or another one is dropped; without any the rate is constant.

    >>> long = Experiment(methods=("dgl",), epochs=100, schedule_lr=RateSchedule.STEPS, milestones=(50, 75, 89, 94))
    >>> with_epochs(long, 20).milestones, with_epochs(long, 1).schedule_lr.value
    ((10, 15, 18, 19), 'constant')
    """
    scaled = {round(milestone * epochs / experiment.epochs) for milestone in experiment.milestones}
    milestones = tuple(sorted(milestone for milestone in scaled if 1 <= milestone < epochs))
    schedule = experiment.schedule_lr
    if schedule is RateSchedule.STEPS and not milestones:
        schedule = RateSchedule.CONSTANT
    return replace(experiment, epochs=epochs, schedule_lr=schedule, milestones=milestones)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method of a recipe.

    Args:
        method: as typed, `METHOD[:key=value,...][@SCHEDULE]`.
        experiment: the full setting; its data is the set's name and its device the machine that it is meant for.
        quick: the same with fewer examples and epochs.
        neighbour: the method of the end-to-end row that it is read against; None for such a row itself.
        published: the paper's figure in the recipe's unit; None where none could be read.
        source: where that figure was read; None without one.
        paper_epochs: the paper's epochs; None where they could not be read.
        departure: why its epochs are not those of its neighbour; None where they are.
        evaluation: whose accuracy is the figure.
    """

    method: str
    experiment: Experiment
    quick: Experiment
    neighbour: str | None = None
    published: float | None = None
    source: str | None = None
    paper_epochs: int | None = None
    departure: str | None = None
    evaluation: Evaluation = Evaluation.CLASSIFIER

    @property
    def end_to_end(self) -> bool:
        """Whether it is a row that others are read against."""
        return self.neighbour is None

    @property
    def configuration(self) -> Configuration:
        """What `compare` makes of it."""
        (found,) = configurations(self.experiment)
        return found

    @property
    def name(self) -> str:
        """The method's name without options and schedule."""
        return registry.parse(self.method.partition("@")[0]).name

    @property
    def learns_end_to_end(self) -> bool:
        """Whether any part's update may depend on everything."""
        return self.configuration.locality.reach is Reach.GLOBAL

    def chosen(self, *, quick: bool, epochs: int | None = None) -> Experiment:
        """The setting that is run; the full one has the recipe's own epochs unless others are asked for."""
        experiment = self.quick if quick else self.experiment
        return experiment if epochs is None else with_epochs(experiment, epochs)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A published setting: network, augmentation, optimiser, schedule, cuts, and the figures that belong to it.

    Args:
        name: of the file, without its ending.
        title: what is reproduced, in one line.
        paper: the citation.
        link: of the paper.
        proves: names of the methods that full rows of it prove, at least one.
        data: `digits`, or the folder of the set below the data folder.
        measure: unit of the figures.
        device: what a full run is meant for.
        minutes: CPU minutes of the full run on one thread, all rows and seeds.
        seeds: of the full run.
        departures: where it differs from the paper, one short sentence each.
        rows: end-to-end rows and methods, in the order they are run.
    """

    name: str
    title: str
    paper: str
    link: str
    proves: tuple[str, ...]
    data: str
    measure: Measure
    device: Machine
    minutes: float
    seeds: tuple[int, ...]
    departures: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def by_method(self) -> Mapping[str, Row]:
        """Rows by their method as typed."""
        return {row.method: row for row in self.rows}

    @property
    def headline(self) -> Row:
        """The first row of the first method that the recipe proves."""
        return self.headline_of(self.proves[0])

    def headline_of(self, name: str) -> Row:
        """The first row of a method that the recipe proves."""
        return next(row for row in self.rows if row.name == name and not row.end_to_end)

    def neighbour(self, row: Row) -> Row | None:
        """The end-to-end row that a row is read against; None for such a row itself."""
        return None if row.neighbour is None else self.by_method[row.neighbour]

    def facts(self) -> dict[str, Any]:
        """What every record of it repeats."""
        return {"recipe": self.name, "data": self.data, "measure": self.measure.value}
