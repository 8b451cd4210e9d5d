"""How much a part's output says to a linear classifier: ridge regression on pooled, frozen features."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.features import frozen_boundaries
from ..partition import AnyPartition, Boundary
from ..partition.tree import tensors

__all__ = ["part_features", "probe_accuracy", "probe_parts"]


def probe_accuracy(
    fit: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], *, classes: int, penalty: float = 0.01
) -> float:
    """Accuracy on held-out samples of a linear classifier fitted to others.

    W minimises 1/N ||Z W - T||^2 + penalty ||W||^2, with Z the features standardised by the mean and standard deviation
    of the fitted samples, T the one-hot labels less their mean. Solved in float64 in the smaller of its two forms.

    Args:
        fit: features (N, D) and labels (N,) to fit to.
        held: features (M, D) and labels (M,) to predict.
        classes: number of classes.
        penalty: > 0.

    Returns:
        A share, 0 to 1.

    >>> x, y = torch.tensor([[0.0], [1.0], [0.1], [0.9]]), torch.tensor([0, 1, 0, 1])
    >>> probe_accuracy((x, y), (x, y), classes=2)
    1.0
    """
    (x, y), (x_held, y_held) = fit, held
    mean, std = x.double().mean(0), x.double().std(0, correction=0)
    scale = torch.where(std > 1e-8, std, torch.inf)  # a dead feature says nothing
    z, z_held = (x.double() - mean) / scale, (x_held.double() - mean) / scale
    t = F.one_hot(y, classes).double()
    n, d = z.shape
    if d <= n:
        w = torch.linalg.solve(z.T @ z / n + penalty * torch.eye(d, dtype=z.dtype), z.T @ (t - t.mean(0)) / n)
    else:
        w = z.T @ torch.linalg.solve(z @ z.T / n + penalty * torch.eye(n, dtype=z.dtype), (t - t.mean(0)) / n)
    guess = (z_held @ w + t.mean(0)).argmax(1)
    return float((guess == y_held).double().mean())


def _pooled(boundary: Boundary | None, h: Tensor) -> Tensor:
    """Images to 2 x 2 positions, tokens and volumes (patches of an image) to one, everything else flat, (N, D)."""
    if boundary is not None and h.dim() > 2:
        h = boundary.channels_first(h)
    if h.dim() == 4:
        h = F.adaptive_avg_pool2d(h, (min(2, h.shape[2]), min(2, h.shape[3])))
    elif h.dim() in (3, 5):
        h = h.flatten(2).mean(2)
    return h.flatten(1).float().cpu()


def part_features(partition: AnyPartition, x: Tensor) -> list[Tensor]:
    """What leaves every part for x (N, ...), pooled (N, D); parts run in eval mode without gradients."""
    outputs = frozen_boundaries(partition, len(partition), x, {})
    return [_pooled(part.output, tensors(outputs[part.index])[0]) for part in partition.parts]


def probe_parts(
    partition: AnyPartition,
    fitted: Iterable[tuple[Tensor, Tensor]],
    held: Iterable[tuple[Tensor, Tensor]],
    *,
    classes: int,
) -> list[float]:
    """Accuracy of a linear probe on every part's output, the last part's being the model's own output.

    Args:
        partition: the parts as they are now; nothing in them changes.
        fitted: batches (x, y) to fit probes to.
        held: batches (x, y) to score them on.
        classes: number of classes.
    """
    x, y = _gathered(partition, fitted)
    x_held, y_held = _gathered(partition, held)
    return [probe_accuracy((a, y), (b, y_held), classes=classes) for a, b in zip(x, x_held, strict=True)]


def _gathered(partition: AnyPartition, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], Tensor]:
    features, labels = [], []
    for x, y in batches:
        features.append(part_features(partition, x))
        labels.append(y.cpu())
    return [torch.cat(part) for part in zip(*features, strict=True)], torch.cat(labels)
