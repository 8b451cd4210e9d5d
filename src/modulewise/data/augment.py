"""Augmentations of whole batches, each sample with its own draws, without a loop over samples.

Draws are made on the device of the generator and moved to the batch, so that a CPU generator gives the same
augmentations on every device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..errors import DataError
from .sources import Split

__all__ = ["Augmentation", "Compose", "Crop", "Cutout", "Flip", "Jitter", "Normalize", "normalization"]

_LUMA = (0.299, 0.587, 0.114)
_ROWS = 1024


class Augmentation(Protocol):
    """What a loader applies to a batch."""

    def __call__(self, x: Tensor, *, generator: Generator) -> Tensor:
        """Return the augmented batch (N, C, H, W); x itself is left as it is."""
        ...


def _draw(count: int, samples: int, x: Tensor, generator: Generator) -> Tensor:
    """`count` uniform draws in [0, 1) for every sample, (count, N, 1, 1, 1)."""
    draws = torch.rand(count, samples, generator=generator, device=generator.device)
    return draws.to(x.device, x.dtype).view(count, samples, 1, 1, 1)


def _draw_integers(high: int, x: Tensor, generator: Generator) -> Tensor:
    """One draw from {0, ..., high - 1} for every sample, (N, 1)."""
    draws = torch.randint(high, (len(x), 1), generator=generator, device=generator.device)
    return draws.to(x.device)


def _require_images(x: Tensor, what: str) -> None:
    if x.ndim != 4 or not x.is_floating_point():
        raise DataError(f"{what} takes float images (N, C, H, W); got {x.dtype} of shape {tuple(x.shape)}")


@dataclass(frozen=True)
class Crop:
    """Pad with zeros on all sides, then cut out a window of the old size at a random place.

    Draws the row offsets of all samples, then the column offsets, uniform on {0, ..., 2 padding}.

    Args:
        padding: pixels added on every side, >= 0.

    >>> x = torch.ones(2, 1, 8, 8)
    >>> Crop(padding=2)(x, generator=Generator().manual_seed(0)).shape
    torch.Size([2, 1, 8, 8])
    """

    padding: int

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise DataError(f"Crop got padding={self.padding}; expected >= 0")

    def __call__(self, x: Tensor, *, generator: Generator) -> Tensor:
        """Crop x (N, C, H, W)."""
        _require_images(x, "Crop")
        n, c, h, w = x.shape
        rows = _draw_integers(2 * self.padding + 1, x, generator) + torch.arange(h, device=x.device)
        columns = _draw_integers(2 * self.padding + 1, x, generator) + torch.arange(w, device=x.device)
        padded = F.pad(x, (self.padding,) * 4)
        samples = torch.arange(n, device=x.device).view(n, 1, 1, 1)
        channels = torch.arange(c, device=x.device).view(1, c, 1, 1)
        return padded[samples, channels, rows.view(n, 1, h, 1), columns.view(n, 1, 1, w)]


@dataclass(frozen=True)
class Flip:
    """Mirror left and right with probability p.

    Args:
        p: probability, in [0, 1].

    >>> Flip(p=1.0)(torch.tensor([[[[1.0, 2.0]]]]), generator=Generator())
    tensor([[[[2., 1.]]]])
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise DataError(f"Flip got p={self.p}; expected a probability in [0, 1]")

    def __call__(self, x: Tensor, *, generator: Generator) -> Tensor:
        """Flip x (N, C, H, W)."""
        _require_images(x, "Flip")
        return torch.where(_draw(1, len(x), x, generator)[0] < self.p, x.flip(-1), x)


@dataclass(frozen=True)
class Jitter:
    """Scale brightness, contrast and saturation, in this order, by factors uniform on [max(0, 1 - s), 1 + s].

    Each scaling blends x with an image b, clamp(f x + (1 - f) b, 0, 1): black for brightness, the mean luma
    of the sample for contrast, the luma of every pixel for saturation. Luma is .299 R + .587 G + .114 B, and
    the mean over channels unless there are three; saturation leaves images of one channel as they are. The
    factors are drawn as (3, N), whatever their strengths.

    Args:
        brightness: strength s of the brightness factor, >= 0.
        contrast: strength of the contrast factor, >= 0.
        saturation: strength of the saturation factor, >= 0.

    >>> Jitter()(torch.full((1, 3, 2, 2), 0.5), generator=Generator()).unique()
    tensor([0.5000])
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        if min(self.brightness, self.contrast, self.saturation) < 0:
            raise DataError(f"{self} has a negative strength; expected all >= 0")

    def __call__(self, x: Tensor, *, generator: Generator) -> Tensor:
        """Jitter x (N, C, H, W)."""
        _require_images(x, "Jitter")
        draws = _draw(3, len(x), x, generator)
        if self.brightness:
            x = (x * _factor(draws[0], self.brightness)).clamp(0, 1)
        if self.contrast:
            x = _blend(x, _luma(x).mean((1, 2, 3), keepdim=True), _factor(draws[1], self.contrast))
        if self.saturation and x.shape[1] > 1:
            x = _blend(x, _luma(x), _factor(draws[2], self.saturation))
        return x


def _factor(draw: Tensor, strength: float) -> Tensor:
    low = max(0.0, 1 - strength)
    return low + draw * (1 + strength - low)


def _blend(x: Tensor, base: Tensor, factor: Tensor) -> Tensor:
    return (factor * x + (1 - factor) * base).clamp(0, 1)


def _luma(x: Tensor) -> Tensor:
    if x.shape[1] != len(_LUMA):
        return x.mean(1, keepdim=True)
    return (x * x.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


@dataclass(frozen=True)
class Cutout:
    """Set a square to zero, its centre uniform over the pixels, cut off at the border.

    Draws the rows of all centres, then the columns; a square covers [centre - size // 2, centre - size // 2 +
    size).

    Args:
        size: side of the square in pixels, >= 1.

    References:
        DeVries, Taylor, Improved regularization of convolutional neural networks with cutout, 2017,
        https://arxiv.org/abs/1708.04552

    >>> Cutout(size=1)(torch.ones(3, 1, 4, 4), generator=Generator()).sum((1, 2, 3))
    tensor([15., 15., 15.])
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise DataError(f"Cutout got size={self.size}; expected >= 1")

    def __call__(self, x: Tensor, *, generator: Generator) -> Tensor:
        """Cut out of x (N, C, H, W)."""
        _require_images(x, "Cutout")
        n, _, h, w = x.shape
        rows = self._covered(h, x, generator).view(n, 1, h, 1)
        columns = self._covered(w, x, generator).view(n, 1, 1, w)
        return x.masked_fill(rows & columns, 0)

    def _covered(self, side: int, x: Tensor, generator: Generator) -> Tensor:
        start = _draw_integers(side, x, generator) - self.size // 2
        place = torch.arange(side, device=x.device)
        return (place >= start) & (place < start + self.size)


@dataclass(frozen=True)
class Normalize:
    """(x - mean) / std, per channel.

    Args:
        mean: mean of every channel.
        std: standard deviation of every channel, > 0.

    >>> normalize = Normalize(mean=(0.5,), std=(0.25,))
    >>> normalize(torch.ones(1, 1, 1, 1)), normalize.undone(torch.full((1, 1, 1, 1), 2.0))
    (tensor([[[[2.]]]]), tensor([[[[1.]]]]))
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise DataError(f"{self} does not fit; expected as many means as standard deviations, all of them > 0")

    def __call__(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Normalize x (N, C, ...); nothing is drawn."""
        mean, std = self._shaped(x)
        return (x - mean) / std

    def undone(self, x: Tensor) -> Tensor:
        """The images that normalised x (N, C, ...) was made of, x std + mean, up to rounding."""
        mean, std = self._shaped(x)
        return x * std + mean

    def _shaped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim < 2 or x.shape[1] != len(self.mean):
            raise DataError(f"Normalize has {len(self.mean)} channels; got a batch of shape {tuple(x.shape)}")
        shape = (1, -1, *(1,) * (x.ndim - 2))
        return x.new_tensor(self.mean).view(shape), x.new_tensor(self.std).view(shape)


@dataclass(frozen=True)
class Compose:
    """One augmentation after the other, all from one generator.

    Args:
        steps: augmentations, the first applied first.

    >>> Compose((Crop(padding=1), Flip()))(torch.ones(2, 1, 4, 4), generator=Generator()).shape
    torch.Size([2, 1, 4, 4])
    """

    steps: tuple[Augmentation, ...]

    def __call__(self, x: Tensor, *, generator: Generator) -> Tensor:
        """Apply all steps to x (N, C, H, W)."""
        for step in self.steps:
            x = step(x, generator=generator)
        return x


def normalization(split: Split) -> Normalize:
    """Mean and standard deviation (over all N samples and pixels) of every channel of the training split.

    Summed a thousand samples at a time, so that no float copy of the whole set is made: from counts of values for
    uint8, where 255 counts as 1 as in the loader, in float64 otherwise. A constant channel gets a standard
    deviation of 1.

    Args:
        split: the training split; statistics of test data would leak.

    Raises:
        DataError: the split is empty or has no channels.

    >>> normalization(Split(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), torch.tensor([0])))
    Normalize(mean=(0.5,), std=(0.5,))
    """
    if len(split) == 0 or split.x.ndim < 2:
        raise DataError(f"no mean of a split of shape {tuple(split.x.shape)}; expected samples (N, C, ...)")
    moments = _byte_moments if split.x.dtype == torch.uint8 else _moments
    mean, std = moments(split.x)
    return Normalize(mean=tuple(mean.tolist()), std=tuple(torch.where(std > 0, std, 1.0).tolist()))


def _byte_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    counts = torch.zeros(x.shape[1], 256, dtype=torch.int64, device=x.device)
    for start in range(0, len(x), _ROWS):
        for c, values in enumerate(x[start : start + _ROWS].unbind(1)):
            counts[c] += torch.bincount(values.flatten(), minlength=256)
    share = counts.double() / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64, device=x.device) / 255
    mean = share @ values
    return mean, (share * (values - mean[:, None]).square()).sum(1).sqrt()


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    axes = (0, *range(2, x.ndim))
    # Deviations from one value of each channel: nothing cancels, and a constant channel gives exactly zero.
    pivot = x[:1].reshape(1, x.shape[1], -1)[:, :, 0].double().view(1, -1, *(1,) * (x.ndim - 2))
    total = squares = torch.zeros((), dtype=torch.float64, device=x.device)
    for start in range(0, len(x), _ROWS):
        deviation = x[start : start + _ROWS].double() - pivot
        total = total + deviation.sum(axes)
        squares = squares + deviation.square().sum(axes)
    count = x.numel() // x.shape[1]
    std = (squares / count - (total / count).square()).clamp_min(0).sqrt()
    return total / count + pivot.flatten(), std
