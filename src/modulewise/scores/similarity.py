"""Scores that compare pairs of samples in features and in labels: PARC and linear CKA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..losses.rows import same_class, unit_rows
from ..method import Reference
from .score import Score, one_hot

__all__ = ["CKA", "PARC", "cka", "parc"]


def parc(features: Tensor, labels: Tensor) -> float:
    """Spearman correlation, over pairs n < m, of 1 - corr(f_n, f_m) and 1 - corr(onehot y_n, onehot y_m).

    corr is Pearson's over a sample's features. The second has two values only, so that pairs of one class and of two
    are all that counts. In [-1, 1]; 0 where all pairs are alike. A sample whose features are all equal has corr 0 with
    every other.

    Args:
        features: (N, D).
        labels: (N,) in 0 to C - 1.

    References:
        D. Bolya, R. Mittapalli, J. Hoffman, Scalable Diverse Model Selection for Accessible Transfer Learning, NeurIPS
        2021, https://arxiv.org/abs/2111.06977

    Invariant to permutations of samples and of features and to scale, but not to rotations: Pearson's correlation takes
    the mean over a sample's features out. Departs from the paper: no reduction of the dimension by principal
    components, and the value is not multiplied by 100.

    >>> round(parc(torch.tensor([[1.0, 0, 0], [1, 0.1, 0], [0, 1, 0], [0, 1, 0.1]]), torch.tensor([0, 0, 1, 1])), 3)
    0.853
    """
    from scipy.stats import rankdata

    rows = unit_rows(features - features.mean(1, keepdim=True))
    upper = torch.triu_indices(len(rows), len(rows), offset=1, device=rows.device)
    distance = (1 - rows @ rows.T)[upper[0], upper[1]]
    other = (~same_class(labels))[upper[0], upper[1]].double()
    # Rounding must not order what is equal.
    ranks = torch.from_numpy(rankdata(distance.cpu().double().numpy().round(12))).to(other)
    ranks, other = ranks - ranks.mean(), other - other.mean()
    size = torch.linalg.vector_norm(ranks) * torch.linalg.vector_norm(other)
    return float(ranks @ other / size) if size > 0 else 0.0


def cka(features: Tensor, labels: Tensor) -> float:
    """Linear centred kernel alignment to the labels, ||F^T Y||^2 / (||F^T F|| ||Y^T Y||), Frobenius norms.

    F and the one-hot Y are centred over samples. In [0, 1]; invariant to rotations, shifts and scale. It is
    `losses.normalized_hsic` of the linear kernels, without their (N, N) matrices.

    Args:
        features: (N, D).
        labels: (N,) in 0 to C - 1.

    References:
        S. Kornblith, M. Norouzi, H. Lee, G. Hinton, Similarity of Neural Network Representations Revisited, ICML 2019,
        https://arxiv.org/abs/1905.00414

    >>> round(cka(torch.tensor([[0.0], [0.0], [1.0], [1.0]]).double(), torch.tensor([0, 0, 1, 1])), 6)
    1.0
    """
    f = features - features.mean(0)
    y = one_hot(labels)
    y = y - y.mean(0)
    small = f.T @ f if f.shape[1] <= len(f) else f @ f.T
    size = torch.linalg.matrix_norm(small) * torch.linalg.matrix_norm(y.T @ y)
    return float((f.T @ y).square().sum() / size) if size > 0 else 0.0


@dataclass(frozen=True)
class PARC(Score):
    """`parc` as a score; memory grows with N^2.

    >>> PARC()(torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]), torch.tensor([0, 0, 1, 1]))
    1.0
    """

    name: ClassVar[str] = "parc"
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "D. Bolya, R. Mittapalli, J. Hoffman",
            "Scalable Diverse Model Selection for Accessible Transfer Learning",
            "NeurIPS",
            2021,
            "https://arxiv.org/abs/2111.06977",
        ),
    )

    def value(self, features: Tensor, labels: Tensor, source: Tensor | None) -> float:
        """The rank correlation."""
        return parc(features, labels)


@dataclass(frozen=True)
class CKA(Score):
    """`cka` as a score.

    >>> round(CKA()(torch.tensor([[0.0], [0.0], [1.0], [1.0]]), torch.tensor([0, 0, 1, 1])), 6)
    1.0
    """

    name: ClassVar[str] = "cka"
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "S. Kornblith, M. Norouzi, H. Lee, G. Hinton",
            "Similarity of Neural Network Representations Revisited",
            "ICML",
            2019,
            "https://arxiv.org/abs/1905.00414",
        ),
    )

    def value(self, features: Tensor, labels: Tensor, source: Tensor | None) -> float:
        """The alignment."""
        return cka(features, labels)
