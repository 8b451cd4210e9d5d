"""Cross-entropy on the logits of a head or of the model, for one label per sample or per position."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError

__all__ = ["Criterion", "classification"]

Criterion = Callable[[Tensor, Tensor], Tensor]
"""criterion(logits, y) -> scalar."""


def classification(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy, -mean log softmax(logits)[y].

    Args:
        logits: (N, C); per token (N, T, C); per pixel (N, C, H', W'), resized bilinearly to the
            size of y where they differ.
        y: class indices, any integer type, (N,), (N, T) or (N, H, W) to match; -100 marks positions to
            leave out. Values are not looked at here, because that would make the host wait for the device.

    Raises:
        DataError: labels are not integers, or their shape does not match the logits.

    >>> import torch
    >>> classification(torch.zeros(2, 4), torch.tensor([0, 3])).item() == torch.tensor(4.0).log().item()
    True
    """
    _check(logits, y)
    if logits.dim() == 3:
        logits = logits.flatten(0, 1)
        y = y.flatten()
    elif logits.dim() == 4 and logits.shape[2:] != y.shape[1:]:
        logits = F.interpolate(logits, size=y.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(logits, y.long())


def _check(logits: object, y: object) -> None:
    if not isinstance(logits, Tensor) or not isinstance(y, Tensor):
        raise DataError(
            f"classification was given {type(logits).__name__} and {type(y).__name__}, it needs two tensors; "
            "pick the logits or the labels out in a loss of your own"
        )
    if y.is_floating_point() or y.is_complex():
        raise DataError(
            f"labels of type {y.dtype} were given, classification needs integer class indices; convert them "
            "with .long(), or use a loss for soft labels"
        )
    fits = {
        2: y.dim() == 1 and y.shape[0] == logits.shape[0],
        3: y.shape == logits.shape[:2],
        4: y.dim() == 3 and y.shape[0] == logits.shape[0],
    }
    if not fits.get(logits.dim(), False):
        raise DataError(
            f"logits {tuple(logits.shape)} and labels {tuple(y.shape)} were given, expected (N, C) with "
            "(N,), (N, T, C) with (N, T) or (N, C, H, W) with (N, H, W); check the labels, and "
            "whether the head is dense"
        )
