"""NCTI: how near the features are to neural collapse on the target data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..method import Reference
from .discriminant import discriminant_logits, leading_components, within_covariance
from .score import Score, class_counts, class_means

__all__ = ["NCTI", "CollapseTerms", "collapse_terms", "ncti_among"]

_SMALL = 1e-10


class CollapseTerms(NamedTuple):
    """The three terms of a part on one target.

    Args:
        geometry: ||H||_*, nuclear norm of the features in the discriminant space; larger is better.
        centre: mean p(y | h), how well the nearest centre predicts; larger is better.
        variability: sum_c ||Z_c||_*, nuclear norms of every class's probabilities; smaller is better.
    """

    geometry: float
    centre: float
    variability: float


def collapse_terms(features: Tensor, labels: Tensor, *, components: int = 64) -> CollapseTerms:
    """What neural collapse consists of: geometry of the class means, nearest-centre prediction, spread within classes.

    The leading principal components are taken to Fisher's discriminant space, where the covariance within classes is
    the identity; Z are discriminant analysis's class probabilities there.

    Args:
        features: (N, D).
        labels: (N,) in 0 to C - 1.
        components: most principal components, >= 1, default 64.

    References:
        Z. Wang, Y. Luo, L. Zheng, Z. Huang, M. Baktashmotlagh, How Far Pre-trained Models Are from Neural Collapse on
        the Target Dataset Informs their Transferability, ICCV 2023,
        https://openaccess.thecvf.com/content/ICCV2023/html/Wang_How_Far_Pre-trained_Models_Are_from_Neural_Collapse_on_the_Target_ICCV_2023_paper.html

    Departs from the authors' code, in which the covariance between classes is shrunk as well before directions are
    chosen.

    >>> terms = collapse_terms(torch.tensor([[0.0], [1.0], [20.0], [21.0]]).double(), torch.tensor([0, 0, 1, 1]))
    >>> round(terms.centre, 3), round(terms.variability, 3)  # two classes of two samples, sqrt(2) each
    (1.0, 2.828)
    """
    x = leading_components(features, most=components)
    energy = float(x.square().mean(0)[:32].sum())
    shrinkage = max(math.exp(-energy), _SMALL)
    shrinkage = 0.0 if shrinkage == _SMALL else shrinkage
    posterior = discriminant_logits(x, labels, shrinkage=shrinkage).softmax(1)
    norms = [torch.linalg.matrix_norm(posterior[labels == c], "nuc") for c in range(int(labels.max()) + 1)]
    return CollapseTerms(
        geometry=float(torch.linalg.matrix_norm(_discriminant_space(x, labels, shrinkage), "nuc")),
        centre=float(posterior.gather(1, labels[:, None]).mean()),
        variability=float(torch.stack(norms).sum()),
    )


def _discriminant_space(x: Tensor, labels: Tensor, shrinkage: float) -> Tensor:
    """Centred x in the at most C - 1 directions of the class means, the covariance within classes the identity."""
    covariance = within_covariance(x, labels)
    size = covariance.trace() / len(covariance)
    shrunk = (1 - shrinkage) * covariance + shrinkage * size * torch.eye(len(x.T), dtype=x.dtype, device=x.device)
    values, vectors = torch.linalg.eigh(shrunk)
    kept = values > max(float(values[-1]) * len(values) * torch.finfo(x.dtype).eps, 1e-300)
    if not bool(kept.any()):
        return x[:, :1] * 0
    white = (x - x.mean(0)) @ (vectors[:, kept] / values[kept].sqrt())
    means = class_means(white, labels) * (class_counts(labels) / len(labels)).sqrt()[:, None]
    directions = torch.linalg.svd(means, full_matrices=False).Vh[: len(means) - 1]
    return white @ directions.T


def ncti_among(terms: Sequence[CollapseTerms]) -> list[float]:
    """The published index: each term min-max normalised over the parts that are compared, then geometry + centre -
    log variability.

    Args:
        terms: of every part that is compared, on one target.

    Returns:
        One number a part, higher is better; it depends on which others are compared.

    >>> ncti_among([CollapseTerms(1.0, 0.5, 4.0), CollapseTerms(2.0, 0.9, 2.0)])
    [-1.0, 2.0]
    """
    columns = [
        [term.geometry for term in terms],
        [term.centre for term in terms],
        [-math.log(term.variability) for term in terms],
    ]
    normalised = [_between(column, offset) for column, offset in zip(columns, (0.0, 0.0, 1.0), strict=True)]
    return [sum(values) for values in zip(*normalised, strict=True)]


def _between(column: list[float], offset: float) -> list[float]:
    low, high = min(column), max(column)
    return [(value - low) / (high - low) - offset if high > low else 0.0 for value in column]


@dataclass(frozen=True)
class NCTI(Score):
    """log geometry + log centre - log variability of `collapse_terms`.

    Args:
        components: most principal components, >= 1, default 64.

    Departs from the paper, whose index is defined only among the parts that are compared: it normalises each term over
    them (`ncti_among`). A score sees one part; logarithms bring its terms to one scale instead.

    >>> y = torch.tensor([0, 0, 1, 1])
    >>> NCTI()(torch.tensor([[0.0], [1.0], [20.0], [21.0]]), y) > NCTI()(torch.tensor([[0.0], [8.0], [3.0], [9.0]]), y)
    True
    """

    name: ClassVar[str] = "ncti"
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "Z. Wang, Y. Luo, L. Zheng, Z. Huang, M. Baktashmotlagh",
            "How Far Pre-trained Models Are from Neural Collapse on the Target Dataset Informs their Transferability",
            "ICCV",
            2023,
            "https://openaccess.thecvf.com/content/ICCV2023/html/"
            "Wang_How_Far_Pre-trained_Models_Are_from_Neural_Collapse_on_the_Target_ICCV_2023_paper.html",
        ),
    )

    components: int = 64

    def value(self, features: Tensor, labels: Tensor, source: Tensor | None) -> float:
        """The sum of the three logarithms."""
        terms = collapse_terms(features, labels, components=self.components)
        logs = [math.log(max(term, _SMALL)) for term in terms]
        return logs[0] + logs[1] - logs[2]
