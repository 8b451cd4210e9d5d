"""Objectives whose parts follow a projected signal, in their layers as well as at their boundary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import Tensor

from ...layer_rules import DirectFeedback, projected_error
from ...objective import Context, Objective, Signal, Site
from ..objectives import output_tensor

__all__ = ["OutputError", "Projected", "TargetedTask", "steered"]


def steered(h: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose gradient with respect to h is `gradient`: their inner product, in single precision at least.

    >>> h = torch.ones(2, requires_grad=True)
    >>> steered(h, torch.tensor([1.0, 2.0])).backward()
    >>> h.grad
    tensor([1., 2.])
    """
    wide = torch.promote_types(h.dtype, torch.float32)
    return (h.to(wide) * gradient.to(wide)).sum()


@final
class OutputError(Objective):
    """The last part: minimises the task loss and sends its error dL/d(output) to all earlier parts.

    Args:
        site: where the objective sits.
        rule: projects the error to the layers of the part; None for the chain rule.
    """

    def __init__(self, site: Site, rule: DirectFeedback | None) -> None:
        super().__init__()
        self.loss = site.loss
        self.rule = self._direct = rule
        self._receivers = range(site.part)
        self._error: Tensor | None = None

    def forward(self, context: Context) -> Signal:
        """The task loss; dL/d(output) is kept until `messages`."""
        output = output_tensor(context.h_out)
        if not output.requires_grad:  # a frozen part: its error is sent all the same
            output.requires_grad_()
        loss = self.loss(context.h_out, context.labels)
        (self._error,) = torch.autograd.grad(loss, output, retain_graph=True)
        if self._direct is None:
            return Signal(loss=loss)
        return Signal(loss=self._direct.announced(loss, self._error), report=loss)

    def messages(self, context: Context) -> Mapping[int, Tensor]:
        """dL/d(output), to every earlier part."""
        assert self._error is not None, "messages are made after forward"
        error, self._error = self._error, None
        if self._direct is not None:
            self._direct.forget()
        return dict.fromkeys(self._receivers, error)


@final
class TargetedTask(Objective):
    """The last part: minimises the task loss, its layers follow a projected signal that is at hand already.

    Args:
        site: where the objective sits.
        rule: projects the signal to the layers of the part; None for the chain rule.
        signal: context -> the signal (N, E).
    """

    def __init__(self, site: Site, rule: DirectFeedback | None, signal: Callable[[Context], Tensor]) -> None:
        super().__init__()
        self.loss = site.loss
        self.rule = self._direct = rule
        self._signal = signal

    def forward(self, context: Context) -> Signal:
        """The task loss."""
        loss = self.loss(context.h_out, context.labels)
        if self._direct is None:
            return Signal(loss=loss)
        return Signal(loss=self._direct.announced(loss, self._signal(context)), report=loss)

    def messages(self, context: Context) -> Mapping[int, Tensor]:
        """Nothing."""
        if self._direct is not None:
            self._direct.forget()
        return {}


@final
class Projected(Objective):
    """An earlier part: follows a signal through a fixed random matrix, at its boundary and in its layers.

    Args:
        site: where the objective sits.
        rule: projects the signal to the layers of the part; None for the chain rule.
        signal: context -> the signal (N, E).
        elements: E.
        scale: length of the projected signal relative to the signal, > 0.
        waits: whether the signal comes from later parts.
    """

    feedback: Tensor

    def __init__(
        self,
        site: Site,
        rule: DirectFeedback | None,
        signal: Callable[[Context], Tensor],
        *,
        elements: int,
        scale: float,
        waits: bool,
    ) -> None:
        super().__init__()
        self.rule = self._direct = rule
        self.waits, self._signal = waits, signal
        features = site.boundary.features
        drawn = torch.randn(elements, features) * (scale / features**0.5)
        self.register_buffer("feedback", drawn.to(site.boundary.dtype))

    def forward(self, context: Context) -> Signal:
        """The projected signal, as the gradient of h_out; its norm is what is shown."""
        signal = self._signal(context)
        gradient = projected_error(signal, self.feedback, context.h_out)
        if self._direct is None:
            return Signal(gradient=gradient)
        loss = self._direct.announced(steered(context.h_out, gradient), signal)
        return Signal(loss=loss, report=gradient.norm())

    def messages(self, context: Context) -> Mapping[int, Tensor]:
        """Nothing."""
        if self._direct is not None:
            self._direct.forget()
        return {}
