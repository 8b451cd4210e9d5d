"""Dependence between two variables, measured on their Gram matrices (HSIC)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from ..errors import MethodError
from .rows import unit_rows, widened

__all__ = [
    "DEPENDENCE_MEASURES",
    "DependenceMeasure",
    "biased_hsic",
    "cca_hsic",
    "hsic",
    "normalized_hsic",
    "plausible_hsic",
]


class DependenceMeasure(Protocol):
    """measure(A, B) -> scalar, of two symmetric Gram matrices (m, m) of the same samples."""

    def __call__(self, a: Tensor, b: Tensor, /) -> Tensor:
        """The dependence seen in one batch."""


def _both(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both Gram matrices in float32 or wider, after making sure that they are of the same samples."""
    if a.dim() != 2 or a.shape[0] != a.shape[1] or a.shape != b.shape:
        raise MethodError(
            f"Gram matrices of shapes {tuple(a.shape)} and {tuple(b.shape)} were given, expected two square ones of "
            "the same samples; make each with a kernel's gram()"
        )
    return widened(a), widened(b)


def _centred(gram: Tensor) -> Tensor:
    """H K H with H = I - 1/m: every row and column then has mean 0."""
    return gram - gram.mean(0, keepdim=True) - gram.mean(1, keepdim=True) + gram.mean()


def hsic(a: Tensor, b: Tensor, /) -> Tensor:
    """The Hilbert-Schmidt independence criterion, tr(A H B H) / (m - 1)^2, H = I - 1/m.

    Args:
        a: Gram matrix (m, m), symmetric.
        b: likewise, of the same samples.

    Returns:
        A scalar >= 0 for kernels that are positive definite; 0 for one sample.

    Raises:
        MethodError: the matrices are not square or not of one size.

    References:
        Gretton, Bousquet, Smola, Schölkopf, Measuring Statistical Dependence with Hilbert-Schmidt Norms, ALT
        2005, https://doi.org/10.1007/11564089_7

    >>> u = torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    >>> v = torch.tensor([[0.0], [0.0], [1.0], [1.0]])  # every combination once: independent
    >>> hsic(u @ u.T, v @ v.T).item(), round(hsic(u @ u.T, u @ u.T).item(), 4)
    (0.0, 0.1111)
    """
    a, b = _both(a, b)
    # tr(AHBH) = tr(HAH HBH), and centring both sides loses no digits where a kernel is close to 1.
    return (_centred(a) * _centred(b)).sum() / max(len(a) - 1, 1) ** 2


def normalized_hsic(a: Tensor, b: Tensor, /) -> Tensor:
    """HSIC(A, B) / sqrt(HSIC(A, A) HSIC(B, B)), the cosine of the centred Gram matrices; 1 where A = B.

    Where one of them is constant (one sample, one class, dead features) the value is 0 and so is the gradient.

    Args:
        a: Gram matrix (m, m), symmetric.
        b: likewise, of the same samples.

    Raises:
        MethodError: the matrices are not square or not of one size.

    >>> gram = torch.eye(3)
    >>> round(normalized_hsic(gram, 2 * gram + 1).item(), 6)
    1.0
    """
    a, b = _both(a, b)
    return (unit_rows(_centred(a).reshape(1, -1)) * unit_rows(_centred(b).reshape(1, -1))).sum()


def cca_hsic(a: Tensor, b: Tensor, /, *, epsilon: float = 1e-5) -> Tensor:
    """HSIC in canonical correlation's normalisation, tr(R_A R_B) with R_K = HKH (HKH + epsilon m I)^-1.

    The trace of the squared normalised cross-covariance operator: with eigenvalues s of HKH, R_K has the eigenvalues
    s / (s + epsilon m), so every direction well above epsilon m counts as 1, whatever the scale of the kernel.

    Args:
        a: Gram matrix (m, m), symmetric.
        b: likewise, of the same samples.
        epsilon: regularisation, > 0; published 1e-5.

    Returns:
        A scalar from 0 to m - 1.

    Raises:
        MethodError: the matrices are not square or not of one size, or epsilon is not positive.

    References:
        Fukumizu, Gretton, Sun, Schölkopf, Kernel Measures of Conditional Dependence, NIPS 2007,
        https://papers.nips.cc/paper/2007/hash/3a0772443a0739141292a5429b952fe6-Abstract.html

    >>> gram = torch.eye(3)  # the centred matrix has the eigenvalues 1, 1, 0
    >>> round(cca_hsic(gram, gram, epsilon=1 / 3).item(), 6)  # (1 / 2)^2 + (1 / 2)^2
    0.5
    """
    if not epsilon > 0:
        raise MethodError(f"epsilon={epsilon} was given, expected a positive regularisation; the published one is 1e-5")
    a, b = _both(a, b)
    return (_whitened(a, epsilon) * _whitened(b, epsilon)).sum()


def _whitened(gram: Tensor, epsilon: float) -> Tensor:
    """R_K, symmetric because HKH commutes with the inverse."""
    centred = _centred(gram)
    shift = epsilon * len(gram) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    # The matrix is never singular, and reading the error code would make the host wait for the device.
    return torch.linalg.solve_ex(centred + shift, centred).result


def biased_hsic(a: Tensor, b: Tensor, /) -> Tensor:
    """HSIC as a mean over pairs, mean(A * B) - 2 mean(a * b) + mean(a) mean(b), a and b the means of the rows.

    The same as tr(A H B H) / m^2, that is ((m - 1) / m)^2 `hsic`.

    Args:
        a: Gram matrix (m, m), symmetric.
        b: likewise, of the same samples.

    Raises:
        MethodError: the matrices are not square or not of one size.

    References:
        Pogodin, Latham, Kernelized information bottleneck leads to biologically plausible 3-factor Hebbian
        learning in deep networks, NeurIPS 2020, https://arxiv.org/abs/2006.07123

    >>> biased_hsic(torch.eye(2), torch.eye(2)).item()
    0.25
    """
    a, b = _both(a, b)
    return (_centred(a) * _centred(b)).mean()


def plausible_hsic(a: Tensor, b: Tensor, /) -> Tensor:
    """pHSIC, the covariance of kernel values over pairs, mean((A - mean A) * B).

    HSIC without the means of single rows: of other samples a synapse has to know no more than mean A. It equals
    `biased_hsic` where the row means of A or of B are all the same; zero does not imply independence.

    Args:
        a: Gram matrix (m, m), symmetric.
        b: likewise, of the same samples.

    Raises:
        MethodError: the matrices are not square or not of one size.

    References:
        Pogodin, Latham, Kernelized information bottleneck leads to biologically plausible 3-factor Hebbian
        learning in deep networks, NeurIPS 2020, https://arxiv.org/abs/2006.07123

    >>> plausible_hsic(torch.eye(2), torch.eye(2)).item()
    0.25
    """
    a, b = _both(a, b)
    return ((a - a.mean()) * (b - b.mean())).mean()


DEPENDENCE_MEASURES: Mapping[str, DependenceMeasure] = MappingProxyType(
    {
        "biased-hsic": biased_hsic,
        "cca-hsic": cca_hsic,
        "hsic": hsic,
        "normalized-hsic": normalized_hsic,
        "plausible-hsic": plausible_hsic,
    }
)
"""The measures by name."""
