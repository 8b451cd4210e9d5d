"""Layers backward, index by index, in float64: what rules for single layers are held to."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn

LITERAL = {
    "linear": (lambda: nn.Linear(4, 3), (2, 4)),
    "linear on a sequence": (lambda: nn.Linear(3, 2, bias=False), (2, 3, 3)),
    "conv": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 2, 5, 4)),
    "conv with groups": (lambda: nn.Conv2d(4, 2, (1, 2), padding=(0, 1), dilation=(1, 2), groups=2), (2, 4, 3, 4)),
    "conv 1-d": (lambda: nn.Conv1d(2, 3, 2), (2, 2, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 2, 2, stride=2, padding=1, groups=2), (2, 4, 2, 3)),
}


def literal_below(module: nn.Module, error: Tensor, b: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The error at the input (of this shape), carried back by B, one product at a time."""
    below = torch.zeros(shape, dtype=torch.float64)
    if isinstance(module, nn.Linear):
        for *place, o, i in product(*map(range, (*shape[:-1], *b.shape))):
            below[(*place, i)] += error[(*place, o)] * b[o, i]
        return below
    transposed = isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d)
    groups, taps = module.groups, [range(k) for k in module.kernel_size]
    # A convolution reads place p s - pad + k d of its input for place p of its output; a transposed one the reverse.
    outer, inner = (shape, error.shape) if transposed else (error.shape, shape)
    for n, left, right in product(range(shape[0]), range(b.shape[0]), range(b.shape[1])):
        group = left // (b.shape[0] // groups)
        other = group * b.shape[1] + right
        for p in product(*map(range, outer[2:])):
            for k in product(*taps):
                q = tuple(
                    at * s - pad + tap * d
                    for at, tap, s, pad, d in zip(p, k, module.stride, module.padding, module.dilation, strict=True)
                )
                if not all(0 <= at < size for at, size in zip(q, inner[2:], strict=True)):
                    continue
                if transposed:
                    below[(n, left, *p)] += error[(n, other, *q)] * b[(left, right, *k)]
                else:
                    below[(n, other, *q)] += error[(n, left, *p)] * b[(left, right, *k)]
    return below
