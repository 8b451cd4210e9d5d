"""A few-labels experiment in one value, and what it is made of: data, models, partitions, proxies."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from ... import data, losses, models, registry
from ...compare.assembling import device_of
from ...compare.augmenting import augmentation
from ...data import Dataset, Loader, Split
from ...errors import DataError, MethodError, ModulewiseError
from ...methods import KernelProxy
from ...partition import Partition
from ...seeding import preserved_generators, seed_of, set_generators
from .drawing import balanced
from .heads import HeadCriterion
from .pairs import Pairs, read_pairs

__all__ = ["FewLabels", "Ingredients", "OutputLoss", "output_layer", "quicker"]

_LIMITS = ("held_out", "train_limit", "test_limit")


class OutputLoss(StrEnum):
    """What an output layer trained on frozen features minimises."""

    CROSS_ENTROPY = "cross-entropy"
    HINGE = "hinge"

    @property
    def criterion(self) -> HeadCriterion:
        """The loss of this name."""
        return losses.classification if self is OutputLoss.CROSS_ENTROPY else losses.multi_margin


@dataclass(frozen=True, kw_only=True)
class FewLabels:
    """Hidden parts from pairs, output layers from n labels a class, beside end-to-end backpropagation (E2EBP).

    Networks are trained by SGD with momentum 0.9 and a cosine from `lr` to zero, all with the same settings.

    Args:
        data: as for `data.load`.
        model: as for `models.build`.
        cuts: module names; the last part holds one linear layer and no other parameter. Empty: one cut, right below it.
        proxy: `kernel-proxy`, with settings as in `kernel-proxy:maximise=nmse`.
        pairs: a parquet file as for `read_pairs`; None for the pairs that all training labels give.
        per_class: numbers n of examples a class, each >= 1; all training labels come last in any case.
        draws: of n examples, >= 1.
        epochs: passes over the training samples (of a pair list: over the pairs), >= 1, for both networks.
        batch_size: samples a step, >= 4, even with a pair list.
        lr: > 0.
        pairs_lr: of the training on pairs, > 0; None for `lr`.
        weight_decay: >= 0.
        augment: as for `compare.Experiment`, in all training of networks.
        normalize: by mean and standard deviation of the training samples, without labels.
        scratch_draws: of E2EBP on n examples, the first of these draws, >= 1, since each is a training; None for all.
        scratch_steps: updates of E2EBP on n examples, >= 1 (rounded up to whole passes).
        scratch_batch: samples a step there, >= 1, or all where there are fewer.
        scratch_lr: learning rate there, > 0; None for `lr`.
        output: loss of output layers.
        penalty: of output layers trained on hidden features, as for `train_head`.
        held_out: score on so many last training samples, which nothing trains on, instead of on the test split: for
            choosing settings.
        train_limit: use so many training samples, drawn at random.
        test_limit: score so many test samples, drawn at random.
        seed: of initial weights, orders and draws.
        device: 'cpu', 'cuda' or 'cuda:N'.
        quick: a run to see it work, marked as such.

    Raises:
        ModulewiseError: a value is out of range.

    >>> FewLabels(per_class=(1, 10)).draws
    20
    """

    data: str = "digits"
    model: str = "cnn"
    cuts: tuple[str, ...] = ()
    proxy: str = "kernel-proxy"
    pairs: str | None = None
    per_class: tuple[int, ...] = (1, 2, 5, 10, 50, 100)
    draws: int = 20
    epochs: int = 20
    batch_size: int = 128
    lr: float = 0.05
    pairs_lr: float | None = None
    weight_decay: float = 5e-4
    augment: tuple[str, ...] = ()
    normalize: bool = True
    scratch_draws: int | None = None
    scratch_steps: int = 1000
    scratch_batch: int = 32
    scratch_lr: float | None = None
    output: OutputLoss = OutputLoss.CROSS_ENTROPY
    penalty: float = 1e-3
    held_out: int | None = None
    train_limit: int | None = None
    test_limit: int | None = None
    seed: int = 0
    device: str = "cpu"
    quick: bool = False

    def __post_init__(self) -> None:
        own = ("scratch_draws", "scratch_steps", "scratch_batch")
        least = {**dict.fromkeys(("draws", "epochs", *own, *_LIMITS), 1), "batch_size": 4}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ModulewiseError(f"{name}={value}, expected at least {bound}")
        rates = [rate for rate in (self.lr, self.pairs_lr, self.scratch_lr) if rate is not None]
        if not min(rates) > 0 or not self.weight_decay >= 0 or not self.penalty >= 0:
            raise ModulewiseError(
                f"learning rates {rates}, weight_decay={self.weight_decay} and penalty={self.penalty}, expected rates "
                "> 0 and decays >= 0"
            )
        if self.per_class != tuple(sorted({n for n in self.per_class if n >= 1})):
            raise ModulewiseError(
                f"per_class={list(self.per_class)}, expected increasing numbers of at least 1, such as 1, 2, 5"
            )
        if self.pairs is not None and (self.held_out is not None or self.train_limit is not None):
            raise ModulewiseError(
                "pairs name samples of the whole training split, which held_out and train_limit change; leave them out"
            )

    def draws_of(self, scratch: bool) -> int:
        """How many draws an arm sees, from scratch or not."""
        return min(self.draws, self.scratch_draws or self.draws) if scratch else self.draws

    def to_json(self) -> dict[str, Any]:
        """The settings as plain data."""
        facts: dict[str, Any] = asdict(self)
        return facts | {name: list(facts[name]) for name in ("cuts", "per_class", "augment")}


def quicker(settings: FewLabels) -> FewLabels:
    """The same in a few minutes on one core: fewer samples, passes, draws and numbers of labels; marked as quick.

    >>> quicker(FewLabels()).draws
    3
    """
    return replace(
        settings,
        epochs=min(settings.epochs, 2),
        draws=min(settings.draws, 3),
        per_class=settings.per_class[:1] + tuple(n for n in settings.per_class[1:] if n == 10),
        scratch_steps=min(settings.scratch_steps, 60),
        train_limit=None if settings.pairs is not None else min(settings.train_limit or 4096, 4096),
        test_limit=min(settings.test_limit or 2000, 2000),
        quick=True,
    )


def _limited(split: Split, limit: int | None) -> Split:
    if limit is None or limit >= len(split):
        return split
    kept = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:limit].sort().values
    return Split(split.x[kept], split.y[kept])


def _splits(dataset: Dataset, settings: FewLabels) -> tuple[Split, Split]:
    """What is trained on and what is scored."""
    train, test, held = dataset.train, dataset.test, settings.held_out
    if held is not None:
        if held >= len(train):
            raise DataError(f"held_out={held} of {len(train)} training samples; expected fewer")
        test = Split(train.x[-held:], train.y[-held:])
        train = Split(train.x[:-held], train.y[:-held])
    return _limited(train, settings.train_limit), _limited(test, settings.test_limit)


class Ingredients:
    """Data, models and loaders of one experiment; whatever does not fit is refused here, before anything is trained.

    Args:
        settings: the experiment.

    Attributes:
        train: samples to train on.
        test: samples to score.
        classes: number of classes.
        pairs: the user's list, or None.
        proxy: the objective of hidden parts.

    Raises:
        ModulewiseError: data, model, cut, proxy, pairs or device do not fit, or n is larger than a class.
    """

    def __init__(self, settings: FewLabels) -> None:
        self.settings = settings
        self.device = device_of(settings.device)
        self.proxy = _proxy(settings.proxy)
        dataset = data.load(settings.data)
        self.shape, self.classes = dataset.shape, dataset.classes
        self.train, self.test = _splits(dataset, settings)
        if self.train.y.dim() != 1:
            raise DataError(f"{settings.data} has labels {tuple(self.train.y.shape)}, expected one class a sample")
        self.pairs: Pairs | None = None
        if settings.pairs is not None:
            self.pairs = read_pairs(settings.pairs, samples=len(self.train))
        for n in settings.per_class:
            balanced(self.train.y, per_class=n, classes=self.classes, seed=0)
        self.augment = augmentation(settings.augment, shape=self.shape)
        self.normalize = data.normalization(self.train) if settings.normalize else None
        output_layer(self.partition(self.model(settings.seed)))

    def model(self, seed: int) -> nn.Module:
        """A model with the initial weights of a seed, on the device."""
        with preserved_generators():
            set_generators(seed_of(seed, "model"))
            return models.build(self.settings.model, shape=self.shape, classes=self.classes).to(self.device)

    def partition(self, model: nn.Module) -> Partition:
        """The model cut as asked, or right below its last layer."""
        x = torch.zeros(min(8, len(self.train)), *self.shape, device=self.device)
        cuts = self.settings.cuts
        if not cuts:
            points = Partition(model, parts=1, example=x).points()
            if not points:
                raise MethodError(f"{self.settings.model} has no place to cut below its last layer; name one with cuts")
            cuts = points[-1:]
        return Partition(model, cuts=list(cuts), example=x)

    def loader(self, split: Split, *, seed: int, batch_size: int) -> Loader:
        """Shuffled, augmented batches, of all samples where there are fewer."""
        return Loader(
            split,
            batch_size=min(batch_size, len(split)),
            seed=seed,
            drop_last=True,
            augment=self.augment,
            normalize=self.normalize,
            device=self.device,
        )

    def plain(self, split: Split) -> Loader:
        """All samples of a split in order."""
        size = 512 if self.device.type == "cpu" else 2048
        return Loader(split, batch_size=size, shuffle=False, normalize=self.normalize, device=self.device)

    def draw(self, per_class: int | None, index: int) -> Tensor:
        """The training samples whose labels an arm may read in a draw; None for all."""
        if per_class is None:
            return torch.arange(len(self.train))
        seed = seed_of(self.settings.seed, "draw", per_class, index)
        return balanced(self.train.y, per_class=per_class, classes=self.classes, seed=seed)


def _proxy(text: str) -> KernelProxy:
    found = registry.build(registry.parse(text), classes=2)
    if not isinstance(found, KernelProxy):
        raise MethodError(
            f"{text} reads more than pairs of one class or not, expected kernel-proxy, with settings or not"
        )
    return found


def output_layer(partition: Partition) -> nn.Linear:
    """The linear layer that is all the last part learns.

    Raises:
        MethodError: there are other parameters in the last part.
    """
    names = partition.parts[-1].parameter_names
    owners = {name.rpartition(".")[0] for name in names}
    module = partition.module(owners.pop()) if len(owners) == 1 else None
    if not isinstance(module, nn.Linear):
        raise MethodError(
            f"the last part learns {', '.join(names) or 'nothing'}, expected the parameters of one linear layer; cut "
            "right below the last layer"
        )
    return module
