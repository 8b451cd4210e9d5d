"""What a part with synthetic inputs and a synthetic gradient does: learn from x and y, wait for nobody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...losses import sum_squared_error
from ...losses.rows import widened
from ...objective import Context, Objective, Role, Signal, Site
from ..objectives import TaskLoss
from ..reference.backprop import input_gradients, received_gradient
from .synthetic_gradients_objective import predictor_loss

__all__ = ["Unlocked"]


class Unlocked(Objective):
    """A part above the first: it runs on p(x), and follows its guessed gradient there, or the task loss at the end.

    Args:
        site: where the objective sits; a part that reads a boundary.
        inputs: p, forward(x) -> guess of what enters the part.
        predictor: s, forward(h, y) -> guess of one sample's gradient; None for the last part.
    """

    role: ClassVar[Role] = Role.FEEDBACK

    reads_input_gradient = True

    def __init__(self, site: Site, inputs: nn.Module, predictor: nn.Module | None) -> None:
        super().__init__()
        self.inputs, self.predictor = inputs, predictor
        self.task = TaskLoss(site.loss) if predictor is None else None
        self.hears = predictor is not None

    def forward(self, context: Context) -> Signal:
        """The part's loss on the predicted input; in the last part the input predictor's as well."""
        assert context.run is not None
        with torch.no_grad():
            guess = self.inputs(context.x)
        # The value is the guess; its gradient gathers where the engine expects the true input's, and unscales it.
        h_out = context.run(guess + (context.h_in - context.h_in.detach()))
        if self.task is not None:
            loss = self.task.loss(h_out, context.labels)
            return Signal(loss=loss + self._input_error(context), report=loss)
        return self._followed(h_out, context.labels)

    def _followed(self, h_out: Tensor, y: Any) -> Signal:
        """A loss whose gradient at h_out is the guess."""
        assert self.predictor is not None
        with torch.no_grad():
            gradient = (self.predictor(h_out.detach(), y) / len(h_out)).to(h_out.dtype)
        return Signal(loss=(widened(h_out) * widened(gradient)).sum(), report=gradient.norm())

    def messages(self, context: Context) -> Mapping[int, Tensor]:
        """The gradient at the predicted input, to the part whose output it predicts."""
        return input_gradients(context)

    def hear(self, context: Context) -> Signal:
        """Squared errors of both predictors: against the gradient that arrived, and the input that did."""
        assert self.predictor is not None
        guess = self.predictor(context.h_out.detach(), context.labels)
        return Signal(loss=predictor_loss(guess, received_gradient(context)) + self._input_error(context))

    def _input_error(self, context: Context) -> Tensor:
        return sum_squared_error(self.inputs(context.x), context.h_in.detach())
