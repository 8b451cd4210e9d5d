"""LogME: the evidence of a Bayesian linear model of the labels, at its own best precisions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..method import Reference
from .score import Score, one_hot

__all__ = ["Evidence", "LogME", "log_evidence"]

_TINY = 1e-12


class Evidence(NamedTuple):
    """What the fixed point came to, one entry a target column.

    Args:
        log_evidence: log p(y | F) / N, (K,).
        alpha: precision of the weights, (K,).
        beta: precision of the noise, (K,).
        iterations: how many were made.
    """

    log_evidence: Tensor
    alpha: Tensor
    beta: Tensor
    iterations: int


def log_evidence(features: Tensor, targets: Tensor, *, iterations: int = 200, tolerance: float = 1e-10) -> Evidence:
    """Largest log p(y | F, alpha, beta) / N of y = F w + e, w ~ N(0, I / alpha), e ~ N(0, I / beta).

    With A = alpha I + beta F^T F and m = beta A^-1 F^T y,

        log p = N/2 log beta + D/2 log alpha - N/2 log 2 pi - beta/2 ||F m - y||^2 - alpha/2 ||m||^2 - 1/2 log |A|,

    alpha = gamma / ||m||^2 and beta = (N - gamma) / ||F m - y||^2 with gamma = sum_i beta s_i^2 / (alpha + beta s_i^2),
    s the singular values of F, are repeated until alpha / beta no longer moves. Exactly invariant to rotations and to
    the scale of the features: alpha takes that up. There is no constant, so that shifts do matter, as published.

    Args:
        features: (N, D), any D.
        targets: (N, K) numbers: one-hot labels, or values to regress.
        iterations: most of them, >= 1.
        tolerance: relative change of alpha / beta that ends it, > 0.

    References:
        K. You, Y. Liu, J. Wang, M. Long, LogME: Practical Assessment of Pre-trained Models for Transfer Learning, ICML
        2021, https://arxiv.org/abs/2102.11005
        K. You, Y. Liu, Z. Zhang, J. Wang, M. I. Jordan, M. Long, Ranking and Tuning Pre-trained Models, JMLR 2022,
        https://arxiv.org/abs/2110.10545

    Departs from the paper: it starts at alpha / beta = the mean of s^2 and not at 1, and iterates to convergence and
    not 11 times, so that the unit of the features does not matter. Residuals are kept above 1e-12 of ||y||^2, ||m||^2
    likewise: where F fits y exactly, or says nothing at all, the evidence has no maximum at finite precisions.

    >>> x = torch.tensor([[1.0], [2.0], [3.0], [4.0]]).double()
    >>> found = log_evidence(x, torch.tensor([[1.1], [1.9], [3.2], [3.9]]).double())
    >>> bool(found.beta > 10 * found.alpha)
    True
    """
    n = len(features)
    left, singular, _ = torch.linalg.svd(features, full_matrices=False)
    kept = singular > singular.max() * max(features.shape) * torch.finfo(features.dtype).eps
    power = singular[kept].square()[:, None]
    z2 = (left[:, kept].T @ targets).square()
    norm = targets.square().sum(0).clamp_min(_TINY)
    outside = (norm - z2.sum(0)).clamp_min(0)
    if not len(power):
        power, z2 = features.new_ones(1, 1), features.new_zeros(1, targets.shape[1])
    ratio = power.mean().expand(targets.shape[1])
    made, settled = 0, False
    while made < iterations and not settled:
        made += 1
        gamma, weights, residual = _moments(power, z2, outside, norm, ratio)
        moved = (gamma / weights) * residual / (n - gamma).clamp_min(_TINY)
        settled = bool(((moved - ratio).abs() <= tolerance * ratio).all())
        ratio = moved
    gamma, weights, residual = _moments(power, z2, outside, norm, ratio)
    beta = (n - gamma).clamp_min(_TINY) / residual
    alpha = ratio * beta
    # 1/2 (D log alpha - log |A|): the D - rank directions without data cancel.
    determinant = ((alpha + beta * power) / alpha).log().sum(0)
    value = 0.5 * (n * (beta / (2 * math.pi)).log() - beta * residual - alpha * weights - determinant)
    return Evidence(value / n, alpha, beta, made)


def _moments(power: Tensor, z2: Tensor, outside: Tensor, norm: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """gamma, ||m||^2 and ||F m - y||^2 at a ratio alpha / beta, each (K,)."""
    shrunk = power + ratio
    gamma = (power / shrunk).sum(0)
    weights = (power * z2 / shrunk.square()).sum(0)
    residual = ((ratio / shrunk).square() * z2).sum(0) + outside
    return gamma, weights.clamp_min(_TINY * float(1 / power.mean())), residual.clamp_min(_TINY * norm)


@dataclass(frozen=True)
class LogME(Score):
    """The mean over classes of `log_evidence` of one-hot labels.

    >>> y = torch.tensor([0, 0, 1, 1])
    >>> good, bad = torch.tensor([[0.0], [0.1], [1.0], [1.1]]), torch.tensor([[0.0], [1.0], [0.1], [1.1]])
    >>> LogME()(good, y) > LogME()(bad, y)
    True
    """

    name: ClassVar[str] = "logme"
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "K. You, Y. Liu, J. Wang, M. Long",
            "LogME: Practical Assessment of Pre-trained Models for Transfer Learning",
            "ICML",
            2021,
            "https://arxiv.org/abs/2102.11005",
        ),
    )

    def value(self, features: Tensor, labels: Tensor, source: Tensor | None) -> float:
        """The mean log evidence of a sample and class."""
        return float(log_evidence(features, one_hot(labels)).log_evidence.mean())
