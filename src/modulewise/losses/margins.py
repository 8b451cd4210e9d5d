"""Hinge losses: logits should lead by a margin, and by more than that nothing is gained."""

from __future__ import annotations

from torch import Tensor

from ..errors import DataError, MethodError
from ..partition.tree import is_fake
from .rows import widened

__all__ = ["multi_margin"]


def multi_margin(logits: Tensor, y: Tensor, *, margin: float = 1.0) -> Tensor:
    """Multi-class hinge loss, (1/N) sum_n (1/C) sum_{c != y_n} max(0, margin - s_{n,y_n} + s_nc).

    Every other class has to stay behind by the margin (Weston and Watkins), as in torch's `multi_margin_loss`. As the
    task loss, `Trainer(..., loss=losses.multi_margin)`, it makes the last part the hinge output of the papers on
    pairwise proxies; for two classes it is half the binary hinge loss of s_1 - s_0.

    Args:
        logits: s (N, C).
        y: class indices (N,), any integer type.
        margin: > 0, in units of the logits, default 1.

    Raises:
        DataError: the shapes or the type of labels do not fit, or a label is no class (looked at on the CPU only).
        MethodError: the margin is not positive.

    References:
        J. Weston, C. Watkins, Support Vector Machines for Multi-Class Pattern Recognition, ESANN 1999; as
        https://pytorch.org/docs/stable/generated/torch.nn.MultiMarginLoss.html with p = 1 and without weights

    >>> import torch
    >>> multi_margin(torch.tensor([[2.0, 1.5]]), torch.tensor([0])).item()
    0.25
    """
    if not margin > 0:
        raise MethodError(f"margin={margin} was given, expected a positive one; the usual margin is 1.0")
    if logits.dim() != 2 or y.shape != logits.shape[:1] or y.is_floating_point() or y.is_complex():
        raise DataError(
            f"logits {tuple(logits.shape)} and labels {tuple(y.shape)} of type {y.dtype} were given, multi_margin "
            "needs (N, C) with integer classes (N,); use losses.classification for one label per position"
        )
    classes = logits.shape[1]
    if y.device.type == "cpu" and not is_fake(y) and bool(((y < 0) | (y >= classes)).any()):
        raise DataError(
            f"labels reach from {int(y.min())} to {int(y.max())} outside 0 to {classes - 1}; multi_margin leaves no "
            "label out, check the number of classes"
        )
    s, own = widened(logits), y.long()[:, None]
    excess = (margin - s.gather(1, own) + s).relu()
    return excess.scatter(1, own, 0.0).mean()
