"""Hidden parts learn from pairs: batches that hold the pairs of a list, objectives that see nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from ... import losses
from ...data import Augmentation, Loader, Normalize, Split
from ...engine.fitting import Epoch
from ...engine.updating import OptimizerFactory, SchedulerFactory
from ...errors import DataError, MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...methods import KernelProxy
from ...methods.objectives import Around
from ...objective import Context, Objective, Role, Signal, Site
from ...partition import Partition
from ...seeding import seed_of
from ...trainer import Trainer
from .pairs import Pairs

__all__ = ["HiddenOnly", "PairLoader", "pair_batches", "train_hidden"]


def pair_batches(pairs: Pairs, *, size: int, seed: int, epoch: int) -> Tensor:
    """Which pairs the batches of an epoch hold: both kinds, as many of each as their share of the list, at least one.

    Each kind comes in an order drawn for the epoch, the rarer again and again; by the end every pair has been there.

    Args:
        pairs: at least one of each kind.
        size: pairs a batch, >= 2.
        seed: of the order.
        epoch: index of the pass.

    Returns:
        (batches, size) int64, rows of the list.
    """
    kinds = {"same": pairs.same.nonzero()[:, 0], "different": (~pairs.same).nonzero()[:, 0]}
    alike = min(size - 1, max(1, round(size * len(kinds["same"]) / len(pairs))))
    counts = {"same": alike, "different": size - alike}
    batches = max(-(-len(rows) // counts[kind]) for kind, rows in kinds.items())
    taken = []
    for kind, rows in kinds.items():
        generator = Generator().manual_seed(seed_of(seed, kind, epoch))
        order = rows[torch.randperm(len(rows), generator=generator)]
        taken.append(order[torch.arange(batches * counts[kind]) % len(order)].view(batches, counts[kind]))
    return torch.cat(taken, dim=1)


class PairLoader:
    """Batches (x, indices) for training on pairs: the two samples of every pair of a batch stand in it.

    One `iter` is an epoch, in which every pair occurs. The order is a pure function of (seed, epoch), the draws of the
    augmentation of (seed, epoch, batch); torch's generators are neither read nor moved.

    Args:
        x: samples (N, ...), as in `data.Split`.
        pairs: what is known of them; at least one pair of each kind.
        batch_size: samples a batch, even, >= 4: half as many pairs.
        seed: of order and augmentation.
        augment: as for `data.Loader`.
        normalize: as for `data.Loader`.
        device: where batches are given out.

    Raises:
        DataError: the pairs are of another number of samples or of one kind alone, or batch_size is odd or below 4.

    >>> pairs = Pairs(torch.tensor([0, 2]), torch.tensor([1, 3]), torch.tensor([True, False]), samples=5)
    >>> [sorted(i.tolist()) for _, i in PairLoader(torch.zeros(5, 2), pairs, batch_size=4)]
    [[0, 1, 2, 3]]
    """

    def __init__(
        self,
        x: Tensor,
        pairs: Pairs,
        *,
        batch_size: int,
        seed: int = 0,
        augment: Augmentation | None = None,
        normalize: Normalize | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if len(x) != pairs.samples:
            raise DataError(f"pairs of {pairs.samples} samples were given with {len(x)} samples, expected as many")
        if batch_size < 4 or batch_size % 2:
            raise DataError(f"batch_size={batch_size}, expected an even number of at least 4, two samples a pair")
        if not 0 < int(pairs.same.sum()) < len(pairs):
            raise DataError(
                f"{len(pairs)} pairs, {int(pairs.same.sum())} of them of one class, were given; expected at least one "
                "pair of one class and one of two: with one kind alone all samples may look the same"
            )
        self.x, self.pairs, self.batch_size, self.seed = x, pairs, batch_size, seed
        self.augment, self.normalize, self.device = augment, normalize, device
        self.epoch = 0

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return len(self._rows(0))

    def _rows(self, epoch: int) -> Tensor:
        return pair_batches(self.pairs, size=self.batch_size // 2, seed=self.seed, epoch=epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        for batch, rows in enumerate(self._rows(epoch)):
            indices = torch.cat([self.pairs.first[rows], self.pairs.second[rows]])
            yield from Loader(
                Split(self.x[indices.to(self.x.device)], indices),
                batch_size=self.batch_size,
                shuffle=False,
                seed=seed_of(self.seed, "augment", epoch, batch),
                augment=self.augment,
                normalize=self.normalize,
                device=self.device,
            )


class _Compared(Around):
    """An objective on pairs that is told what is known of the batch's pairs instead of labels."""

    def __init__(self, inner: Objective, pairs: Pairs) -> None:
        super().__init__(inner)
        self.pairs = pairs

    def forward(self, context: Context) -> Signal:
        """The inner objective's signal; labels are sample indices."""
        known = self.pairs.relation(context.labels)
        return self.inner(replace(context, y=known, views=1))


class _Nothing(Objective):
    """The last part learns nothing."""

    reads_x = False

    def forward(self, context: Context) -> Signal:
        """No gradient."""
        return Signal(gradient=torch.zeros_like(context.h_out), report=torch.zeros((), device=context.h_out.device))


@dataclass(frozen=True, kw_only=True)
class HiddenOnly(PartwiseMethod):
    """A pairwise proxy for all parts but the last, which learns nothing.

    Args:
        proxy: the objective of hidden parts, default `KernelProxy()`.
        pairs: what is known, where labels in a step are sample indices; None where they are labels.

    >>> HiddenOnly().proxy.kernel.name
    'relu'
    """

    family: ClassVar[Family] = Family.PROXY
    locality: ClassVar[Locality] = Locality(Reach.STRICT)
    references: ClassVar[tuple[Reference, ...]] = KernelProxy.references

    proxy: KernelProxy = field(default_factory=KernelProxy)
    pairs: Pairs | None = None

    def objective(self, site: Site) -> Objective:
        """The proxy, or nothing."""
        if site.last:
            return _Nothing()
        inner = self.proxy.objective(site)
        return inner if self.pairs is None else _Compared(inner, self.pairs)


def train_hidden(
    partition: Partition,
    loader: Any,
    *,
    epochs: int,
    optimizer: OptimizerFactory,
    scheduler: SchedulerFactory | None = None,
    proxy: KernelProxy | None = None,
    pairs: Pairs | None = None,
    seed: int = 0,
    callbacks: Sequence[Callable[[Epoch], None]] = (),
) -> list[Epoch]:
    """Stage 1: train all parts but the last on pairs, one class or two; the last part's parameters stay as they are.

    Args:
        partition: two parts or more; its model is trained in place.
        loader: batches (x, y) with labels (N,), of which only equality is read; with `pairs` a `PairLoader`, whose y
            are sample indices.
        epochs: passes over the loader, >= 1.
        optimizer: optimizer(parameters), for every hidden part.
        scheduler: of learning rates, stepped once an epoch; None for none.
        proxy: the pairwise objective, default `KernelProxy()`.
        pairs: what is known of the samples, or None for labels.
        seed: of all random draws.
        callbacks: called after every epoch.

    Raises:
        MethodError: the partition has one part alone.
    """
    last = len(partition) - 1
    if last < 1:
        raise MethodError("one part was given, expected hidden parts and an output part; cut below the last layer")

    def hidden(parameters: Any, *, part: int, role: Role) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.0) if part == last else optimizer(parameters)

    trainer = Trainer(
        partition,
        HiddenOnly(proxy=proxy or KernelProxy(), pairs=pairs),
        loss=losses.classification,
        optimizer=hidden,
        scheduler=scheduler,
        seed=seed,
    )
    return trainer.fit(loader, epochs=epochs, callbacks=callbacks)
