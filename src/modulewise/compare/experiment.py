"""What is compared: an experiment in words, and the runs that it comes to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from .. import registry
from ..errors import MethodError, ModulewiseError, PartitionError
from ..method import Locality, SolverMethod
from ..registry import MethodName
from ..schedules import Schedule
from .choices import Balancing, Descent, RateSchedule

__all__ = [
    "Balancing",
    "Configuration",
    "Descent",
    "Experiment",
    "RateSchedule",
    "Run",
    "configurations",
    "fingerprint",
    "runs",
]


_RATES = {Descent.SGD: 0.05, Descent.ADAM: 0.001, Descent.ADAMW: 0.001, Descent.RMSPROP: 0.001}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Methods side by side on one model, data set and recipe; a command line in one value.

    Args:
        methods: as typed, `METHOD`, `METHOD:key=value`, each with `@SCHEDULE` (simultaneous where left out);
            `deeply-supervised` stands for one row for every other method with heads.
        data: as for `data.load`.
        model: as for `models.build`.
        parts: numbers of parts, each >= 1; cuts are then chosen automatically.
        cuts: module names to cut at, instead of `parts`.
        seeds: of initial weights, order of samples, and draws; one run each.
        epochs: passes per part, >= 1 (sweeps of a method with its own update).
        batch_size: samples a step, >= 1; a smaller last batch is left out of training.
        optimizer: SGD, Adam, AdamW (decoupled weight decay) or RMSprop, for parts and heads.
        lr: learning rate, > 0; None for 0.05 (SGD) or 0.001 (the others).
        last_lr: that of the last part, > 0; None for that of all.
        feedback_lr: that of inverses and predictors (`Role.FEEDBACK`) of every part, > 0; None for that of all.
        momentum: of SGD, in [0, 1).
        weight_decay: >= 0.
        schedule_lr: cosine to zero over the epochs, constant, or in steps.
        milestones: for steps, after which epochs of a part the learning rate is multiplied by `decay`, increasing, from
            1 to epochs - 1.
        decay: the factor of a step, in (0, 1).
        augment: `crop`, `flip`, `jitter`, `cutout`, each also as `NAME:NUMBER` (padding, probability, strength, size).
        normalize: subtract mean and divide by standard deviation of the training data, per channel.
        precision: of the forward, torch.float32, torch.bfloat16 or torch.float16.
        device: 'cpu', 'cuda' or 'cuda:N'.
        train_limit: use so many training samples, drawn at random; None for all.
        test_limit: score so many test samples, drawn at random; None for all, as every reported figure should.
        balance: what automatic cuts make even: a part's peak memory, time or parameters.
        recompute: keep less inside a part and compute it again in its backward.
        probe: hold some training samples out, and probe every part on them linearly after every epoch.
        threads: of torch on the CPU, >= 1; None for what they are.

    Raises:
        ModulewiseError: a value is out of range.

    >>> Experiment(methods=("backprop", "dgl@sequential"), seeds=(0, 1)).rate
    0.05
    """

    methods: tuple[str, ...]
    data: str = "digits"
    model: str = "cnn"
    parts: tuple[int, ...] = (2,)
    cuts: tuple[str, ...] | None = None
    seeds: tuple[int, ...] = (0,)
    epochs: int = 5
    batch_size: int = 128
    optimizer: Descent = Descent.SGD
    lr: float | None = None
    last_lr: float | None = None
    feedback_lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule_lr: RateSchedule = RateSchedule.COSINE
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    augment: tuple[str, ...] = ()
    normalize: bool = True
    precision: torch.dtype = torch.float32
    device: str = "cpu"
    train_limit: int | None = None
    test_limit: int | None = None
    balance: Balancing = Balancing.MEMORY
    recompute: bool = False
    probe: bool = True
    threads: int | None = None

    def __post_init__(self) -> None:
        if not self.methods or not self.seeds or (not self.parts and self.cuts is None):
            raise ModulewiseError("an experiment needs at least one method, one seed and one number of parts")
        for part in self.parts:
            if part < 1:
                raise PartitionError(f"parts={part}, expected at least 1")
        for name in ("epochs", "batch_size", "train_limit", "test_limit", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ModulewiseError(f"{name}={value}, expected at least 1")
        rates = all(rate is None or rate > 0 for rate in (self.rate, self.last_lr, self.feedback_lr))
        if not rates or not 0 <= self.momentum < 1 or not self.weight_decay >= 0:
            raise ModulewiseError(
                f"lr={self.rate}, last_lr={self.last_lr}, feedback_lr={self.feedback_lr}, momentum={self.momentum}, "
                f"weight_decay={self.weight_decay}; expected rates > 0, momentum in [0, 1), weight_decay >= 0"
            )
        self._check_steps()

    def _check_steps(self) -> None:
        steps = self.schedule_lr is RateSchedule.STEPS
        if steps != bool(self.milestones):
            raise ModulewiseError(
                f"schedule_lr={self.schedule_lr.value} with milestones={list(self.milestones)}; milestones go with "
                "steps, and steps with milestones"
            )
        increasing = list(self.milestones) == sorted(set(self.milestones))
        if steps and not (increasing and self.milestones[0] >= 1 and self.milestones[-1] < self.epochs):
            raise ModulewiseError(
                f"milestones={list(self.milestones)} with epochs={self.epochs}, expected increasing numbers from 1 to "
                "epochs - 1"
            )
        if not 0 < self.decay < 1:
            raise ModulewiseError(f"decay={self.decay}, expected a factor between 0 and 1")

    @property
    def rate(self) -> float:
        """The learning rate, with the optimiser's default where none is given."""
        return _RATES[self.optimizer] if self.lr is None else self.lr

    def to_json(self) -> dict[str, Any]:
        """The experiment as plain data."""
        return json.loads(json.dumps(asdict(self) | {"precision": str(self.precision).removeprefix("torch.")}))

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Experiment:
        """The experiment that `to_json` wrote down."""
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items() if k in known}
        values["precision"] = getattr(torch, values["precision"])
        values["optimizer"] = Descent(values["optimizer"])
        values["balance"] = Balancing(values["balance"])
        values["schedule_lr"] = RateSchedule(values["schedule_lr"])
        return cls(**values)


@dataclass(frozen=True)
class Configuration:
    """One method under one schedule on one number of parts.

    >>> Configuration(registry.parse("dgl"), "sequential", 3).label
    'dgl@sequential'
    """

    method: MethodName
    schedule: str
    parts: int

    @property
    def label(self) -> str:
        """METHOD@SCHEDULE."""
        return f"{self.method}@{self.schedule}"

    @property
    def order(self) -> Schedule:
        """The schedule itself."""
        return registry.schedule(self.schedule)

    @property
    def locality(self) -> Locality:
        """What the method declares; a partition with skips may add to it."""
        return registry.build(self.method, classes=10).locality

    @property
    def solves(self) -> bool:
        """Whether the method has its own update, and no optimiser."""
        return issubclass(self.method.type, SolverMethod)

    @property
    def full_batch(self) -> bool:
        """Whether a step takes the whole training set at once."""
        return self.method.type.full_batch

    @property
    def views(self) -> int:
        """How many views of every sample the method needs, or the one that it wraps."""
        return max(self.method.type.views, self.method.inner.type.views if self.method.inner is not None else 1)

    def __str__(self) -> str:
        return f"{self.label}, {self.parts} parts"


@dataclass(frozen=True)
class Run:
    """A configuration with a seed."""

    configuration: Configuration
    seed: int

    def __str__(self) -> str:
        return f"{self.configuration}, seed {self.seed}"


def configurations(experiment: Experiment) -> list[Configuration]:
    """The rows of the experiment: every number of parts x every method, controls in their place.

    Raises:
        MethodError: a method or schedule is unknown, they do not go together, or `deeply-supervised` finds no other
            method with heads.
    """
    parts = [len(experiment.cuts) + 1] if experiment.cuts is not None else list(experiment.parts)
    named = list(_expanded([_scheduled(text) for text in experiment.methods]))
    for name, word in named:
        _check(name, word)
    return [Configuration(name, word, k) for k in dict.fromkeys(parts) for name, word in dict.fromkeys(named)]


def _scheduled(text: str) -> tuple[MethodName, str]:
    method, at, word = text.rpartition("@")
    if not at:
        return registry.parse(text), "simultaneous"
    registry.schedule(word)
    return registry.parse(method), word


def _expanded(named: Iterable[tuple[MethodName, str]]) -> Iterator[tuple[MethodName, str]]:
    named = list(named)
    for name, word in named:
        if not name.wraps or name.inner is not None:
            yield name, word
            continue
        others = [other for other, _ in named if not other.wraps]
        inner = [other for other in dict.fromkeys(others) if registry.has_heads(registry.build(other, classes=10))]
        if not inner:
            raise MethodError(
                f"{name} is the control of methods with heads, and none is listed; add one such as dgl, or name it: "
                f"{name}(dgl)"
            )
        yield from ((replace(name, inner=other), word) for other in inner)


def _check(name: MethodName, word: str) -> None:
    locality = registry.build(name, classes=10).locality
    if locality.sends_feedback and not registry.schedule(word).allows_feedback:
        raise MethodError(
            f"{name}@{word}: {name.name} needs later parts in the same step (locality {locality}), which the {word} "
            f"schedule does not run; use {name}@simultaneous"
        )


def runs(experiment: Experiment) -> list[Run]:
    """All runs, seed by seed, so that an interrupted experiment has every method for its first seeds."""
    rows = configurations(experiment)
    return [Run(row, seed) for seed in dict.fromkeys(experiment.seeds) for row in rows]


def fingerprint(experiment: Experiment, run: Run) -> str:
    """What identifies a run: everything that its numbers follow from, as 16 hexadecimal digits."""
    facts = experiment.to_json()
    for key in ("methods", "parts", "seeds"):
        del facts[key]
    row = run.configuration
    facts |= {"method": str(row.method), "schedule": row.schedule, "parts": row.parts, "seed": run.seed}
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()
