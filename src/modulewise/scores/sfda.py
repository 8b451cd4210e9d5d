"""SFDA: Fisher discriminant analysis that is fitted again to samples drawn towards the other classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import DataError
from ..method import Reference
from .discriminant import discriminant_logits, within_covariance
from .score import Score, class_means

__all__ = ["SFDA", "self_challenged", "sfda", "sfda_shrinkage"]


def sfda_shrinkage(features: Tensor, labels: Tensor, *, strength: float = 5.0) -> float:
    """max(exp(-strength s), 1e-10), s the largest eigenvalue of the covariance within classes.

    Args:
        features: (N, D).
        labels: (N,) in 0 to C - 1.
        strength: > 0, default 5.

    >>> sfda_shrinkage(torch.zeros(4, 2).double(), torch.tensor([0, 0, 1, 1]))
    1.0
    """
    largest = float(torch.linalg.eigvalsh(within_covariance(features, labels))[-1])
    return max(math.exp(-strength * max(largest, 0.0)), 1e-10)


def self_challenged(features: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
    """Samples q x + (1 - q) u_y: each mixed with the mean u_y of the other classes' means, (N, D).

    q = softmax(softmax(logits))_y: a sample the classifier is sure of stays nearer to itself. The second softmax
    softens the first; with two classes q lies in [0.27, 0.73].

    Args:
        features: (N, D); not changed.
        labels: (N,) in 0 to C - 1.
        logits: (N, C).

    >>> x, y = torch.tensor([[0.0], [4.0]]).double(), torch.tensor([0, 1])
    >>> self_challenged(x, y, torch.zeros(2, 2).double()).tolist()
    [[2.0], [2.0]]
    """
    sure = logits.softmax(1).softmax(1).gather(1, labels[:, None])
    means = class_means(features, labels)
    others = (means.sum(0) - means) / (len(means) - 1)
    return sure * features + (1 - sure) * others[labels]


def sfda(features: Tensor, labels: Tensor, *, strength: float = 5.0) -> float:
    """Mean log p(y | x) of discriminant analysis, fitted to its own self-challenged features.

    Fitted once with the shrinkage of `sfda_shrinkage`, samples are mixed by `self_challenged`, and the analysis is
    fitted again with the same shrinkage. At most 0; invariant to rotations and shifts. The shrinkage, and so the
    score, depends on the unit of the features.

    Args:
        features: (N, D); not changed.
        labels: (N,) in 0 to C - 1.
        strength: of the shrinkage, > 0, default 5.

    References:
        W. Shao, X. Zhao, Y. Ge, Z. Zhang, L. Yang, X. Wang, Y. Shan, P. Luo, Not All Models Are Equal: Predicting Model
        Transferability in a Self-challenging Fisher Space, ECCV 2022, https://arxiv.org/abs/2207.03036

    Departs from the authors' code, which takes the mean of p instead of log p and changes the caller's features: the
    paper has the logarithm. Regularisation with tr(S_W) / D as in the code (the paper adds the shrinkage times
    I), the softened mixing weight as in the code, and the exact largest eigenvalue instead of three power iterations.

    >>> x = torch.tensor([[0.0], [1.0], [20.0], [21.0]]).double()
    >>> round(sfda(x, torch.tensor([0, 0, 1, 1])), 3)
    0.0
    """
    shrinkage = sfda_shrinkage(features, labels, strength=strength)
    mixed = self_challenged(features, labels, discriminant_logits(features, labels, shrinkage=shrinkage))
    logits = discriminant_logits(mixed, labels, shrinkage=shrinkage)
    return float(logits.log_softmax(1).gather(1, labels[:, None]).mean())


@dataclass(frozen=True)
class SFDA(Score):
    """`sfda` as a score.

    Args:
        strength: of the shrinkage, > 0, default 5.

    Raises:
        DataError: the strength is not positive.

    >>> round(SFDA()(torch.tensor([[0.0], [1.0], [20.0], [21.0]]), torch.tensor([0, 0, 1, 1])), 3)
    0.0
    """

    name: ClassVar[str] = "sfda"
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "W. Shao, X. Zhao, Y. Ge, Z. Zhang, L. Yang, X. Wang, Y. Shan, P. Luo",
            "Not All Models Are Equal: Predicting Model Transferability in a Self-challenging Fisher Space",
            "ECCV",
            2022,
            "https://arxiv.org/abs/2207.03036",
        ),
    )

    strength: float = 5.0

    def __post_init__(self) -> None:
        if not self.strength > 0:
            raise DataError(f"strength={self.strength} was given, expected a positive number; published is 5")

    def value(self, features: Tensor, labels: Tensor, source: Tensor | None) -> float:
        """The mean log probability."""
        return sfda(features, labels, strength=self.strength)
