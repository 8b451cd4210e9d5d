"""TransRate: how many bits fewer the features need once their class is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import DataError
from ..method import Reference
from .score import Score

__all__ = ["TransRate", "coding_rate", "trans_rate"]


def coding_rate(features: Tensor, *, epsilon: float) -> float:
    """R(Z, epsilon) = 1/2 log det(I + Z^T Z / (N epsilon)), in nats.

    Args:
        features: Z (N, D), as it is: not centred here.
        epsilon: distortion, > 0.

    >>> round(coding_rate(torch.ones(4, 1).double(), epsilon=1.0), 4)  # 1/2 log 2
    0.3466
    """
    n, d = features.shape
    gram = features.T @ features if d <= n else features @ features.T  # the same determinant, the smaller matrix
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return float(0.5 * torch.linalg.slogdet(identity + gram / (n * epsilon)).logabsdet)


def trans_rate(features: Tensor, labels: Tensor, *, epsilon: float = 1e-4, scaled: bool = False) -> float:
    """R(Z, epsilon) - sum_c n_c / N R(Z_c, epsilon), Z the centred features and Z_c those of class c.

    Z_c is centred by the mean of all, as in the paper: class means count. Invariant to rotations and shifts; to the
    unit of the features only if `scaled`.

    Args:
        features: (N, D).
        labels: (N,) in 0 to C - 1.
        epsilon: distortion, > 0, default 1e-4.
        scaled: divide Z by the root of tr(Z^T Z) / N first.

    References:
        L.-K. Huang, J. Huang, Y. Rong, Q. Yang, Y. Wei, Frustratingly Easy Transferability Estimation, ICML 2022,
        https://arxiv.org/abs/2106.09362

    Departs from the paper's listing, which takes the plain mean over classes: here classes count by their size, as in
    its formula; both agree for balanced data. Versions of the code differ in how they scale the features.

    >>> x, y = torch.tensor([[0.0], [0.0], [1.0], [1.0]]).double(), torch.tensor([0, 0, 1, 1])
    >>> abs(trans_rate(x, y)) < 1e-12  # equal spread around the common mean: nothing is gained by one dimension
    True
    """
    centred = features - features.mean(0)
    if scaled:
        size = (centred.square().sum() / len(centred)).sqrt()
        centred = centred / torch.where(size > 0, size, 1.0)
    within = 0.0
    for c in range(int(labels.max()) + 1):
        own = centred[labels == c]
        within += len(own) / len(labels) * coding_rate(own, epsilon=epsilon)
    return coding_rate(centred, epsilon=epsilon) - within


@dataclass(frozen=True)
class TransRate(Score):
    """`trans_rate` as a score.

    Args:
        epsilon: distortion, > 0, default 1e-4.
        scaled: take the unit of the features out first, default False (published).

    Raises:
        DataError: epsilon is not positive.

    >>> y = torch.tensor([0, 0, 1, 1])
    >>> round(TransRate()(torch.eye(2)[y], y), 3)
    0.0
    """

    name: ClassVar[str] = "transrate"
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "L.-K. Huang, J. Huang, Y. Rong, Q. Yang, Y. Wei",
            "Frustratingly Easy Transferability Estimation",
            "ICML",
            2022,
            "https://arxiv.org/abs/2106.09362",
        ),
    )

    epsilon: float = 1e-4
    scaled: bool = False

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise DataError(f"epsilon={self.epsilon} was given, expected a positive distortion such as 1e-4")

    def value(self, features: Tensor, labels: Tensor, source: Tensor | None) -> float:
        """The difference of the coding rates."""
        return trans_rate(features, labels, epsilon=self.epsilon, scaled=self.scaled)
