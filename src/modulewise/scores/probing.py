"""Classifiers without gradient descent, each sample predicted from all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import DataError
from ..method import Reference
from .score import Score, one_hot

__all__ = ["KNN", "LinearProbe", "linear_probe", "nearest_neighbours"]


def linear_probe(features: Tensor, labels: Tensor, *, penalty: float = 0.01) -> float:
    """Accuracy of a ridge classifier on samples left out one at a time.

    W, b minimise 1/N ||F W + 1 b - Y||^2 + penalty s ||W||^2 of centred F and one-hot Y, s = tr(cov F) / D. Leaving
    sample i out changes its residual to (y_i - yhat_i) / (1 - h_ii), h the diagonal of the smoother: one solve for
    all. Invariant to permutations, rotations, shifts and scale.

    Args:
        features: (N, D).
        labels: (N,) in 0 to C - 1.
        penalty: > 0, default 0.01.

    Returns:
        A share, 0 to 1.

    References:
        D. M. Allen, The Relationship Between Variable Selection and Data Augmentation and a Method for Prediction,
        Technometrics 1974, https://doi.org/10.1080/00401706.1974.10489157 (the residuals, "PRESS")

    The penalty's unit s is that of all samples, also where one is left out.

    >>> linear_probe(torch.tensor([[0.0], [0.1], [1.0], [1.1]]).double(), torch.tensor([0, 0, 1, 1]))
    1.0
    """
    n, d = features.shape
    f = features - features.mean(0)
    y = one_hot(labels)
    size = f.square().sum() / (n * d)
    left, singular, _ = torch.linalg.svd(f, full_matrices=False)
    ratio = singular.square() / (singular.square() + n * penalty * size) if size > 0 else singular * 0
    fitted = y.mean(0) + left @ (ratio[:, None] * (left.T @ y))
    leverage = 1 / n + (left.square() * ratio).sum(1)
    guess = y - (y - fitted) / (1 - leverage).clamp_min(1e-12)[:, None]
    return float((guess.argmax(1) == labels).double().mean())


def nearest_neighbours(features: Tensor, labels: Tensor, *, k: int = 5) -> float:
    """Accuracy of the vote of the k nearest other samples, Euclidean; of classes with as many votes the nearest one's.

    Args:
        features: (N, D).
        labels: (N,) in 0 to C - 1.
        k: 1 to N - 1, default 5.

    Returns:
        A share, 0 to 1; invariant to permutations (but for exact ties of distance), rotations, shifts and scale.

    References:
        T. Cover, P. Hart, Nearest Neighbor Pattern Classification, IEEE Transactions on Information Theory 1967,
        https://doi.org/10.1109/TIT.1967.1053964

    >>> nearest_neighbours(torch.tensor([[0.0], [0.1], [1.0], [1.1]]).double(), torch.tensor([0, 0, 1, 1]), k=1)
    1.0
    """
    distance = torch.cdist(features, features).fill_diagonal_(torch.inf)
    near = distance.topk(k, largest=False).indices
    votes = one_hot(labels)[near]
    # Half a vote shared out with falling weight decides ties for the class that comes first, and nothing else.
    order = 0.5 ** torch.arange(2, k + 2, dtype=votes.dtype, device=votes.device)
    guess = (votes * (1 + order)[:, None]).sum(1).argmax(1)
    return float((guess == labels).double().mean())


@dataclass(frozen=True)
class LinearProbe(Score):
    """`linear_probe` as a score.

    Args:
        penalty: > 0, default 0.01.

    Raises:
        DataError: the penalty is not positive.

    >>> LinearProbe()(torch.tensor([[0.0], [0.1], [1.0], [1.1]]), torch.tensor([0, 0, 1, 1]))
    1.0
    """

    name: ClassVar[str] = "linear-probe"
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "D. M. Allen",
            "The Relationship Between Variable Selection and Data Augmentation and a Method for Prediction",
            "Technometrics",
            1974,
            "https://doi.org/10.1080/00401706.1974.10489157",
        ),
    )

    penalty: float = 0.01

    def __post_init__(self) -> None:
        if not self.penalty > 0:
            raise DataError(f"penalty={self.penalty} was given, expected a positive number such as 0.01")

    def value(self, features: Tensor, labels: Tensor, source: Tensor | None) -> float:
        """The share of samples predicted right."""
        return linear_probe(features, labels, penalty=self.penalty)


@dataclass(frozen=True)
class KNN(Score):
    """`nearest_neighbours` as a score; memory grows with N^2.

    Args:
        k: neighbours that vote, >= 1, default 5; at most N - 1 of them.

    Raises:
        DataError: k is below 1.

    >>> KNN(k=1)(torch.tensor([[0.0], [0.1], [1.0], [1.1]]), torch.tensor([0, 0, 1, 1]))
    1.0
    """

    name: ClassVar[str] = "k-nn"
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "T. Cover, P. Hart",
            "Nearest Neighbor Pattern Classification",
            "IEEE Transactions on Information Theory",
            1967,
            "https://doi.org/10.1109/TIT.1967.1053964",
        ),
    )

    k: int = 5

    def __post_init__(self) -> None:
        if self.k < 1:
            raise DataError(f"k={self.k} was given, expected at least 1 neighbour")

    def value(self, features: Tensor, labels: Tensor, source: Tensor | None) -> float:
        """The share of samples predicted right."""
        return nearest_neighbours(features, labels, k=min(self.k, len(labels) - 1))
