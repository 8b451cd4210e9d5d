"""Batches in a reproducible order, augmented on the device, resumable in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Generator, Tensor

from ..errors import CheckpointError, DataError
from ..seeding import seed_of
from .augment import Augmentation, Normalize
from .sources import Split

__all__ = ["Loader"]


class Loader:
    """Batches (x, y) of a split; one `iter` is one epoch.

    The order is a pure function of (seed, epoch), and the draws of the augmentation of (seed, epoch, batch),
    from a CPU generator of the loader's own; torch's default generators are neither read nor moved. The
    position advances as batches are handed out, so that a loader restored between two batches goes on with
    the next one; an epoch left early goes on likewise at the next `iter`. After the last batch the position
    is the start of the next epoch.

    Integers of a uint8 split are scaled to [0, 1], other numbers taken as they are (int64, for tokens, is not
    made float); then every view is augmented, then normalized.

    Args:
        split: samples x (N, ...) and labels y (N, ...); on the device already, or anywhere else.
        batch_size: samples a batch, >= 1.
        shuffle: whether every epoch has an order of its own; without it samples come in the order of the
            split.
        seed: seed of the order and of the augmentation.
        drop_last: leave out the last batch where it is smaller than the others.
        augment: what is applied to float batches (N, C, H, W) in [0, 1]; None for nothing.
        normalize: a `Normalize`, a pair (mean, std) of values per channel, or None.
        device: where batches are given out.
        views: how many augmented views of every sample are stacked along the batch, first all samples' first
            views: x is (views N, ...), y stays (N, ...).

    Attributes:
        epoch: index of the epoch that the next batch belongs to.
        batch: index of the next batch in its epoch.
        last_indices: samples of the batch handed out last, (N,); None before the first.

    Raises:
        DataError: the split is empty, batch_size or views < 1, or no batch is left.

    >>> split = Split(torch.arange(5.0).view(5, 1), torch.arange(5))
    >>> [y.tolist() for _, y in Loader(split, batch_size=2, shuffle=False)]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        augment: Augmentation | None = None,
        normalize: Normalize | tuple[Sequence[float], Sequence[float]] | None = None,
        device: torch.device | str = "cpu",
        views: int = 1,
    ) -> None:
        if len(split) == 0:
            raise DataError("the split has no samples; expected at least one")
        if batch_size < 1 or views < 1:
            raise DataError(f"batch_size={batch_size} and views={views}; expected both >= 1")
        if drop_last and batch_size > len(split):
            raise DataError(f"drop_last leaves no batch of {batch_size} out of {len(split)} samples; lower batch_size")
        if isinstance(normalize, tuple):
            normalize = Normalize(mean=tuple(normalize[0]), std=tuple(normalize[1]))
        self.split, self.batch_size, self.shuffle, self.seed = split, batch_size, shuffle, seed
        self.drop_last, self.augment, self.normalize, self.views = drop_last, augment, normalize, views
        self.device = torch.device(device)
        self.epoch, self.batch = 0, 0
        self.last_indices: Tensor | None = None

    @property
    def augmented(self) -> bool:
        """Whether a sample looks different every time; if not, what is computed from it may be kept."""
        return self.augment is not None

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        whole, rest = divmod(len(self.split), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def indices(self, epoch: int) -> Tensor:
        """The order of the samples in an epoch, (N,) int64 on the CPU."""
        if not self.shuffle:
            return torch.arange(len(self.split))
        return torch.randperm(len(self.split), generator=_generator(seed_of(self.seed, "order", epoch)))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What is left of the present epoch, as (x, y)."""
        for _, x, y in self.with_indices():
            yield x, y

    def with_indices(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """What is left of the present epoch, as (indices, x, y); indices (N,) are on the CPU."""
        epoch = self.epoch
        order = self.indices(epoch)
        while self.epoch == epoch:
            batch = self.batch
            indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            x, y = self._read(indices)
            x = self._views(x, _generator(seed_of(self.seed, "augment", epoch, batch)))
            # Advanced before the batch is handed out: a state saved while it is in use counts it as done.
            self.epoch, self.batch = (epoch, batch + 1) if batch + 1 < len(self) else (epoch + 1, 0)
            self.last_indices = indices
            yield indices, x, y

    def indexed(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """One pass over all samples in the order of the split, as (indices, x, y).

        Nothing is augmented or left out, there is one view, and the position does not move.
        """
        for start in range(0, len(self.split), self.batch_size):
            indices = torch.arange(start, min(start + self.batch_size, len(self.split)))
            x, y = self._read(indices)
            yield indices, self._normalized(x), y

    def state_dict(self) -> dict[str, int]:
        """The position, and what it depends on."""
        return {"epoch": self.epoch, "batch": self.batch, **self._identity()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to a saved position; a running `iter` over the same epoch goes on there.

        Raises:
            CheckpointError: the state is of a loader with other samples, batches or seed, or is damaged.
        """
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise CheckpointError(
                    f"the saved loader had {key}={state.get(key)}, this one has {value}; make it as the saved one was"
                )
        epoch, batch = state.get("epoch", -1), state.get("batch", -1)
        if epoch < 0 or not 0 <= batch < len(self):
            raise CheckpointError(
                f"the saved loader stands at epoch {epoch}, batch {batch}; expected a batch in [0, {len(self)})"
            )
        self.epoch, self.batch = epoch, batch

    def _identity(self) -> dict[str, int]:
        return {
            "samples": len(self.split),
            "batch_size": self.batch_size,
            "shuffle": int(self.shuffle),
            "drop_last": int(self.drop_last),
            "seed": self.seed,
            "views": self.views,
        }

    def _read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x = self.split.x[indices.to(self.split.x.device)].to(self.device)
        y = self.split.y[indices.to(self.split.y.device)].to(self.device)
        if x.dtype == torch.uint8:
            return x.float() / 255, y
        return (x.float() if x.is_floating_point() else x), y

    def _views(self, x: Tensor, generator: Generator) -> Tensor:
        if self.augment is None:
            views = [x] * self.views
        else:
            views = [self.augment(x, generator=generator) for _ in range(self.views)]
        return self._normalized(torch.cat(views) if self.views > 1 else views[0])

    def _normalized(self, x: Tensor) -> Tensor:
        return x if self.normalize is None else self.normalize(x)


def _generator(seed: int) -> Generator:
    generator = Generator()
    generator.manual_seed(seed)
    return generator
