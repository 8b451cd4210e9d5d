"""How an error passes back through single layers: fixed feedback weights in place of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .errors import CheckpointError, MethodError
from .objective import LayerRule
from .seeding import seed_of

__all__ = ["ConvolutionGeometry", "Feedback", "FeedbackWeights", "RuleReport", "error_below", "feedback_linear"]

Feedback = Callable[[str, nn.Module], Tensor]
"""feedback(name, module) -> the weight that carries errors back, of the shape of module.weight."""

# Exact types: a subclass may compute something else (standardised weights, quantisation), whose transpose is
# not its weight's, and the output projection inside nn.MultiheadAttention is never called at all.
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class RuleReport:
    """Which modules a rule changes.

    Args:
        converted: names of the layers through which errors pass by the rule.
        left: names of the other modules with parameters of their own, which keep the chain rule.
    """

    converted: tuple[str, ...]
    left: tuple[str, ...]


@dataclass(frozen=True)
class ConvolutionGeometry:
    """Stride, zero padding, dilation and groups of a convolution, one entry an axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def error_below(error: Tensor, x: Tensor, weight: Tensor, geometry: ConvolutionGeometry | None) -> Tensor:
    """The error at a layer's input, carried back by B: error @ B, or the transposed convolution with B.

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
        False,
        [0] * len(geometry.stride),
        geometry.groups,
        [True, False, False],
    )[0]
    return below.to(x.dtype)


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


def _padding(module: nn.Module) -> list[tuple[int, int]]:
    """Padding of a convolution as (before, after) for every axis."""
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    if module.padding == "valid":
        return [(0, 0) for _ in module.kernel_size]
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(int(p), int(p)) for p in module.padding]


def _geometry(module: nn.Module, x: Tensor) -> tuple[ConvolutionGeometry | None, Tensor]:
    """The layer's geometry, and x padded where zero padding cannot say it (the chain rule undoes that)."""
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return None, x
    padding = _padding(module)
    inside, mode = tuple(before for before, _ in padding), "constant"
    outside = [(0, after - before) for before, after in padding]
    if module.padding_mode != "zeros":
        inside, outside, mode = tuple(0 for _ in padding), padding, module.padding_mode
    if any(map(any, outside)):
        x = F.pad(x, list(chain.from_iterable(reversed(outside))), mode=mode)
    return ConvolutionGeometry(module.stride, inside, module.dilation, module.groups), x


def _shadow(module: nn.Module, weight: Callable[[], Tensor]) -> Callable[[Tensor], Tensor]:
    """A forward with the same value, whose error passes back through weight()."""
    original: Callable[[Tensor], Tensor] = module.forward

    def forward(input: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and input.requires_grad):
            return original(input)
        y = original(input.detach())
        geometry, padded = _geometry(module, input)
        passed: Tensor = _PassBack.apply(y, padded, weight(), geometry)
        return passed

    return forward


@final
class FeedbackWeights(LayerRule):
    """Errors pass back through every nn.Linear and nn.Conv1d/2d/3d by a fixed B instead of the weight W.

    delta_below = B^T delta instead of W^T delta; the weight's own gradient is the chain rule's. B is drawn
    once per layer name, from the distribution of torch's initial weights, U(-a, a) with a = scale /
    sqrt(fan_in). Only layers of exactly these classes are changed; `report` names the modules that keep the
    chain rule (norms, recurrent layers, attention's packed projections, subclasses with a forward of their
    own).

    Args:
        seed: seed of the draws; a layer's B depends on the seed and its name alone.
        scale: width of the distribution, relative to torch's initial weights, > 0.
        feedback: gives B for (name, module) at every forward instead of a draw; `lambda name, module:
            module.weight` is the chain rule.

    References:
        T. P. Lillicrap, D. Cownden, D. B. Tweed, C. J. Akerman, Random synaptic feedback weights support
        error backpropagation for deep learning, Nature Communications 2016,
        https://doi.org/10.1038/ncomms13276

    >>> layer, rule = nn.Linear(3, 2), FeedbackWeights(seed=0)
    >>> x = torch.ones(1, 3, requires_grad=True)
    >>> with rule.installed([("layer", layer)]):
    ...     layer(x).sum().backward()
    >>> torch.equal(x.grad, torch.ones(1, 2) @ rule.state_dict()["layer"])
    True
    """

    def __init__(self, *, seed: int, scale: float = 1.0, feedback: Feedback | None = None) -> None:
        if scale <= 0:
            raise MethodError(f"scale={scale} was given for feedback weights; give a number above 0")
        self._seed, self._scale, self._feedback = seed, scale, feedback
        self._drawn: dict[str, Tensor] = {}

    @contextmanager
    def installed(self, modules: Iterable[tuple[str, nn.Module]]) -> Iterator[None]:
        """Shadow the layers' forwards for the duration of a `with` block."""
        undo: dict[nn.Module, Any] = {}
        try:
            for name, module in modules:
                if type(module) in _LAYERS and module not in undo:
                    forward = _shadow(module, self._source(name, module))
                    undo[module] = module.__dict__.get("forward")
                    module.__dict__["forward"] = forward
            yield
        finally:
            for module, previous in undo.items():
                if previous is None:
                    del module.__dict__["forward"]
                else:
                    module.__dict__["forward"] = previous

    def report(self, modules: Iterable[tuple[str, nn.Module]]) -> RuleReport:
        """Which of these modules the rule changes, and which modules with parameters it leaves."""
        owners = [(name, module) for name, module in modules if any(True for _ in module.parameters(recurse=False))]
        return RuleReport(
            converted=tuple(name for name, module in owners if type(module) in _LAYERS),
            left=tuple(name for name, module in owners if type(module) not in _LAYERS),
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The feedback weights drawn so far, by layer name."""
        return dict(self._drawn)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take feedback weights back; layers that the state does not name are drawn when first met."""
        self._drawn = {name: weight.detach().clone() for name, weight in state.items()}

    def _source(self, name: str, module: nn.Module) -> Callable[[], Tensor]:
        """How to get the layer's B at a forward."""
        if self._feedback is not None:
            given = self._feedback
            return lambda: given(name, module)
        weight = self._weight(name, module)
        return lambda: weight

    def _weight(self, name: str, module: nn.Module) -> Tensor:
        """The layer's drawn B, on the device and in the type of its weight."""
        live = module.weight
        assert isinstance(live, Tensor)
        if name not in self._drawn:
            generator = torch.Generator().manual_seed(seed_of(self._seed, name))
            uniform = torch.rand(live.shape, generator=generator) * 2 - 1
            self._drawn[name] = uniform * (self._scale / live[0].numel() ** 0.5)
        drawn = self._drawn[name]
        if drawn.shape != live.shape:
            raise CheckpointError(
                f"the feedback weight of {name!r} is {tuple(drawn.shape)}, its layer's {tuple(live.shape)}; "
                "load the checkpoint of this model"
            )
        self._drawn[name] = drawn.to(device=live.device, dtype=live.dtype)
        return self._drawn[name]
