"""Contrastive losses: tell the true partner among others, by position (InfoNCE) or by view (NT-Xent)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MethodError
from .rows import unit_rows, widened, without_autocast

__all__ = ["info_nce", "nt_xent"]


def info_nce(predicted: Tensor, encoded: Tensor, *, negatives: Tensor) -> Tensor:
    """InfoNCE with drawn negatives, -mean_m log(f_mm / (f_mm + sum_j f_mj)), f_mn = exp(predicted_m . encoded_n).

    The sum runs over j in negatives[m]. Nothing is normalised, so the value changes with the scale of the rows;
    it is log(1 + number of negatives) where all products are equal. A negative that is row m itself bounds the
    term from below by log 2, as when negatives are drawn without looking.

    Args:
        predicted: what each position expects (M, D), W_k c_t.
        encoded: what is there (M, D), z_{t+k}; row m is the true partner of predicted row m.
        negatives: rows of `encoded` to tell it from (M, negatives >= 1), integers in 0 .. M - 1.

    Returns:
        scalar, in float32 or wider; M * negatives * D numbers are held for the backward.

    Raises:
        MethodError: the shapes do not fit together.

    References:
        van den Oord, Li and Vinyals, Representation Learning with Contrastive Predictive Coding, 2018,
        https://arxiv.org/abs/1807.03748

    >>> rows = torch.zeros(4, 8)
    >>> info_nce(rows, rows, negatives=torch.tensor([[1], [2], [3], [0]])).exp()
    tensor(2.)
    """
    rows = len(encoded)
    fits = predicted.shape == encoded.shape and encoded.dim() == 2 and negatives.dim() == 2
    if not fits or len(negatives) != rows or not negatives.numel():
        raise MethodError(
            f"shapes {tuple(predicted.shape)}, {tuple(encoded.shape)} and {tuple(negatives.shape)} given, expected "
            "predicted and encoded (M, D) and negatives (M, 1 or more)"
        )
    with without_autocast(encoded):
        p, z = widened(predicted), widened(encoded)
        positive = (p * z).sum(1, keepdim=True)
        others = (z[negatives] @ p.unsqueeze(2)).squeeze(2)
        scores = torch.cat([positive, others], dim=1)
        return (torch.logsumexp(scores, dim=1) - scores[:, 0]).mean()


def nt_xent(z: Tensor, *, temperature: float = 0.1) -> Tensor:
    """NT-Xent of two stacked views, -mean_i log(exp(s_ip / t) / sum_{j != i} exp(s_ij / t)), s the cosine similarity.

    Rows n and N + n of z are the two views of sample n, so p = i + N mod 2N; all 2N rows take both roles. A row
    of zeros has similarity 0 to every row.

    Args:
        z: projections (2N, D) with N >= 2.
        temperature: t > 0, default 0.1.

    Returns:
        scalar, in float32 or wider; log(2N - 1) where all similarities are equal.

    Raises:
        MethodError: the rows are odd in number or fewer than 4 (one sample has nothing to be told from), or the
            temperature is not positive.

    References:
        Chen, Kornblith, Norouzi and Hinton, A Simple Framework for Contrastive Learning of Visual
        Representations, ICML 2020, https://arxiv.org/abs/2002.05709

    >>> nt_xent(torch.ones(4, 2)).exp().round(decimals=4)
    tensor(3.)
    """
    if not temperature > 0:
        raise MethodError(f"temperature={temperature} was given, expected a positive number; try 0.1")
    if z.dim() != 2 or len(z) % 2 or len(z) < 4:
        raise MethodError(
            f"projections of shape {tuple(z.shape)} were given, expected two views of at least 2 samples stacked, "
            "(2N, D); enlarge the batch or drop the last one"
        )
    with without_autocast(z):
        unit = unit_rows(widened(z))
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        similarity = (unit @ unit.T / temperature).masked_fill(itself, -torch.inf)
        partner = torch.arange(len(z), device=z.device).roll(len(z) // 2)
        return F.cross_entropy(similarity, partner)
