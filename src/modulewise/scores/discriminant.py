"""Linear discriminant analysis with a shrunk covariance: what SFDA and NCTI share."""

from __future__ import annotations

import torch
from torch import Tensor

from .score import class_counts, class_means

__all__ = ["discriminant_logits", "leading_components", "within_covariance"]


def within_covariance(features: Tensor, labels: Tensor) -> Tensor:
    """S_W = sum_c n_c / N cov_c, the mean covariance within classes, (D, D).

    Args:
        features: (N, D).
        labels: (N,) in 0 to C - 1.

    >>> x, y = torch.tensor([[0.0], [2.0], [9.0], [9.0]]).double(), torch.tensor([0, 0, 1, 1])
    >>> within_covariance(x, y).item()
    0.5
    """
    deviation = features - class_means(features, labels)[labels]
    return deviation.T @ deviation / len(features)


def discriminant_logits(features: Tensor, labels: Tensor, *, shrinkage: float) -> Tensor:
    """Logits: log p(x, y = c) up to a constant a sample, of Gaussian classes with one covariance S, (N, C).

    delta_c(x) = x^T S^-1 mu_c - 1/2 mu_c^T S^-1 mu_c + log(n_c / N), S = (1 - a) S_W + a tr(S_W) / D I. Projecting to
    the C - 1 leading directions of Fisher's criterion first gives the same class probabilities: class means differ
    in no other direction.

    Args:
        features: (N, D).
        labels: (N,) in 0 to C - 1.
        shrinkage: a, in [0, 1].

    >>> x, y = torch.tensor([[0.0], [2.0], [8.0], [10.0]]).double(), torch.tensor([0, 0, 1, 1])
    >>> discriminant_logits(x, y, shrinkage=0.0).argmax(1).tolist()
    [0, 0, 1, 1]
    """
    centre = features.mean(0)
    x = features - centre
    means = class_means(x, labels)
    covariance = within_covariance(x, labels)
    size = covariance.trace() / len(covariance)
    identity = torch.eye(len(covariance), dtype=x.dtype, device=x.device)
    shrunk = (1 - shrinkage) * covariance + shrinkage * size * identity
    coefficients = means @ torch.linalg.pinv(shrunk, hermitian=True)
    constant = (class_counts(labels) / len(labels)).log() - 0.5 * (means * coefficients).sum(1)
    return x @ coefficients.T + constant


def leading_components(features: Tensor, *, most: int) -> Tensor:
    """The centred features in their leading principal components, (N, min(most, N, D)).

    Args:
        features: (N, D).
        most: largest number of components, >= 1.

    >>> leading_components(torch.tensor([[0.0, 3.0], [4.0, 0.0]]).double(), most=1).abs().round(decimals=6).tolist()
    [[2.5], [2.5]]
    """
    centred = features - features.mean(0)
    left, singular, _ = torch.linalg.svd(centred, full_matrices=False)
    return left[:, :most] * singular[:most]
