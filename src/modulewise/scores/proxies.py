"""The survey's proxy scores: how well a kernel on the features separates pairs by class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .. import losses
from ..errors import DataError
from ..method import Reference
from .score import Score

__all__ = [
    "NMSE",
    "SRS1",
    "Alignment",
    "Contrastive",
    "LogContrastive",
    "Proxy",
    "Raw",
    "UpperTriangleAlignment",
    "proxy_value",
]

_DUAN = Reference(
    "S. Duan, S. Yu, J. C. Príncipe",
    "Modularizing Deep Learning via Pairwise Learning With Kernels",
    "IEEE Transactions on Neural Networks and Learning Systems",
    2021,
    "https://arxiv.org/abs/2005.05541",
)


def proxy_value(
    features: Tensor, labels: Tensor, *, kernel: losses.Kernel, objective: losses.PairwiseObjective
) -> float:
    """objective(G, labels) of the Gram matrix G_nm = k(f_n, f_m): what `methods.KernelProxy` maximises, in one go.

    Args:
        features: (N, D).
        labels: (N,) integers, two classes or more.
        kernel: of `losses`, with a range.
        objective: of `losses.PAIRWISE_OBJECTIVES`.

    References:
        S. Duan, S. Yu, J. C. Príncipe, Modularizing Deep Learning via Pairwise Learning With Kernels, IEEE TNNLS 2021,
        https://arxiv.org/abs/2005.05541

    >>> import torch
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1])
    >>> round(proxy_value(x, y, kernel=losses.RELU, objective=losses.alignment), 6)
    1.0
    """
    return float(objective(kernel.gram(features), labels, minimum=kernel.minimum, maximum=kernel.maximum))


@dataclass(frozen=True)
class Proxy(Score):
    """A pairwise proxy objective of the target task, on the features that a part gives.

    Idea of the survey's authors: a part that was trained with a proxy of one task fits another task as far as that
    task's proxy is high on it already, which one forward pass tells. Memory grows with N^2.

    Args:
        kernel: of `losses`, with a range; k(u, v) = phi(u) . phi(v), phi the normalised ReLU of the features where left
            out.

    Raises:
        DataError: the kernel is unbounded.
    """

    kernel: losses.Kernel = losses.RELU

    references: ClassVar[tuple[Reference, ...]] = (_DUAN,)
    objective: ClassVar[losses.PairwiseObjective]

    def __post_init__(self) -> None:
        if not math.isfinite(self.kernel.maximum - self.kernel.minimum):
            raise DataError(f"kernel={self.kernel.name} is unbounded, expected one with a range such as losses.COSINE")

    def value(self, features: Tensor, labels: Tensor, source: Tensor | None) -> float:
        """The objective of the whole Gram matrix."""
        return proxy_value(features, labels, kernel=self.kernel, objective=type(self).objective)


@dataclass(frozen=True)
class Alignment(Proxy):
    """Kernel alignment <G, G*> / (||G|| ||G*||), see `losses.alignment`; 1 where pairs of one class are all alike.

    >>> import torch
    >>> round(Alignment()(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 1.0]]), torch.tensor([0, 1, 1])), 6)
    1.0
    """

    name = "alignment"
    objective = staticmethod(losses.alignment)


@dataclass(frozen=True)
class UpperTriangleAlignment(Proxy):
    """Kernel alignment over pairs n < m alone, see `losses.upper_triangle_alignment`.

    >>> UpperTriangleAlignment.name
    'upper-triangle-alignment'
    """

    name = "upper-triangle-alignment"
    objective = staticmethod(losses.upper_triangle_alignment)


@dataclass(frozen=True)
class Contrastive(Proxy):
    """The share sum_same e^k / sum_all e^k of pairs n != m of one class, see `losses.contrastive`.

    >>> Contrastive.name
    'contrastive'
    """

    name = "contrastive"
    objective = staticmethod(losses.contrastive)


@dataclass(frozen=True)
class LogContrastive(Proxy):
    """The logarithm of `Contrastive`, see `losses.log_contrastive`.

    >>> LogContrastive.name
    'log-contrastive'
    """

    name = "log-contrastive"
    objective = staticmethod(losses.log_contrastive)


@dataclass(frozen=True)
class NMSE(Proxy):
    """Minus the mean squared error to the ideal Gram matrix, see `losses.nmse`.

    >>> import torch
    >>> round(NMSE()(torch.ones(4, 2), torch.tensor([0, 0, 1, 1])), 6)  # half of the pairs should be 0 and are 1
    -0.5
    """

    name = "nmse"
    objective = staticmethod(losses.nmse)


@dataclass(frozen=True)
class SRS1(Proxy):
    """Minus the mean absolute error to the ideal Gram matrix, see `losses.srs_1`.

    >>> SRS1.name
    'srs-1'
    """

    name = "srs-1"
    objective = staticmethod(losses.srs_1)


@dataclass(frozen=True)
class Raw(Proxy):
    """The mean signed kernel value of pairs, see `losses.raw`.

    >>> Raw.name
    'raw'
    """

    name = "raw"
    objective = staticmethod(losses.raw)
