"""What source classes say about target labels: NCE, LEEP, and N-LEEP with a mixture's components as classes."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import DataError
from ..method import Reference
from .score import Score, one_hot

__all__ = ["LEEP", "NCE", "NLEEP", "leep", "mixture_posterior", "nce"]


def nce(source: Tensor, labels: Tensor) -> float:
    """Negative conditional entropy -H(Y | Z) = 1/N sum_i log p(y_i | z_i), z_i the likeliest source class.

    p(y | z) are the frequencies in the same samples. At most 0, at least -log C; 0 where z determines y.

    Args:
        source: class probabilities (N, Z).
        labels: (N,) in 0 to C - 1.

    References:
        A. T. Tran, C. V. Nguyen, T. Hassner, Transferability and Hardness of Supervised Classification Tasks, ICCV
        2019, https://arxiv.org/abs/1908.08142

    >>> nce(torch.eye(2).double()[[0, 0, 1, 1]], torch.tensor([1, 1, 0, 0]))
    0.0
    """
    guess = torch.nn.functional.one_hot(source.argmax(1), source.shape[1]).double()
    joint = one_hot(labels).T @ guess / len(labels)
    marginal = joint.sum(0, keepdim=True).expand_as(joint)
    seen = joint > 0
    return float((joint[seen] * (joint[seen] / marginal[seen]).log()).sum())


def leep(source: Tensor, labels: Tensor) -> float:
    """Log expected empirical prediction 1/N sum_i log sum_z p(y_i | z) theta(x_i)_z.

    p(y, z) = 1/N sum_{i: y_i = y} theta(x_i)_z, p(y | z) = p(y, z) / p(z). At most 0, and at least `nce` with soft z.

    Args:
        source: theta, class probabilities (N, Z).
        labels: (N,) in 0 to C - 1.

    References:
        C. V. Nguyen, T. Hassner, M. Seeger, C. Archambeau, LEEP: A New Measure to Evaluate Transferability of Learned
        Representations, ICML 2020, https://arxiv.org/abs/2002.12462

    The logarithm is taken of every sample's expected prediction, then the mean; some public code leaves it out.

    >>> round(leep(torch.full((4, 2), 0.5).double(), torch.tensor([0, 1, 0, 1])), 6)  # log 1/2
    -0.693147
    """
    joint = one_hot(labels).T @ source / len(labels)
    marginal = joint.sum(0)
    conditional = joint / torch.where(marginal > 0, marginal, 1.0)
    predicted = (source * conditional[labels]).sum(1)
    return float(predicted.log().mean())


def mixture_posterior(features: Tensor, *, components: int, energy: float, seed: int) -> Tensor:
    """p(z | x) of a Gaussian mixture with full covariances on the leading principal components, (N, components).

    Args:
        features: (N, D); divided by one number, so that their unit does not matter.
        components: of the mixture, 1 to N.
        energy: share of variance that the principal components keep, in (0, 1).
        seed: of the k-means start.

    >>> x = torch.tensor([[0.0], [0.1], [9.0], [9.1]]).double()
    >>> mixture_posterior(x, components=2, energy=0.8, seed=0).argmax(1).bincount().tolist()
    [2, 2]
    """
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    scale = features.std(correction=0)
    x = (features / torch.where(scale > 0, scale, 1.0)).cpu().numpy()
    if not (x != x[:1]).any():
        return features.new_full((len(features), components), 1 / components)
    reduced = PCA(n_components=energy, svd_solver="full").fit_transform(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        posterior = GaussianMixture(components, random_state=seed).fit(reduced).predict_proba(reduced)
    return torch.from_numpy(posterior).to(features)


@dataclass(frozen=True)
class NCE(Score):
    """`nce` as a score; reads source probabilities.

    >>> NCE()(torch.zeros(3, 1), torch.tensor([0, 1, 1]), source_probabilities=torch.eye(2)[[0, 1, 1]])
    0.0
    """

    name: ClassVar[str] = "nce"
    reads_source: ClassVar[bool] = True
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "A. T. Tran, C. V. Nguyen, T. Hassner",
            "Transferability and Hardness of Supervised Classification Tasks",
            "ICCV",
            2019,
            "https://arxiv.org/abs/1908.08142",
        ),
    )

    def value(self, features: Tensor, labels: Tensor, source: Tensor | None) -> float:
        """Minus the conditional entropy."""
        assert source is not None
        return nce(source, labels)


@dataclass(frozen=True)
class LEEP(Score):
    """`leep` as a score; reads source probabilities.

    >>> LEEP()(torch.zeros(3, 1), torch.tensor([0, 1, 1]), source_probabilities=torch.eye(2)[[0, 1, 1]])
    0.0
    """

    name: ClassVar[str] = "leep"
    reads_source: ClassVar[bool] = True
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "C. V. Nguyen, T. Hassner, M. Seeger, C. Archambeau",
            "LEEP: A New Measure to Evaluate Transferability of Learned Representations",
            "ICML",
            2020,
            "https://arxiv.org/abs/2002.12462",
        ),
    )

    def value(self, features: Tensor, labels: Tensor, source: Tensor | None) -> float:
        """The mean log of the expected prediction."""
        assert source is not None
        return leep(source, labels)


@dataclass(frozen=True)
class NLEEP(Score):
    """`leep` with the components of a Gaussian mixture on the features as source classes: no source head is needed.

    Args:
        ratio: components a class, >= 1, default 5; there are at most N of them.
        energy: share of variance that principal components keep before, in (0, 1), default 0.8.
        seed: of the mixture's start, default 0. The start picks samples by their place: another order of samples may
            give another mixture, so that this score alone is not exactly invariant to it.

    Raises:
        DataError: a setting is out of range.

    References:
        Y. Li, X. Jia, R. Sang, Y. Zhu, B. Green, L. Wang, B. Gong, Ranking Neural Checkpoints, CVPR 2021,
        https://arxiv.org/abs/2011.11200

    Departs from public code: the logarithm is taken, as in the paper; features are divided by their overall standard
    deviation, since the mixture's regularisation is an absolute number.

    >>> x = torch.tensor([[0.0], [0.1], [0.2], [9.0], [9.1], [9.2]])
    >>> abs(NLEEP(ratio=1)(x, torch.tensor([0, 0, 0, 1, 1, 1]))) < 1e-6
    True
    """

    name: ClassVar[str] = "n-leep"
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "Y. Li, X. Jia, R. Sang, Y. Zhu, B. Green, L. Wang, B. Gong",
            "Ranking Neural Checkpoints",
            "CVPR",
            2021,
            "https://arxiv.org/abs/2011.11200",
        ),
    )

    ratio: int = 5
    energy: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ratio < 1 or not 0 < self.energy < 1 or not math.isfinite(self.energy):
            raise DataError(f"ratio={self.ratio}, energy={self.energy}; expected ratio >= 1 and energy in (0, 1)")

    def value(self, features: Tensor, labels: Tensor, source: Tensor | None) -> float:
        """LEEP of the mixture's posterior."""
        components = min(self.ratio * int(labels.max() + 1), len(labels))
        return leep(mixture_posterior(features, components=components, energy=self.energy, seed=self.seed), labels)
