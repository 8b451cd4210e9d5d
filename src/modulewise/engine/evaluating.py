"""Loss and accuracy of a whole model over batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError
from ..objective import Loss
from ..partition.tree import batch_size, call_model, plain
from .features import evaluating

__all__ = ["Evaluation", "correct", "evaluate", "tally"]


@dataclass(frozen=True)
class Evaluation:
    """What a model reaches on a data set.

    Args:
        loss: mean over samples.
        accuracy: share of right classes, 0 to 1; None where the output gives no classes for the labels.
        samples: number of samples.
    """

    loss: float
    accuracy: float | None
    samples: int


def correct(output: Any, y: Any) -> Tensor | None:
    """For every label whether the largest logit is at it; None where the shapes say otherwise.

    Args:
        output: logits (N, C), (N, T, C) or (N, C, H, W), or a mapping with `logits`.
        y: integer labels (N,), (N, T) or (N, H, W).
    """
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or not isinstance(y, Tensor) or y.is_floating_point():
        return None
    # Where T = C both axes fit; positions come before classes in (N, T, C).
    for axis in (-1, 1) if logits.ndim == 3 else (1, -1):
        if logits.ndim == y.ndim + 1 and logits.movedim(axis, -1).shape[:-1] == y.shape:
            return logits.argmax(axis) == y
    return None


@torch.no_grad()
def evaluate(model: nn.Module, loader: Iterable[Any], loss: Loss) -> Evaluation:
    """Mean loss and accuracy over batches (x, y), in eval mode, without gradients."""
    with evaluating(model):
        return tally(((call_model(model, plain(x)), y, batch_size(x)) for x, y in loader), loss)


@torch.no_grad()
def tally(outputs: Iterable[tuple[Any, Any, int]], loss: Loss) -> Evaluation:
    """Mean loss and accuracy over (output, y, number of samples) of batches."""
    total, right, labels, samples = 0.0, 0.0, 0, 0
    for output, y, n in outputs:
        total += float(loss(output, y)) * n
        hits = correct(output, y)
        if hits is not None:
            right, labels = right + float(hits.sum()), labels + hits.numel()
        samples += n
    if samples == 0:
        raise DataError("the loader gives no batch, expected at least one")
    return Evaluation(total / samples, right / labels if labels else None, samples)
