"""An error carried back through a linear layer or a convolution by a given matrix, as functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["ConvolutionGeometry", "angle", "error_below", "feedback_linear", "geometry_of", "passed_back"]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


@dataclass(frozen=True)
class ConvolutionGeometry:
    """Stride, zero padding, dilation and groups of a convolution, one entry an axis; whether it is a transposed one."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False


def angle(a: Tensor, b: Tensor) -> Tensor:
    """The angle between two tensors of one shape, in degrees, a scalar from 0 to 180; not a number where one is zero.

    >>> angle(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0]))
    tensor(90.)
    """
    a, b = a.detach().flatten().double(), b.detach().flatten().double()
    cosine = (a @ b) / (a.norm() * b.norm())
    return torch.rad2deg(cosine.clamp(-1, 1).arccos()).float()


def error_below(error: Tensor, x: Tensor, weight: Tensor, geometry: ConvolutionGeometry | None) -> Tensor:
    """The error at a layer's input, carried back by B: error @ B, or the backward of the convolution with B.

    Args:
        error: error at the layer's output, (..., out) or (N, out, *spatial).
        x: the layer's input (only its shape and layout count).
        weight: B, of the shape of the layer's weight.
        geometry: the convolution's geometry; None for a linear layer.

    >>> error_below(torch.ones(1, 2), torch.zeros(1, 3), torch.ones(2, 3), None)
    tensor([[2., 2., 2.]])
    """
    weight = weight.to(error)
    if geometry is None:
        below = error.reshape(-1, error.shape[-1]) @ weight
        return below.reshape(*error.shape[:-1], weight.shape[1]).to(x.dtype)
    if x.dim() < weight.dim():
        return error_below(error[None], x[None], weight, geometry)[0]
    below = torch.ops.aten.convolution_backward(
        error,
        x.to(error.dtype),
        weight,
        None,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        geometry.transposed,
        _output_padding(error.shape[2:], x.shape[2:], weight.shape[2:], geometry),
        geometry.groups,
        [True, False, False],
    )[0]
    return below.to(x.dtype)


def _output_padding(
    out: Sequence[int], below: Sequence[int], kernel: Sequence[int], geometry: ConvolutionGeometry
) -> list[int]:
    """What a transposed convolution added at the end of every axis, read off the sizes; 0 for an ordinary one."""
    if not geometry.transposed:
        return [0] * len(geometry.stride)
    return [
        o - ((b - 1) * s - 2 * p + d * (k - 1) + 1)
        for o, b, k, s, p, d in zip(
            out, below, kernel, geometry.stride, geometry.padding, geometry.dilation, strict=True
        )
    ]


class _PassBack(torch.autograd.Function):
    """Forward: y. Backward: the error to y as it is (dW and db are autograd's), and by B to x."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, weight: Tensor, geometry: ConvolutionGeometry | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        # Detached: an input returned as it is becomes a view, which an in-place ReLU may not change.
        return y.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        return error, error_below(error, x, weight, ctx.geometry), None, None


def passed_back(module: nn.Module, y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The output y, which the module made of x without its graph, with a way back to x by `weight`."""
    passed: Tensor = _PassBack.apply(y, _padded(module, x), weight.detach(), geometry_of(module))
    return passed


def feedback_linear(x: Tensor, weight: Tensor, bias: Tensor | None, feedback: Tensor) -> Tensor:
    """A linear layer, x W^T + b, whose error passes back to x by B; W and b get the chain rule's gradients.

    Args:
        x: (..., inputs).
        weight: W (outputs, inputs).
        bias: b (outputs,), or None.
        feedback: B (outputs, inputs).

    >>> x = torch.ones(1, 2, requires_grad=True)
    >>> feedback_linear(x, torch.zeros(1, 2), None, torch.tensor([[3.0, 4.0]])).backward()
    >>> x.grad
    tensor([[3., 4.]])
    """
    passed: Tensor = _PassBack.apply(F.linear(x.detach(), weight, bias), x, feedback, None)
    return passed


def _padding(module: Any) -> list[tuple[int, int]]:
    """Padding of a convolution as (before, after) for every axis."""
    if module.padding == "valid":
        return [(0, 0) for _ in module.kernel_size]
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(int(p), int(p)) for p in module.padding]


def _pads(module: Any) -> tuple[tuple[int, ...], list[tuple[int, int]], str]:
    """The zero padding that the geometry can say, and what is to be padded before, with its mode."""
    padding = _padding(module)
    if module.padding_mode != "zeros":
        return tuple(0 for _ in padding), padding, module.padding_mode
    return tuple(before for before, _ in padding), [(0, after - before) for before, after in padding], "constant"


def geometry_of(module: nn.Module) -> ConvolutionGeometry | None:
    """The geometry of a convolution; None for a linear layer."""
    if not isinstance(module, _CONVOLUTIONS):
        return None
    transposed = isinstance(module, _TRANSPOSED)
    return ConvolutionGeometry(module.stride, _pads(module)[0], module.dilation, module.groups, transposed)


def _padded(module: nn.Module, x: Tensor) -> Tensor:
    """The input padded where the geometry's zero padding cannot say it (the chain rule undoes that)."""
    if not isinstance(module, _CONVOLUTIONS):
        return x
    _, outside, mode = _pads(module)
    return F.pad(x, list(chain.from_iterable(reversed(outside))), mode=mode) if any(map(any, outside)) else x
