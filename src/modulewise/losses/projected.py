"""Labels seen through a fixed random projection, and a prediction loss on the signs of it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..errors import MethodError
from ..partition.tree import is_fake
from .rows import widened, without_autocast

__all__ = ["projected_labels", "sign_cross_entropy"]


def projected_labels(y: Tensor, projection: Tensor) -> Tensor:
    """One-hot labels through a matrix, onehot(y) P: the row of P of every sample's class.

    Args:
        y: class indices (N,), 0 <= y < classes.
        projection: P (classes, M).

    Returns:
        (N, M).

    Raises:
        MethodError: y is not one integer class per sample, or (looked at on the CPU only) out of range.

    >>> import torch
    >>> projected_labels(torch.tensor([1, 0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [[3.0, 4.0], [1.0, 2.0]]
    """
    if y.dim() != 1 or y.is_floating_point() or y.is_complex():
        raise MethodError(
            f"labels of shape {tuple(y.shape)} and type {y.dtype} were given, a projection of labels needs one "
            "integer class per sample, (N,); choose another method for this task"
        )
    # Reading labels on another device would make the host wait for it at every step.
    if y.device.type == "cpu" and not is_fake(y) and bool(((y < 0) | (y >= len(projection))).any()):
        raise MethodError(
            f"labels from {int(y.min())} to {int(y.max())} were given for a projection of {len(projection)} classes, "
            f"expected 0 to {len(projection) - 1}; leave other samples out of the batch"
        )
    return projection[y.long()]


def sign_cross_entropy(logits: Tensor, projected: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits with the signs of projected labels.

    -mean_nm [t_nm log s(z_nm) + (1 - t_nm) log(1 - s(z_nm))], t = 1 where the projection is above 0 and 0 elsewhere, s
    the logistic function.

    Args:
        logits: z (N, M).
        projected: onehot(y) P (N, M), of `projected_labels`.

    Raises:
        MethodError: the shapes differ.

    References:
        A. Nøkland, L. H. Eidnes, Training Neural Networks with Local Error Signals, ICML 2019,
        https://arxiv.org/abs/1901.06656

    >>> import torch
    >>> loss = sign_cross_entropy(torch.zeros(2, 3), torch.ones(2, 3))
    >>> loss.item() == torch.tensor(2.0).log().item()
    True
    """
    if logits.shape != projected.shape:
        raise MethodError(
            f"logits of shape {tuple(logits.shape)} were given for targets of shape {tuple(projected.shape)}, expected "
            "the same; let the head have as many outputs as the projection"
        )
    with without_autocast(logits):
        z = widened(logits)
        return F.binary_cross_entropy_with_logits(z, (projected > 0).to(z.dtype))
