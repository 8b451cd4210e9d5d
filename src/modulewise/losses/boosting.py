"""Boosting by telescoping sums: an exponential loss of every module's scores, and the edges that its theory needs."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import MethodError
from .rows import widened, without_autocast

__all__ = ["edge", "exponential_loss", "pair_costs", "weak_learning_edge"]


def _labelled(scores: Tensor, y: Tensor) -> Tensor:
    """Labels as a column (N, 1), after making sure that there is one a row."""
    if scores.dim() != 2 or scores.shape[1] < 2 or y.shape != scores.shape[:1] or y.is_floating_point():
        raise MethodError(
            f"scores {tuple(scores.shape)} and labels {tuple(y.shape)} of {y.dtype} were given, boosting needs scores "
            "(N, C) of two classes or more and one integer class per sample, (N,)"
        )
    # Reading labels on another device would make the host wait for it at every step.
    if y.device.type == "cpu" and len(y) and not 0 <= int(y.min()) <= int(y.max()) < scores.shape[1]:
        raise MethodError(f"labels from {int(y.min())} to {int(y.max())} were given for {scores.shape[1]} classes")
    return y.long()[:, None]


def pair_costs(scores: Tensor, y: Tensor) -> Tensor:
    """How much every wrong class counts, C_nc = exp(s_nc - s_ny) for c != y_n, and 0 for c = y_n.

    Args:
        scores: s (N, C), C >= 2: of module t, alpha_t o_t.
        y: class indices (N,).

    Returns:
        (N, C), in float32 or wider.

    Raises:
        MethodError: scores and labels do not fit.

    References:
        Huang, Ash, Langford, Schapire, Learning Deep ResNet Blocks Sequentially using Boosting Theory, ICML 2018,
        https://arxiv.org/abs/1706.04964 (appendix on several classes)

    >>> pair_costs(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([0])).round(decimals=3)
    tensor([[0.0000, 1.0000, 2.7180]])
    """
    with without_autocast(scores):
        label, s = _labelled(scores, y), widened(scores)
        own = torch.zeros_like(s, dtype=torch.bool).scatter_(1, label, value=True)
        return (s - s.gather(1, label)).masked_fill(own, -torch.inf).exp()


def exponential_loss(scores: Tensor, y: Tensor) -> Tensor:
    """Exponential loss of all pairs with a wrong class, mean_n sum_{c != y} exp(s_nc - s_ny).

    It bounds the share of misclassified samples from above. With two classes it is mean_n exp(-y_n (s_n1 - s_n0)),
    y_n = -1 or 1.

    Args:
        scores: s (N, C), C >= 2.
        y: class indices (N,).

    Raises:
        MethodError: scores and labels do not fit.

    References:
        Huang, Ash, Langford, Schapire, Learning Deep ResNet Blocks Sequentially using Boosting Theory, ICML 2018,
        https://arxiv.org/abs/1706.04964

    >>> exponential_loss(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])).item()
    2.0
    """
    return pair_costs(scores, y).sum(1).mean()


def edge(hypothesis: Tensor, y: Tensor, *, previous: Tensor) -> Tensor:
    """By how much a module beats guessing where the module before it errs, sum C (o_ny - o_nc) / sum C.

    C = pair_costs(previous, y), the weights that boosting gives pairs after the modules before. For two classes it is
    E_{n ~ D}[y_n (o_n1 - o_n0)], D_n proportional to exp(-y_n (s_n1 - s_n0)).

    Args:
        hypothesis: o (N, C), rows in [0, 1] (a softmax).
        y: class indices (N,).
        previous: scores alpha o of the module before (N, C); zeros for the first.

    Returns:
        A scalar in [-1, 1]; 0 is guessing.

    Raises:
        MethodError: scores and labels do not fit.

    References:
        Huang, Ash, Langford, Schapire, Learning Deep ResNet Blocks Sequentially using Boosting Theory, ICML 2018,
        https://arxiv.org/abs/1706.04964

    >>> edge(torch.eye(3), torch.tensor([0, 1, 2]), previous=torch.zeros(3, 3)).item()
    1.0
    """
    label = _labelled(hypothesis, y)
    costs = pair_costs(previous, y)
    with without_autocast(costs):
        o = widened(hypothesis)
        return (costs * (o.gather(1, label) - o)).sum() / costs.sum()


def weak_learning_edge(after: Tensor, before: Tensor) -> Tensor:
    """What a block adds, gamma_t = sqrt((after^2 - before^2) / (1 - before^2)); below 0 where it takes away.

    For two classes the error on the training data falls as exp(-T gamma^2 / 2) where every one of T blocks has gamma_t
    >= gamma > 0, alpha is set from the edges, 1/2 log((1 + after) / (1 - after)), and exp(-y o_after), exp(y o_before)
    do not correlate positively. With more classes there is no such rate here.

    Args:
        after: the edge of the module with the block, in [-1, 1].
        before: that of the module without it, in (-1, 1); 0 for the first.

    References:
        Huang, Ash, Langford, Schapire, Learning Deep ResNet Blocks Sequentially using Boosting Theory, ICML 2018,
        https://arxiv.org/abs/1706.04964 (definition 4.1)

    >>> round(weak_learning_edge(torch.tensor(0.5), torch.tensor(0.3)).item(), 4)
    0.4193
    """
    gain = (after.square() - before.square()) / (1 - before.square())
    return gain.sign() * gain.abs().sqrt()
