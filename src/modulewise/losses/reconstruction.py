"""How far a decoded tensor is from what it should reconstruct: pixels in [0, 1], or any values."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..errors import MethodError
from ..partition.tree import is_fake
from .rows import widened, without_autocast

__all__ = ["mean_squared_error", "pixel_cross_entropy"]

_ROUNDING = 0.01  # normalised and taken back in half precision, 0 and 1 are met only so closely


def pixel_cross_entropy(logits: Tensor, image: Tensor) -> Tensor:
    """Mean cross-entropy of pixels, -mean(p log s + (1 - p) log(1 - s)) with s = sigmoid(logits).

    At its least, where s = p, it is the pixels' entropy and not 0.

    Args:
        logits: (N, C, H, W), unbounded.
        image: pixels p in [0, 1], same shape.

    Raises:
        MethodError: the shapes differ, or a pixel is outside [0, 1] by more than rounding (looked at on the CPU only).

    >>> import torch
    >>> round(pixel_cross_entropy(torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.0, 0.5]]]])).item(), 5)  # log 2
    0.69315
    """
    _same_shape(logits, image)
    # Reading pixels on another device would make the host wait for it at every step.
    readable = image.device.type == "cpu" and not is_fake(image)
    if readable and bool(((image < -_ROUNDING) | (image > 1 + _ROUNDING)).any()):
        raise MethodError(
            f"pixels from {float(image.min()):.3g} to {float(image.max()):.3g} were given, expected [0, 1]; give "
            "the mean and standard deviation that the images were normalised with"
        )
    with without_autocast(logits):
        return F.binary_cross_entropy_with_logits(widened(logits), image.to(widened(logits).dtype))


def mean_squared_error(decoded: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over all elements, mean (decoded - target)^2.

    Args:
        decoded: (N, ...).
        target: same shape; no broadcasting, which would hide a wrong shape.

    Raises:
        MethodError: the shapes differ.

    >>> import torch
    >>> mean_squared_error(torch.ones(4, 3), torch.zeros(4, 3)).item()
    1.0
    """
    _same_shape(decoded, target)
    with without_autocast(decoded):
        return (widened(decoded) - widened(target)).square().mean()


def _same_shape(decoded: Tensor, target: Tensor) -> None:
    if decoded.shape != target.shape:
        raise MethodError(
            f"a reconstruction {tuple(decoded.shape)} of {tuple(target.shape)} was given, expected the same shape; "
            "give inputs of the size that the partition's example had"
        )
