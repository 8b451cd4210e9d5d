"""Similarity matching: samples of one class should look alike, samples of two classes should not."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import MethodError
from .rows import same_class, unit_rows, widened, without_autocast

__all__ = ["one_hot_similarity", "similarity_matching", "similarity_matrix"]


def similarity_matrix(h: Tensor) -> Tensor:
    """Adjusted cosine similarity of all pairs, R = clamp(S S^T, -1, 1).

    S has one row per sample: its features, less their own mean, divided by their norm. Features are every
    channel's standard deviation over positions (Bessel-corrected) where there are more than three channels
    and more than one position, and all elements otherwise (on 1x1 maps the deviation is undefined). A sample
    whose features are all equal has similarity 0 to every sample, itself included.

    Args:
        h: (N, C) or channels first, (N, C, *spatial).

    Returns:
        (N, N), in float32 or wider.

    References:
        Nøkland and Eidnes, Training Neural Networks with Local Error Signals, ICML 2019,
        https://arxiv.org/abs/1901.06656

    >>> similarity_matrix(torch.tensor([[2.0, 0.0], [0.0, 5.0]])).round().tolist()
    [[1.0, -1.0], [-1.0, 1.0]]
    """
    with without_autocast(h):
        s = widened(h).flatten(2) if h.dim() > 2 else widened(h)
        s = s.std(dim=2) if s.dim() == 3 and s.shape[1] > 3 and s.shape[2] > 1 else s.flatten(1)
        s = unit_rows(s - s.mean(dim=1, keepdim=True))
        return (s @ s.T).clamp(-1.0, 1.0)


def one_hot_similarity(y: Tensor, *, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Similarity matrix of one-hot labels in closed form: 1 in a class, -1 / (classes - 1) across classes.

    Args:
        y: class indices (N,).
        classes: number of classes, >= 2.
        dtype: element type of the result.

    Returns:
        (N, N).

    Raises:
        MethodError: y is not one integer class per sample, or there is one class only.

    >>> one_hot_similarity(torch.tensor([0, 2]), classes=3).tolist()
    [[1.0, -0.5], [-0.5, 1.0]]
    """
    if classes < 2:
        raise MethodError(f"classes={classes} was given, similarity needs at least 2; check the number of classes")
    same = same_class(y).to(dtype)
    return same - (1 - same) / (classes - 1)


def similarity_matching(h: Tensor, similarity: Tensor) -> Tensor:
    """Mean squared error of the similarity matrix of h, mean_nm (R(h)_nm - similarity_nm)^2.

    Args:
        h: (N, C) or channels first, (N, C, *spatial).
        similarity: the matrix to match (N, N): `one_hot_similarity(y, ...)`, or, without labels,
            `similarity_matrix(x)`.

    Raises:
        MethodError: `similarity` is not (N, N).

    References:
        Nøkland and Eidnes, Training Neural Networks with Local Error Signals, ICML 2019,
        https://arxiv.org/abs/1901.06656

    >>> h = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    >>> round(similarity_matching(h, one_hot_similarity(torch.tensor([0, 1]), classes=2)).item(), 5)
    0.0
    """
    if similarity.shape != (h.shape[0], h.shape[0]):
        raise MethodError(
            f"a target of shape {tuple(similarity.shape)} was given for {h.shape[0]} samples, expected a "
            "similarity matrix (N, N); make it with one_hot_similarity or similarity_matrix"
        )
    return (similarity_matrix(h) - similarity).square().mean()
