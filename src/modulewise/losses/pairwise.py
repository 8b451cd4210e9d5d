"""Pairwise objectives on a kernel's Gram matrix: pairs of one class alike, pairs of two classes unlike.

Pairs of two classes are *negative*, pairs n != m of one class *positive*. Of the pairwise objectives, all to be
maximised, each has a version on negative pairs alone; as published, the mean over those pairs replaces what the
objective says of all (and a cosine is taken over them).

Where only some pairs are known, y is an int8 matrix (N, N) instead of labels: 1 for a pair of one class, -1 for one of
two, 0 for one that nobody has compared, which counts nowhere. A matrix without 0 is as good as labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from ..errors import MethodError
from ..partition.tree import is_fake
from .rows import compared, same_class, widened

__all__ = [
    "PAIRWISE_OBJECTIVES",
    "PairwiseObjective",
    "alignment",
    "contrastive",
    "ideal_gram",
    "log_contrastive",
    "nmse",
    "raw",
    "srs_1",
    "srs_2",
    "srs_loss",
    "upper_triangle_alignment",
]


class PairwiseObjective(Protocol):
    """objective(gram, y, minimum=..., maximum=...) -> scalar, to be maximised.

    Args:
        gram: G (N, N), a kernel's values.
        y: class indices (N,), two classes or more; or what is known of pairs, int8 (N, N).
        minimum: the infimum of the kernel.
        maximum: the supremum of the kernel.
        negatives_only: leave pairs of one class out, default False.

    Raises:
        MethodError: no pair of two classes is there (looked at on the CPU only), or y or G has another shape.
    """

    def __call__(
        self, gram: Tensor, y: Tensor, /, *, minimum: float, maximum: float, negatives_only: bool = False
    ) -> Tensor:
        """The objective of one batch."""


def _readable(y: Tensor) -> bool:
    """Whether reading values costs nothing: elsewhere the host would wait for the device at every step."""
    return y.device.type == "cpu" and not is_fake(y)


def _pairs(gram: Tensor, y: Tensor, *, negatives_only: bool, diagonal: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """G in float32 or wider, which pairs are of one class, and which pairs count; all (N, N)."""
    same, known = compared(y)
    if gram.shape != same.shape:
        raise MethodError(
            f"a Gram matrix {tuple(gram.shape)} was given with {len(y)} labels, expected {tuple(same.shape)}; "
            "give one label per sample"
        )
    different = known & ~same
    if _readable(y) and not bool(different.any()):
        raise MethodError(
            f"a batch of {len(y)} samples of one class was given, a pairwise objective needs two or more "
            "in every batch; shuffle the data, enlarge the batch or drop the last one"
        )
    if negatives_only:
        return widened(gram), same, different
    return widened(gram), same, known if diagonal else known.fill_diagonal_(False)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return (values * counted).sum() / counted.sum()


def _ideal(same: Tensor, *, minimum: float, maximum: float, dtype: torch.dtype) -> Tensor:
    return maximum * same.to(dtype) + minimum * (~same).to(dtype)


def ideal_gram(y: Tensor, *, minimum: float, maximum: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """The Gram matrix G* to reach: the kernel's maximum within a class, its minimum across classes.

    Args:
        y: class indices (N,).
        minimum: the infimum of the kernel.
        maximum: the supremum of the kernel.
        dtype: element type of the result.

    Returns:
        (N, N).

    >>> ideal_gram(torch.tensor([0, 1]), minimum=-1.0, maximum=1.0).tolist()
    [[1.0, -1.0], [-1.0, 1.0]]
    """
    return _ideal(same_class(y), minimum=minimum, maximum=maximum, dtype=dtype)


def srs_loss(
    gram: Tensor, y: Tensor, /, *, minimum: float, maximum: float, power: float = 2.0, negatives_only: bool = False
) -> Tensor:
    """Supervised representation similarity, R = (1/N^2) sum_nm |G*_nm - G_nm|^p, to be minimised; n = m included.

    With negative pairs alone the mean of |minimum - G_nm|^p over them.

    Args:
        gram: G (N, N), a kernel's values.
        y: class indices (N,), two classes or more.
        minimum: the infimum of the kernel.
        maximum: the supremum of the kernel.
        power: p >= 1; published 1 ("SRS-1") and 2 ("SRS-2"), default 2.
        negatives_only: leave pairs of one class out, default False.

    Raises:
        MethodError: p is below 1, all samples are of one class (looked at on the CPU only), or y or G has another
            shape.

    References:
        S. Duan, S. Yu, Y. Chen, J. C. Príncipe, On Kernel Method-Based Connectionist Models and Supervised Deep
        Learning Without Backpropagation, Neural Computation 2020, https://arxiv.org/abs/1802.03774

    Departs from the paper: section 4.3 prints the minimum for pairs of one class; its sections 4.2.2 and 4.2.3 and
    both theorems need the maximum there, as here. The term on weight norms is left to the optimiser.

    >>> srs_loss(torch.ones(2, 2), torch.tensor([0, 1]), minimum=-1.0, maximum=1.0, power=1.0).item()
    1.0
    """
    if not power >= 1:
        raise MethodError(f"power={power} was given, expected 1 or more; the paper's are 1 and 2")
    gram, same, counted = _pairs(gram, y, negatives_only=negatives_only, diagonal=True)
    ideal = _ideal(same, minimum=minimum, maximum=maximum, dtype=gram.dtype)
    return _mean((ideal - gram).abs().pow(power), counted)


def srs_1(gram: Tensor, y: Tensor, /, *, minimum: float, maximum: float, negatives_only: bool = False) -> Tensor:
    """Minus `srs_loss` with p = 1; arguments and errors are those of every `PairwiseObjective`.

    >>> srs_1(torch.ones(2, 2), torch.tensor([0, 1]), minimum=-1.0, maximum=1.0).item()
    -1.0
    """
    return -srs_loss(gram, y, minimum=minimum, maximum=maximum, power=1.0, negatives_only=negatives_only)


def srs_2(gram: Tensor, y: Tensor, /, *, minimum: float, maximum: float, negatives_only: bool = False) -> Tensor:
    """Minus `srs_loss` with p = 2, also known as `nmse`; arguments and errors as in every `PairwiseObjective`.

    >>> srs_2(torch.ones(2, 2), torch.tensor([0, 1]), minimum=-1.0, maximum=1.0).item()
    -2.0
    """
    return -srs_loss(gram, y, minimum=minimum, maximum=maximum, power=2.0, negatives_only=negatives_only)


nmse = srs_2
"""The negative mean squared error to the ideal Gram matrix: `srs_2` by the name it has in the later paper."""


def raw(
    gram: Tensor, y: Tensor, /, *, minimum: float = 0.0, maximum: float = 1.0, negatives_only: bool = False
) -> Tensor:
    """Mean signed kernel value over pairs n != m, (sum_same k - sum_different k) / #pairs.

    Arguments and errors as in every `PairwiseObjective`; the kernel's range is not used. With negative pairs alone
    minus their mean.

    >>> raw(torch.ones(2, 2), torch.tensor([0, 1])).item()
    -1.0
    """
    gram, same, counted = _pairs(gram, y, negatives_only=negatives_only)
    return _mean(gram * (2 * same.to(gram.dtype) - 1), counted)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
    return (a * b).sum() / torch.where(norms > 0, norms, torch.ones_like(norms))


def _refuse_zero_ideal(minimum: float, *, negatives_only: bool) -> None:
    if negatives_only and minimum == 0:
        raise MethodError(
            "negatives_only was given with a kernel whose minimum is 0, alignment has no ideal Gram matrix to be "
            "aligned with then, it vanishes on negative pairs; choose a kernel that reaches below 0 (tanh) or "
            "another objective"
        )


def alignment(gram: Tensor, y: Tensor, /, *, minimum: float, maximum: float, negatives_only: bool = False) -> Tensor:
    """Kernel alignment, the cosine <G, G*> / (||G|| ||G*||) over all pairs, n = m included; 1 where G = G*.

    G* can be reached where it is positive semidefinite: with a minimum of 0 by as many orthogonal directions as
    there are classes, with a minimum of -1 by two classes alone. With a minimum of -1 and C >= 2 classes of equal
    size the largest value is 2 sqrt(C - 1) / C, reached by classes that collapse to the corners of a simplex (k = 1
    within, -1/(C - 1) across): the cosine of G* and its projection on the cone of positive semidefinite matrices.
    Where G is zero on all pairs that count, the value is 0 and so is the gradient.

    Arguments and errors as in every `PairwiseObjective`; negative pairs alone with a minimum of 0 are refused, since
    G* vanishes on them.

    >>> gram = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    >>> round(alignment(gram, torch.tensor([0, 1]), minimum=-1.0, maximum=1.0).item(), 6)
    1.0
    """
    _refuse_zero_ideal(minimum, negatives_only=negatives_only)
    gram, same, counted = _pairs(gram, y, negatives_only=negatives_only, diagonal=True)
    ideal = _ideal(same, minimum=minimum, maximum=maximum, dtype=gram.dtype)
    return _cosine(gram * counted, ideal * counted)


def upper_triangle_alignment(
    gram: Tensor, y: Tensor, /, *, minimum: float, maximum: float, negatives_only: bool = False
) -> Tensor:
    """Kernel alignment over pairs n < m alone, the cosine of the strict upper triangles of G and G*.

    Without the diagonal nothing fixes the scale of G: the value is 1 for every G = (1 - a) I + a G*, 0 < a <= 1,
    thus also for classes that hardly hold together, and with a minimum of -1 also for more than two classes (a <=
    1/((C - 2) n + 1) with n samples each). `alignment` is 1 for G* alone. Where G or G* is zero on all pairs that
    count, the value is 0 and so is the gradient.

    Arguments and errors as for `alignment`.

    >>> gram = torch.tensor([[1.0, -0.5], [-0.5, 1.0]])
    >>> upper_triangle_alignment(gram, torch.tensor([0, 1]), minimum=-1.0, maximum=1.0).item()
    1.0
    """
    _refuse_zero_ideal(minimum, negatives_only=negatives_only)
    gram, same, counted = _pairs(gram, y, negatives_only=negatives_only)
    upper = counted.triu(1)
    return _cosine(gram * upper, _ideal(same, minimum=minimum, maximum=maximum, dtype=gram.dtype) * upper)


def contrastive(
    gram: Tensor, y: Tensor, /, *, minimum: float = 0.0, maximum: float = 1.0, negatives_only: bool = False
) -> Tensor:
    """Share of the pairs of one class, sum_same e^k / sum_all e^k over pairs n != m, in [0, 1].

    0 with a zero gradient where no two samples share a class. Arguments and errors as in every `PairwiseObjective`;
    the kernel's range is not used. With negative pairs alone minus the mean of e^k over them.

    >>> round(contrastive(torch.zeros(3, 3), torch.tensor([0, 0, 1])).item(), 4)
    0.3333
    """
    gram, same, counted = _pairs(gram, y, negatives_only=negatives_only)
    weights = gram.exp() * counted
    return -weights.sum() / counted.sum() if negatives_only else (weights * same).sum() / weights.sum()


def log_contrastive(
    gram: Tensor, y: Tensor, /, *, minimum: float = 0.0, maximum: float = 1.0, negatives_only: bool = False
) -> Tensor:
    """Logarithm of `contrastive`, log sum_same e^k - log sum_all e^k over pairs n != m.

    Arguments and errors as in every `PairwiseObjective`, and a batch in which no two samples share a class is refused
    (off the CPU the value is minus infinity); the kernel's range is not used. With negative pairs alone minus the
    logarithm of the mean of e^k over them.

    >>> round(log_contrastive(torch.zeros(3, 3), torch.tensor([0, 0, 1])).exp().item(), 4)
    0.3333
    """
    gram, same, counted = _pairs(gram, y, negatives_only=negatives_only)
    everything = gram.masked_fill(~counted, -torch.inf).logsumexp((0, 1))
    if negatives_only:
        return counted.sum().to(gram.dtype).log() - everything
    positive = same & counted
    if _readable(y) and not bool(positive.any()):
        raise MethodError(
            f"a batch of {len(y)} samples of {len(y)} classes was given, log_contrastive needs two samples of one "
            "class in every batch; enlarge the batch or take contrastive"
        )
    return gram.masked_fill(~positive, -torch.inf).logsumexp((0, 1)) - everything


PAIRWISE_OBJECTIVES: Mapping[str, PairwiseObjective] = MappingProxyType(
    {
        "alignment": alignment,
        "contrastive": contrastive,
        "log-contrastive": log_contrastive,
        "nmse": nmse,
        "raw": raw,
        "srs-1": srs_1,
        "srs-2": srs_2,
        "upper-triangle-alignment": upper_triangle_alignment,
    }
)
"""The pairwise objectives by name."""
