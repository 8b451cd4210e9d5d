"""Classes of outputs that were never told which unit stands for which class (the HSIC bottleneck, unformatted)."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import MethodError

__all__ = ["class_map", "remapped"]


def class_map(outputs: Tensor, y: Tensor, *, classes: int) -> Tensor:
    """The one-to-one map from output units to classes with the most correct samples.

    argmax over one-to-one maps u of #{n : argmax_k outputs_nk = u(y_n)}, found exactly (an assignment problem). Find
    it on training data; on the data that is scored it would be chosen by the score.

    Args:
        outputs: (N, K), K >= classes.
        y: class indices (N,), in [0, classes).
        classes: number of classes.

    Returns:
        (classes,), the unit of every class, on the device of `outputs`.

    Raises:
        MethodError: there are fewer units than classes, or labels do not fit.

    References:
        Ma, Lewis, Kleijn, The HSIC Bottleneck: Deep Learning without Back-Propagation, AAAI 2020,
        https://arxiv.org/abs/1908.01580

    Departs from the paper: its code assigns greedily, class after class, the unit of largest mean.

    >>> class_map(torch.tensor([[0.0, 9.0], [5.0, 1.0]]), torch.tensor([0, 1]), classes=2).tolist()
    [1, 0]
    """
    from scipy.optimize import linear_sum_assignment  # half a second that only this function needs

    if outputs.dim() != 2 or outputs.shape[1] < classes:
        raise MethodError(
            f"outputs of shape {tuple(outputs.shape)} were given for {classes} classes, expected (N, K) with a unit "
            "for every class"
        )
    labels = y.cpu()
    if labels.shape != outputs.shape[:1] or labels.is_floating_point() or ((labels < 0) | (labels >= classes)).any():
        raise MethodError(
            f"labels of shape {tuple(y.shape)} and type {y.dtype} were given for outputs of shape "
            f"{tuple(outputs.shape)}, expected one integer in [0, {classes}) per row"
        )
    units = outputs.shape[1]
    pairs = labels * units + outputs.detach().argmax(1).cpu()
    counts = torch.bincount(pairs, minlength=classes * units).reshape(classes, units)
    _, columns = linear_sum_assignment(counts.numpy(), maximize=True)
    return torch.as_tensor(columns, device=outputs.device)


def remapped(outputs: Tensor, units: Tensor) -> Tensor:
    """Outputs with class c in column c, so that argmax gives the class.

    Args:
        outputs: (N, K).
        units: the unit of every class (classes,), from `class_map`.

    Returns:
        (N, classes).

    >>> remapped(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([2, 0])).tolist()
    [[3.0, 1.0]]
    """
    return outputs[:, units]
