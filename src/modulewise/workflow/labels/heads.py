"""Output layers trained on features that do not change: one convex problem, solved to its end, the same every time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ... import losses
from ...errors import DataError, MethodError
from ...seeding import preserved_generators, set_generators

__all__ = ["HeadCriterion", "head_objective", "train_head"]

HeadCriterion = Callable[[Tensor, Tensor], Tensor]
"""criterion(logits (N, C), labels (N,)) -> scalar, a mean over samples."""


def head_objective(
    weight: Tensor, bias: Tensor | None, features: Tensor, labels: Tensor, *, loss: HeadCriterion, penalty: float
) -> Tensor:
    """What a head minimises, loss(h W^T + b, y) + penalty / 2 ||W||^2.

    Args:
        weight: W (C, D).
        bias: b (C,), or None.
        features: h (N, D).
        labels: y (N,), classes 0 to C - 1.
        loss: the criterion.
        penalty: >= 0; the bias is not penalised.

    >>> h, y = torch.eye(2), torch.tensor([0, 1])
    >>> round(head_objective(torch.zeros(2, 2), None, h, y, loss=losses.classification, penalty=1.0).item(), 4)
    0.6931
    """
    return loss(nn.functional.linear(features, weight, bias), labels) + penalty / 2 * weight.square().sum()


def train_head(
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    epochs: int = 300,
    seed: int = 0,
    loss: HeadCriterion = losses.classification,
    penalty: float = 1e-3,
    bias: bool = True,
) -> nn.Linear:
    """A linear output layer fitted to frozen features, min_{W, b} loss(h W^T + b, y) + penalty / 2 s^2 ||W||^2.

    s^2 is the mean of ||h||^2: features times a constant give logits that are the same, so that one penalty suits every
    part. All samples are in every step of L-BFGS with a line search, in float64. With a penalty the optimum is
    one point (with the cross-entropy; of the bias up to what the loss does not see), which the seed moves by no more
    than the tolerance of the search.

    Args:
        features: h (N, D), finite; axes after the first are flattened.
        labels: y (N,) int64, 0 to classes - 1. A class without an example is allowed, and never answered with
            confidence.
        classes: C >= 2.
        epochs: most passes over all samples, >= 1, default 300; the search ends earlier where it has arrived.
        seed: of the initial weights.
        loss: `losses.classification` (cross-entropy, default), `losses.multi_margin` (hinge) or your own.
        penalty: >= 0, default 1e-3.
        bias: whether there is a b. Without, the class does not depend on the length of h.

    Returns:
        (D) -> (C), in the type and on the device of the features, with gradients still required; torch's generators are
        where they were.

    Raises:
        DataError: features and labels do not fit, a label is out of range, or a feature is not finite.
        MethodError: a number is out of range.

    Departs from the papers, which train the output layer by stochastic gradient descent: the problem is convex, and the
    curve over numbers of labels should show the features, not the luck of a learning rate.

    >>> head = train_head(torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([1, 0]), classes=2)
    >>> head(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).argmax(1).tolist()
    [1, 0]
    """
    if classes < 2 or epochs < 1 or not penalty >= 0:
        raise MethodError(f"classes={classes}, epochs={epochs}, penalty={penalty}; expected at least 2, 1 and 0")
    _check(features, labels, classes=classes)
    h = features.detach().flatten(1).double()
    scale = h.square().sum(1).mean().sqrt()
    h = h / torch.where(scale > 0, scale, torch.ones_like(scale))
    with preserved_generators():
        set_generators(seed)
        head = nn.Linear(h.shape[1], classes, bias=bias).to(h.device, torch.float64)
    with torch.enable_grad():
        _minimised(head, h, labels.to(h.device), epochs=epochs, loss=loss, penalty=penalty)
    with torch.no_grad():
        head.weight.div_(torch.where(scale > 0, scale, torch.ones_like(scale)))
    return head.to(features.dtype)


def _check(features: Tensor, labels: Tensor, *, classes: int) -> None:
    fits = features.dim() > 1 and labels.dim() == 1 and len(features) == len(labels) > 0
    if not fits or labels.dtype != torch.int64 or not features.is_floating_point():
        raise DataError(
            f"features {tuple(features.shape)} of type {features.dtype} and labels {tuple(labels.shape)} of type "
            f"{labels.dtype} do not fit; expected (N, D) numbers with N >= 1 int64 labels (N,)"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise DataError(
            f"labels reach from {int(labels.min())} to {int(labels.max())}, expected 0 to {classes - 1}; check classes="
        )
    broken = (~features.flatten(1).isfinite().all(1)).nonzero()
    if len(broken):
        raise DataError(
            f"the features of sample {int(broken[0])} are not finite; no head can be trained on them, look at the part "
            "that made them"
        )


def _minimised(head: nn.Linear, h: Tensor, labels: Tensor, *, epochs: int, loss: HeadCriterion, penalty: float) -> None:
    """L-BFGS; started anew where the line search has given up, which a kink of the hinge can make it do."""
    left = epochs
    before = float("inf")
    while left > 0:
        search = torch.optim.LBFGS(
            head.parameters(),
            lr=1.0,
            max_iter=left,
            max_eval=left,
            tolerance_grad=1e-9,
            tolerance_change=1e-12,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure(search: torch.optim.LBFGS = search) -> Tensor:
            search.zero_grad()
            value = head_objective(head.weight, head.bias, h, labels, loss=loss, penalty=penalty)
            value.backward()
            return value

        search.step(closure)
        left -= max(1, int(search.state[head.weight].get("func_evals", left)))
        with torch.no_grad():
            value = float(head_objective(head.weight, head.bias, h, labels, loss=loss, penalty=penalty))
        if not value < before - 1e-9 * max(1.0, abs(before)):
            break
        before = value
    for parameter in head.parameters():
        parameter.grad = None
