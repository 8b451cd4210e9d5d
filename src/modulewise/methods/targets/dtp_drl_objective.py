"""The objectives of difference target propagation with the difference reconstruction loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...objective import Context, Objective, Role, Signal, Site
from .difference_reconstruction import (
    FeedbackTraining,
    LastPart,
    difference_reconstruction_loss,
    flattened_output,
    squared_weights,
    target_signal,
)
from .difference_target_propagation import difference_target

__all__ = ["FirstPart", "InvertedLast", "InvertedPart", "WayBack"]

WayBack = Callable[[Tensor], Tensor]
"""From another activation at a boundary to what the output, and the inverses on the way back from it, make of it."""


class _Inverted(Objective, ABC):
    """A part with an inverse g that learns, in the feedback phase, to bring back what the output says of h_in.

    Args:
        inverse: g, from h_out (of the last part: the output as (N, outputs)) to h_in.
        training: how g learns.
    """

    role: ClassVar[Role] = Role.FEEDBACK
    waits = True

    def __init__(self, inverse: nn.Module, training: FeedbackTraining) -> None:
        super().__init__()
        self.inverse, self._lessons = inverse, training
        self.rounds = training.rounds

    @abstractmethod
    def inverted(self, h_out: Any) -> Tensor:
        """What g is given of what left the part."""

    @abstractmethod
    def received(self, context: Context) -> Tensor:
        """The target of what g is given."""

    def back(self, context: Context, returned: Tensor) -> Tensor:
        """The difference-corrected way back through this part, h_in + g(returned) - g(h_out)."""
        from_output = self.inverse(self.inverted(context.h_out.detach()))
        return difference_target(context.h_in.detach(), self.inverse(returned), from_output)

    def reconstruction(self, context: Context, h_in: Tensor) -> Tensor:
        """R(h~) = h_in + g(R_above(f(h~))) - g(h_out), with R_above the identity at the output; a graph for g alone."""
        assert context.run is not None
        above: WayBack | None = context.feedback.get(context.part + 1)
        with torch.no_grad():
            returned = self.inverted(context.run(h_in))
            returned = returned if above is None else above(returned)
        return self.back(context, returned)

    def rehearse(self, context: Context) -> Signal:
        """The difference reconstruction loss and the decay."""
        corrupted = context.h_in + self._lessons.noise * torch.randn_like(context.h_in)
        returned = self.reconstruction(context, corrupted)
        loss = difference_reconstruction_loss(returned, corrupted, noise=self._lessons.noise)
        return Signal(loss=loss + self._lessons.decay * squared_weights(self.inverse))

    def rehearsed(self, context: Context) -> Mapping[int, WayBack]:
        """R, with the weights that g has now, to the part below."""
        return {context.part - 1: torch.no_grad()(partial(self.reconstruction, context))} if context.part > 1 else {}

    def messages(self, context: Context) -> Mapping[int, Tensor]:
        """The difference target, to the part below."""
        with torch.no_grad():
            return {context.part - 1: self.back(context, self.received(context))}


class InvertedPart(_Inverted):
    """A part between the first and the last: moves to the target from above, and sends one down."""

    def inverted(self, h_out: Any) -> Tensor:
        """All of it."""
        assert isinstance(h_out, Tensor)
        return h_out

    def received(self, context: Context) -> Tensor:
        """The target from above."""
        target: Tensor = context.feedback[context.part + 1]
        return target

    def forward(self, context: Context) -> Signal:
        """Squared distance to the target."""
        return target_signal(context, self.received(context), learns=self._lessons.learns(context.step))


class InvertedLast(_Inverted):
    """The last part: minimises the task loss, and sends the output's target through its inverse.

    Args:
        site: where it sits.
        outputs: elements of one sample's output, >= 1.
        step_size: length of the step from the output to its target, > 0.
        inverse: g, from (N, outputs) to h_in.
        training: how g learns.
    """

    def __init__(
        self, site: Site, inverse: nn.Module, training: FeedbackTraining, *, outputs: int, step_size: float
    ) -> None:
        super().__init__(inverse, training)
        self.last, self._outputs = LastPart(site, step_size=step_size, warmup=training.warmup), outputs

    def inverted(self, h_out: Any) -> Tensor:
        """The raw output as (N, outputs)."""
        return flattened_output(h_out, outputs=self._outputs)

    def received(self, context: Context) -> Tensor:
        """The output's target."""
        return self.inverted(context.h_out) + self.last.step(context)

    def forward(self, context: Context) -> Signal:
        """The task loss."""
        return self.last.forward(context)


class FirstPart(Objective):
    """The first part: moves to the target from above.

    Args:
        warmup: steps at the start in which it does not learn, >= 0.
    """

    waits = True

    def __init__(self, *, warmup: int) -> None:
        super().__init__()
        self._warmup = warmup

    def forward(self, context: Context) -> Signal:
        """Squared distance to the target."""
        return target_signal(context, context.feedback[1], learns=context.step >= self._warmup)
