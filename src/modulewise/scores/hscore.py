"""H-score: the share of the features' variance that classes explain, in every direction alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..method import Reference
from .score import Score, class_counts, class_means

__all__ = ["HScore", "h_score"]


def h_score(features: Tensor, labels: Tensor, *, shrunk: bool = True) -> float:
    """tr(cov(F)^-1 cov(E[F | y])), with the Ledoit-Wolf covariance where `shrunk`.

    cov(E[F | y]) = sum_c n_c / N (mu_c - mu)(mu_c - mu)^T. Shrunk: cov(F) = (1 - a) S + a tr(S) / D I with the weight a
    of Ledoit and Wolf, and cov(E[F | y]) times (1 - a) as well; else the pseudo-inverse of S = 1/N sum (f - mu)(f -
    mu)^T. Plain it lies in [0, C - 1] and does not change under invertible affine maps; shrunk it does not change
    under rotations, shifts and one common scale.

    Args:
        features: (N, D).
        labels: (N,) in 0 to C - 1.
        shrunk: default True, which is needed where D is not far below N.

    References:
        Y. Bao et al., An Information-Theoretic Approach to Transferability in Task Transfer Learning, ICIP 2019,
        https://doi.org/10.1109/ICIP.2019.8803726
        S. Ibrahim, N. Ponomareva, R. Mazumder, Newer is not always better: Rethinking transferability metrics, their
        peculiarities, stability and performance, ECML-PKDD 2022, https://arxiv.org/abs/2110.06893

    >>> x, y = torch.tensor([[0.0], [0.0], [1.0], [1.0]]).double(), torch.tensor([0, 0, 1, 1])
    >>> round(h_score(x, y, shrunk=False), 6)  # nothing but classes
    1.0
    """
    centred = features - features.mean(0)
    means = class_means(centred, labels)
    share = class_counts(labels) / len(labels)
    between = (means * share[:, None]).T @ means
    if not shrunk:
        inverse = torch.linalg.pinv(centred.T @ centred / len(labels), hermitian=True)
        return float((inverse * between).sum())
    from sklearn.covariance import ledoit_wolf

    covariance, weight = ledoit_wolf(centred.cpu().numpy(), assume_centered=True)
    if not covariance.any():
        return 0.0
    solved = torch.linalg.solve(torch.from_numpy(covariance).to(between), between)
    return float((1 - weight) * solved.trace())


@dataclass(frozen=True)
class HScore(Score):
    """`h_score` as a score.

    Args:
        shrunk: the Ledoit-Wolf covariance, default True; False for the first paper's.

    >>> HScore(shrunk=False)(torch.tensor([[0.0], [0.0], [1.0], [1.0]]), torch.tensor([3, 3, 5, 5]))
    1.0
    """

    name: ClassVar[str] = "h-score"
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "Y. Bao et al.",
            "An Information-Theoretic Approach to Transferability in Task Transfer Learning",
            "ICIP",
            2019,
            "https://doi.org/10.1109/ICIP.2019.8803726",
        ),
        Reference(
            "S. Ibrahim, N. Ponomareva, R. Mazumder",
            "Newer is not always better: Rethinking transferability metrics",
            "ECML-PKDD",
            2022,
            "https://arxiv.org/abs/2110.06893",
        ),
    )

    shrunk: bool = True

    def value(self, features: Tensor, labels: Tensor, source: Tensor | None) -> float:
        """The trace."""
        return h_score(features, labels, shrunk=self.shrunk)
