"""What is known of a part before any target: lists that score every part once and for all tasks alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .features import AnyPart, Pooling, collect, parameters_of

__all__ = ["parameter_count", "source_accuracy"]


def parameter_count(part: AnyPart) -> int:
    """Elements in a part's parameters; the static list "larger is better".

    References:
        P. Singh, S. Hess, J. Vanschoren, How NOT to benchmark your SITE metric: Beyond Static Leaderboards and Towards
        Realistic Evaluation, 2025, https://arxiv.org/abs/2510.06448, where such a list beats scores that look at the
        data, on the usual collections of networks

    >>> parameter_count(torch.nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in parameters_of(part))


def source_accuracy(
    part: AnyPart,
    head: Callable[[Tensor], Tensor],
    loader: Iterable[Any],
    *,
    device: torch.device | str | None = None,
    pool: Pooling | None = None,
) -> float:
    """Accuracy on the task that a part was trained for, with the head it was trained with; another static list.

    Args:
        part: frozen.
        head: features (N, D) to logits (N, Z), on the CPU.
        loader: batches (x, y) of held-out source data.
        device: where the part runs.
        pool: averages positions before features are flattened.

    Returns:
        A share, 0 to 1.

    >>> x, y = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0])
    >>> source_accuracy(torch.nn.Identity(), torch.nn.Identity(), [(x, y)])
    0.5
    """
    features, labels = collect(part, loader, device=device, pool=pool)
    with torch.no_grad():
        return float((head(features).argmax(1) == labels).double().mean())
