"""The outputs of all parts for some batches, from one forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...engine.features import frozen_boundaries
from ...errors import DataError
from ...partition import AnyPartition, Boundary
from ...partition.tree import plain, tensors

__all__ = ["Reading", "pooled", "read"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What went into a network and what left every part, on the host.

    Args:
        input: the model's input (N, ...) as float32; None where it is no single tensor of floats (tokens, a mapping).
        labels: one class a sample (N,), int64; None where labels are of another shape.
        outputs: what left every part, (N, ...) float32; of the last part the model's output.
    """

    input: Tensor | None
    labels: Tensor | None
    outputs: tuple[Tensor, ...]

    def __len__(self) -> int:
        """N, the number of samples."""
        return len(self.outputs[0])


def read(partition: AnyPartition, batches: Iterable[Any]) -> Reading:
    """Run all parts once on every batch, in eval mode without gradients; nothing in the model changes.

    All outputs are kept in host memory together: N times the elements of all boundaries, 4 bytes each.

    Args:
        partition: the parts.
        batches: (x, y), at least one; one view of every sample.

    Raises:
        DataError: there is no batch, or an output is not finite.

    >>> import modulewise as mw
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> partition = mw.Partition(model, cuts=["1"], example=torch.randn(2, 4))
    >>> [tuple(h.shape) for h in read(partition, [(torch.randn(5, 4), torch.arange(5) % 3)]).outputs]
    [(5, 8), (5, 3)]
    """
    inputs: list[Any] = []
    labels: list[Any] = []
    outputs: list[list[Tensor]] = []
    for x, y in batches:
        made = frozen_boundaries(partition, len(partition), plain(x), {})
        outputs.append([tensors(made[part.index])[0].detach().float().cpu() for part in partition.parts])
        inputs.append(x)
        labels.append(y)
    if not outputs:
        raise DataError("there is no batch to look at, expected at least one; is the loader a spent iterator?")
    joined = tuple(torch.cat(part) for part in zip(*outputs, strict=True))
    for index, h in enumerate(joined):
        if not bool(torch.isfinite(h).all()):
            raise DataError(f"the output of part {index} is not finite; lower the learning rate or clip gradients")
    return Reading(input=_floats(inputs), labels=_classes(labels, len(joined[0])), outputs=joined)


def _floats(inputs: list[Any]) -> Tensor | None:
    if not all(isinstance(x, Tensor) and x.is_floating_point() for x in inputs):
        return None
    return torch.cat([x.detach().float().cpu() for x in inputs])


def _classes(labels: list[Any], samples: int) -> Tensor | None:
    if not all(isinstance(y, Tensor) and y.dim() == 1 and not y.is_floating_point() for y in labels):
        return None
    y = torch.cat([y.detach().long().cpu() for y in labels])
    return y if len(y) == samples and bool((y >= 0).all()) else None


def pooled(h: Tensor, boundary: Boundary | None, *, most: int = 1024) -> Tensor:
    """Features for a probe, about as many for every part: images averaged to p x p positions, (N, D).

    p is the largest number with C p^2 <= `most`, at least 1 and at most what there is; tokens and volumes are averaged
    to one position. Averages over wider windows for parts with more channels keep probes of all parts alike in size.

    Args:
        h: what left a part (N, ...), or the model's input.
        boundary: its layout; None for channels first.
        most: features of images, >= 1.

    >>> [pooled(torch.zeros(5, *shape), None).shape[1] for shape in [(1, 28, 28), (64, 8, 8), (7,)]]
    [784, 1024, 7]
    """
    if boundary is not None and h.dim() > 2:
        h = boundary.channels_first(h)
    if h.dim() == 4:
        side = max(1, math.isqrt(most // h.shape[1]))
        h = F.adaptive_avg_pool2d(h, (min(side, h.shape[2]), min(side, h.shape[3])))
    elif h.dim() in (3, 5):
        h = h.flatten(2).mean(2)
    return h.flatten(1)
