"""From words to what can be trained: data on the device, models cut into parts, trainers with one recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import balance, data, losses, models, registry
from ..balance import Balance
from ..data import Dataset, Loader, Normalize, Split
from ..engine.ranks.settings import Ranks
from ..errors import DataError, MethodError, ModulewiseError
from ..objective import Role
from ..partition import AnyPartition, Partition, TimePartition
from ..seeding import preserved_generators, seed_of, set_generators
from ..trainer import Trainer
from .augmenting import augmentation
from .experiment import Balancing, Configuration, Descent, Experiment, RateSchedule

__all__ = ["Material", "Workshop", "device_of"]

_PROBED = 512

_BALANCES: dict[Balancing, Balance] = {
    Balancing.MEMORY: balance.memory,
    Balancing.RECOMPUTED_MEMORY: balance.recomputed_memory,
    Balancing.TIME: balance.time,
    Balancing.PARAMETERS: balance.parameters,
}


def device_of(name: str) -> torch.device:
    """The device of a name.

    Raises:
        ModulewiseError: unknown, or not there.
    """
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or (kind == "cpu" and index):
        raise ModulewiseError(f"device {name!r} is unknown, expected cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ModulewiseError("device 'cuda' was asked for and this machine or this torch has none; use --device cpu")
    if index and int(index) >= torch.cuda.device_count():
        raise ModulewiseError(f"device {name!r} was asked for, expected cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return torch.device(name)


@dataclass(frozen=True, eq=False)
class Material:
    """The data of an experiment, on its device.

    Args:
        dataset: what was loaded.
        train: what runs train on.
        fitted: part of `train` that linear probes are fitted on; None without probes.
        held: training samples that no run trains on, for the probes' accuracy; None without probes.
        test: looked at once a run, at its end; a part of the test split where the experiment limits it.
        normalize: statistics of the training split.
    """

    dataset: Dataset
    train: Split
    fitted: Split | None
    held: Split | None
    test: Split
    normalize: Normalize | None


def _material(experiment: Experiment) -> Material:
    device = device_of(experiment.device)
    dataset = data.load(experiment.data)
    order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(0))
    if experiment.train_limit is not None:
        order = order[: experiment.train_limit]
    held = min(_PROBED, len(order) // 8) if experiment.probe else 0
    if len(order) - held < 2:
        raise DataError(f"{len(order)} training samples are too few; expected at least 2, or more with probes")
    taken, probed = order[held:].sort().values, order[:held]
    train = _pick(dataset.train, taken)
    return Material(
        dataset=dataset,
        train=train.to(device),
        fitted=_pick(train, torch.arange(len(train))[:: max(1, len(train) // _PROBED)][:_PROBED]) if held else None,
        held=_pick(dataset.train, probed) if held else None,
        test=_limited(dataset.test, experiment.test_limit).to(device),
        normalize=data.normalization(train) if experiment.normalize else None,
    )


def _limited(split: Split, limit: int | None) -> Split:
    if limit is None or limit >= len(split):
        return split
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    return _pick(split, order[:limit].sort().values)


def _pick(split: Split, indices: Tensor) -> Split:
    return Split(split.x[indices], split.y[indices])


class Workshop:
    """Makes models, partitions, trainers and loaders of one experiment; loads its data once.

    Args:
        experiment: what is compared.

    Raises:
        ModulewiseError: the device, the data or an augmentation does not exist.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.device = device_of(experiment.device)
        self.material = _material(experiment)
        self.augment = augmentation(experiment.augment, shape=self.material.dataset.shape)
        self._cuts: dict[int, tuple[str, ...]] = {}

    def check(self, rows: Iterable[Configuration]) -> None:
        """Make a trainer for every row, so that what does not fit is found before anything is trained.

        Raises:
            ModulewiseError: a model, cut, number of parts or method does not fit.
        """
        for row in rows:
            try:
                self.trainer(row, seed=0)
            except MethodError as error:
                raise MethodError(f"{row.method}: {error}") from error
            if row.views > 1 and self.augment is None:
                raise ModulewiseError(
                    f"{row.method} compares {row.views} views of every sample, which are all the same without "
                    "augmentation; add one such as --augment crop,flip"
                )
            if row.full_batch and self.augment is not None:
                raise ModulewiseError(
                    f"{row.method} keeps variables for every sample, which augmentation changes; leave --augment out"
                )

    def model(self, seed: int) -> nn.Module:
        """A model with the initial weights of a seed, on the device; the same for every method."""
        dataset = self.material.dataset
        with preserved_generators():
            set_generators(seed_of(seed, "model"))
            return models.build(self.experiment.model, shape=dataset.shape, classes=dataset.classes).to(self.device)

    def partition(self, model: nn.Module, parts: int) -> AnyPartition:
        """The model in parts; automatic cuts are chosen once, so that all methods have the same.

        A recurrent model is cut into windows of time.
        """
        example, _ = self.batch(self.experiment.batch_size)  # one view: cuts and shapes do not depend on how many
        if isinstance(model, models.Recurrent) and self.experiment.cuts is None:
            return TimePartition(model, windows=parts, example=example)
        cuts = self.experiment.cuts or self._cuts.get(parts)
        if cuts is not None:
            return Partition(model, cuts=list(cuts), example=example)
        partition = Partition(model, parts=parts, example=example, balance=_BALANCES[self.experiment.balance])
        self._cuts[parts] = partition.cuts
        return partition

    def trainer(
        self, row: Configuration, *, seed: int, rate: float | None = None, ranks: Ranks | None = None
    ) -> Trainer:
        """A fresh model with a fresh trainer, at the experiment's learning rate or at another, here or on ranks."""
        experiment = self.experiment
        partition = self.partition(self.model(seed), row.parts)
        material = self.material
        method = registry.build(row.method, classes=material.dataset.classes, normalize=material.normalize)
        return Trainer(
            partition,
            method,
            loss=losses.classification,
            optimizer=None if row.solves else _optimizer(experiment, rate, last=len(partition) - 1),
            scheduler=None if row.solves else _scheduler(experiment),
            precision=torch.float32 if row.solves else experiment.precision,
            recompute=experiment.recompute and not row.solves,
            seed=seed,
            ranks=ranks,
        )

    def loader(self, row: Configuration, *, seed: int) -> Loader:
        """The training batches of a run: shuffled and augmented, or all samples at once where the method wants them."""
        train, size = self.material.train, self.batch_size(row)
        return Loader(
            train,
            batch_size=size,
            shuffle=not row.full_batch,
            seed=seed,
            drop_last=True,
            augment=self.augment,
            normalize=self.material.normalize,
            device=self.device,
            views=row.views,
        )

    def batch_size(self, row: Configuration) -> int:
        """Samples a step."""
        samples = len(self.material.train)
        return samples if row.full_batch else min(self.experiment.batch_size, samples)

    def batch(self, size: int, *, views: int = 1) -> tuple[Tensor, Tensor]:
        """The first training samples, as they are fed: not augmented, or in several augmented views.

        Args:
            size: how many samples, or all where there are fewer.
            views: of every sample, stacked along the batch; x is (views size, ...) and y (size, ...).
        """
        taken = _pick(self.material.train, torch.arange(min(size, len(self.material.train))))
        if views == 1:
            x, y = next(iter(self.plain(taken)))
            return x, y
        loader = Loader(
            taken,
            batch_size=len(taken),
            shuffle=False,
            augment=self.augment,
            normalize=self.material.normalize,
            device=self.device,
            views=views,
        )
        x, y = next(iter(loader))
        return x, y

    def plain(self, split: Split) -> Loader:
        """All samples of a split in order."""
        size = max(512, self.experiment.batch_size) if self.device.type == "cpu" else 2048
        return Loader(split, batch_size=size, shuffle=False, normalize=self.material.normalize, device=self.device)


_OPTIMIZERS: dict[Descent, Callable[..., Optimizer]] = {
    Descent.ADAM: torch.optim.Adam,
    Descent.ADAMW: torch.optim.AdamW,
    Descent.RMSPROP: torch.optim.RMSprop,
}


def _optimizer(experiment: Experiment, rate: float | None, *, last: int) -> Callable[..., Optimizer]:
    def make(parameters: Any, *, part: int, role: Role) -> Optimizer:
        own = experiment.feedback_lr if role is Role.FEEDBACK else experiment.last_lr if part == last else None
        usual = experiment.rate if own is None else own
        lr, decay = usual if rate is None else rate, experiment.weight_decay
        # One pass over the parameters instead of one an operator: half a step of a perceptron. Not with a gradient
        # scaler, which would hand its scale to the optimiser.
        fused = experiment.precision is not torch.float16
        if experiment.optimizer is Descent.SGD:
            return torch.optim.SGD(parameters, lr=lr, momentum=experiment.momentum, weight_decay=decay, fused=fused)
        if experiment.optimizer in (Descent.ADAM, Descent.ADAMW):
            kind = _OPTIMIZERS[experiment.optimizer]
            return kind(parameters, lr=lr, weight_decay=decay, fused=fused)
        return _OPTIMIZERS[experiment.optimizer](parameters, lr=lr, weight_decay=decay)

    return make


def _scheduler(experiment: Experiment) -> Callable[[Optimizer], Any] | None:
    if experiment.schedule_lr is RateSchedule.CONSTANT:
        return None
    if experiment.schedule_lr is RateSchedule.STEPS:
        return lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(
            optimizer, milestones=list(experiment.milestones), gamma=experiment.decay
        )
    return lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=experiment.epochs)
