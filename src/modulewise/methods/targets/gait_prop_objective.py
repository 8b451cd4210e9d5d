"""Objectives of GAIT-prop: errors in place of targets, so that a small gamma costs no digits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import MethodError
from ...losses.rows import without_autocast
from ...objective import Context, Objective, Signal, Site
from ..objectives import TaskLoss, output_tensor
from .invertible import InvertibleLayer, activation_slope, exact_inverse, soft_orthogonality

__all__ = ["Adjusted", "AdjustedTop", "Incremental", "target_below"]


def target_below(activation: nn.Module, weight: Tensor, h: Tensor, target: Tensor, *, gamma: float) -> Tensor:
    """s_{l-1} - h_{l-1}, where s_{l-1} = f^{-1}((1 - gamma f'^2) h + gamma f'^2 s), f(x) = act(W x + b).

    Args:
        activation: act.
        weight: W (O, I).
        h: h_l (..., O).
        target: s_l - h_l, same shape.
        gamma: share of the target, in (0, 1].

    Returns:
        (..., I).

    >>> target_below(nn.Identity(), 2 * torch.eye(2), torch.zeros(1, 2), torch.ones(1, 2), gamma=0.5)
    tensor([[0.2500, 0.2500]])
    """
    return exact_inverse(activation, weight, h, gamma * activation_slope(activation, h).square() * target)


@dataclass(frozen=True)
class Incremental:
    """A target as a message.

    Args:
        error: m (s - h), float64 (N, ...).
        factor: m.
    """

    error: Tensor
    factor: float

    @property
    def message(self) -> tuple[Tensor, float]:
        """As it travels."""
        return self.error, self.factor


class _Layer:
    """What the part above does with a target: sends on the one below."""

    def __init__(self, layer: InvertibleLayer, *, gamma: float) -> None:
        self.layer, self.gamma = layer, gamma

    def below(self, h: Tensor, target: Incremental) -> Incremental:
        """The target of what entered the part: m grows by 1 / gamma."""
        factor = target.factor / self.gamma
        with torch.no_grad(), without_autocast(h):
            step = target_below(
                self.layer.activation,
                self.layer.linear.weight.double(),
                h.double(),
                target.error / target.factor,
                gamma=self.gamma,
            )
        return Incremental(step * factor, factor)

    def check(self, context: Context, h_out: Tensor) -> None:
        """In the first step, refuse a part that does more than its layer; values are looked at on the CPU alone."""
        if context.step or h_out.device.type != "cpu":
            return
        with torch.no_grad(), without_autocast(h_out):
            found = self.layer(context.h_in.detach().to(self.layer.linear.weight.dtype))
        close = 2e-2 if h_out.dtype.itemsize < 4 or torch.is_autocast_enabled("cpu") else 1e-4
        if found.shape != h_out.shape or not torch.allclose(found, h_out.to(found.dtype), rtol=close, atol=close):
            raise MethodError(
                f"part {context.part} does more than {type(self.layer.activation).__name__} after its Linear, and has "
                "no exact inverse; make its activation a module, and cut after it"
            )


class AdjustedTop(Objective):
    """The last part: the task loss, and the target of the output one step of the loss away, mapped back exactly.

    Args:
        site: where the objective sits.
        layer: the part; None where it is the first.
        gamma: share of the target.
        orthogonality: factor of the soft orthogonality.
    """

    def __init__(self, site: Site, layer: InvertibleLayer | None, *, gamma: float, orthogonality: float) -> None:
        super().__init__()
        self.task, self._orthogonality = TaskLoss(site.loss), orthogonality
        self._layer = None if layer is None else _Layer(layer, gamma=gamma)
        self._target: Incremental | None = None

    def forward(self, context: Context) -> Signal:
        """The task loss, which is shown, and the soft orthogonality."""
        signal = self.task.forward(context)
        if self._layer is None:
            return signal
        assert signal.loss is not None
        output = output_tensor(context.h_out)
        self._layer.check(context, output.detach())
        (gradient,) = torch.autograd.grad(signal.loss, output, retain_graph=True)
        self._target = Incremental(-len(output) * gradient.double(), 1.0)
        if not self._orthogonality:
            return signal
        penalty = self._orthogonality * soft_orthogonality(self._layer.layer.linear.weight)
        return Signal(loss=signal.loss + penalty, report=signal.loss)

    def messages(self, context: Context) -> Mapping[int, tuple[Tensor, float]]:
        """The target of what entered the part, to the part below."""
        if self._layer is None:
            return {}
        assert self._target is not None, "the target is made in forward"
        target, self._target = self._target, None
        return {context.part - 1: self._layer.below(output_tensor(context.h_out).detach(), target).message}


class Adjusted(Objective):
    """An earlier part: follows m (h - s), the gradient of m ||h - s||^2 / 2, and sends a target on.

    Args:
        layer: the part; None for the first, which sends nothing and may be anything.
        gamma: share of the target.
        orthogonality: factor of the soft orthogonality.
    """

    waits = True

    def __init__(self, layer: InvertibleLayer | None, *, gamma: float, orthogonality: float) -> None:
        super().__init__()
        self._orthogonality = orthogonality
        self._layer = None if layer is None else _Layer(layer, gamma=gamma)

    def forward(self, context: Context) -> Signal:
        """The gradient -m (s - h) / N at h_out; half the mean squared length of m (s - h) is shown."""
        h, target = context.h_out, Incremental(*context.feedback[context.part + 1])
        gradient = (-target.error / len(h)).to(h.dtype)
        shown = target.error.square().flatten(1).sum(1).mean() / 2
        if self._layer is None:
            return Signal(gradient=gradient, report=shown)
        self._layer.check(context, h.detach())
        if not self._orthogonality:
            return Signal(gradient=gradient, report=shown)
        penalty = self._orthogonality * soft_orthogonality(self._layer.layer.linear.weight)
        return Signal(loss=penalty, gradient=gradient, report=shown)

    def messages(self, context: Context) -> Mapping[int, tuple[Tensor, float]]:
        """The target of what entered the part, to the part below."""
        if self._layer is None:
            return {}
        target = Incremental(*context.feedback[context.part + 1])
        return {context.part - 1: self._layer.below(context.h_out.detach(), target).message}
