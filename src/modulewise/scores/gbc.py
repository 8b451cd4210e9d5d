"""GBC: how little Gaussians fitted to the classes overlap."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from torch import Tensor

from ..errors import DataError
from ..method import Reference
from .discriminant import leading_components
from .score import Score, class_counts, class_means, one_hot

__all__ = ["GBC", "Spread", "bhattacharyya", "gbc"]

_FLOOR = 1e-4


class Spread(Enum):
    """The covariance of a class: one variance in all directions, or one a component."""

    SPHERICAL = "spherical"
    DIAGONAL = "diagonal"


def bhattacharyya(means: Tensor, variances: Tensor) -> Tensor:
    """D_ij between Gaussians N(mu_i, diag v_i), for all pairs, (C, C).

    D_ij = 1/8 sum_d (mu_i - mu_j)_d^2 / v_d + 1/2 sum_d log(v_d / sqrt(v_id v_jd)), v = (v_i + v_j) / 2.

    Args:
        means: (C, D).
        variances: (C, D), > 0.

    >>> import torch
    >>> bhattacharyya(torch.tensor([[0.0], [4.0]]).double(), torch.ones(2, 1).double()).tolist()
    [[0.0, 2.0], [2.0, 0.0]]
    """
    middle = (variances[:, None] + variances[None]) / 2
    apart = (means[:, None] - means[None]).square() / middle
    logs = middle.log() - 0.5 * (variances.log()[:, None] + variances.log()[None])
    return apart.sum(2) / 8 + logs.sum(2) / 2


def gbc(features: Tensor, labels: Tensor, *, spread: Spread = Spread.SPHERICAL, components: int = 64) -> float:
    """- sum_{i != j} exp(-D_ij), D the Bhattacharyya distance of Gaussians fitted to the classes.

    Features are first reduced to their leading principal components; a variance is at least 1e-4. At most 0, at least
    -C (C - 1); invariant to rotations and shifts, and to the unit of the features as far as that floor is not reached.

    Args:
        features: (N, D).
        labels: (N,) in 0 to C - 1.
        spread: spherical (default, better for classification in the paper) or diagonal.
        components: most principal components, >= 1, default 64.

    References:
        M. Pándy, A. Agostinelli, J. Uijlings, V. Ferrari, T. Mensink, Transferability Estimation using Bhattacharyya
        Class Separability, CVPR 2022, https://arxiv.org/abs/2111.12780

    Departs from the authors' code, which for spherical classes counts the logarithms of one dimension instead of all:
    here the distance is that of the Gaussians.

    >>> import torch
    >>> x = torch.tensor([[-1.0], [1.0], [99.0], [101.0]]).double()
    >>> round(gbc(x, torch.tensor([0, 0, 1, 1])), 6) == 0
    True
    """
    x = leading_components(features, most=components)
    means = class_means(x, labels)
    deviation = x - means[labels]
    variances = (one_hot(labels).T @ deviation.square()) / class_counts(labels)[:, None]
    if spread is Spread.SPHERICAL:
        variances = variances.mean(1, keepdim=True).expand_as(variances)
    overlap = (-bhattacharyya(means, variances.clamp_min(_FLOOR))).exp()
    return float(overlap.diagonal().sum() - overlap.sum())


@dataclass(frozen=True)
class GBC(Score):
    """`gbc` as a score.

    Args:
        spread: of the class Gaussians, spherical where left out.
        components: most principal components, >= 1, default 64.

    Raises:
        DataError: components is below 1.

    >>> import torch
    >>> GBC()(torch.zeros(4, 1), torch.tensor([0, 0, 1, 1]))  # they overlap wholly
    -2.0
    """

    name: ClassVar[str] = "gbc"
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "M. Pándy, A. Agostinelli, J. Uijlings, V. Ferrari, T. Mensink",
            "Transferability Estimation using Bhattacharyya Class Separability",
            "CVPR",
            2022,
            "https://arxiv.org/abs/2111.12780",
        ),
    )

    spread: Spread = Spread.SPHERICAL
    components: int = 64

    def __post_init__(self) -> None:
        if self.components < 1:
            raise DataError(f"components={self.components} was given, expected at least 1; published is 64")

    def value(self, features: Tensor, labels: Tensor, source: Tensor | None) -> float:
        """Minus the overlap."""
        return gbc(features, labels, spread=self.spread, components=self.components)
