"""What a part with a synthetic gradient does: follow the guess at once, or a mixture when the gradient is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...losses import sum_squared_error
from ...objective import Context, Objective, Role, Signal, Site
from ..reference.backprop import input_gradients, received_gradient

__all__ = ["Guessed", "Mixed", "mixed_gradient", "predictor_loss"]


def predictor_loss(guess: Tensor, gradient: Tensor) -> Tensor:
    """Squared error of a guess (N, ...) of N times the gradient: 1/N sum_n ||guess_n - N gradient_n||^2.

    N times the gradient of a batch mean is the gradient of one sample's loss, which no batch size changes.

    >>> predictor_loss(torch.zeros(2, 3), torch.ones(2, 3))
    tensor(12.)
    """
    return sum_squared_error(guess, len(gradient) * gradient)


def mixed_gradient(gradient: Tensor, guess: Tensor, *, mix: float) -> Tensor:
    """What BP(lambda) follows: lambda gradient + (1 - lambda) guess / N.

    Args:
        gradient: dL/dh as it came from above, (N, ...).
        guess: of one sample's gradient, (N, ...).
        mix: lambda, in [0, 1].

    >>> mixed_gradient(torch.tensor([[4.0]]), torch.tensor([[8.0]]), mix=0.25)
    tensor([[7.]])
    """
    return mix * gradient + (1 - mix) * (guess / len(guess))


class Guessed(Objective):
    """A part that follows its predictor's guess, and a predictor that learns from the gradient sent later.

    Args:
        site: where the objective sits.
        predictor: forward(h, y) -> guess of one sample's gradient, of the shape of h.
    """

    role: ClassVar[Role] = Role.FEEDBACK

    hears = True

    def __init__(self, site: Site, predictor: nn.Module) -> None:
        super().__init__()
        self.predictor = predictor
        self.reads_input_gradient = site.part > 0

    def forward(self, context: Context) -> Signal:
        """The guessed gradient."""
        with torch.no_grad():
            guess = self.predictor(context.h_out.detach(), context.labels) / len(context.h_out)
        return Signal(gradient=guess.to(context.h_out.dtype))

    def messages(self, context: Context) -> Mapping[int, Tensor]:
        """The gradient at the part's inputs, made of its own guess (bootstrapped)."""
        return input_gradients(context)

    def hear(self, context: Context) -> Signal:
        """The predictor's squared error against the gradient that arrived."""
        guess = self.predictor(context.h_out.detach(), context.labels)
        return Signal(loss=predictor_loss(guess, received_gradient(context)))


class Mixed(Objective):
    """A part that waits for the gradient from above, and follows a mixture of it and its predictor's guess.

    Messages are the gradient at the part's inputs that the mixture makes; with true targets a pair, of that and of
    dL/dh by the chain rule alone, which predictors then learn. The last part's message is both in one.

    Args:
        site: where the objective sits.
        predictor: forward(h, y) -> guess of one sample's gradient, of the shape of h.
        mix: lambda, the share of the gradient from above, in [0, 1].
        true_targets: the predictor learns the chain rule's gradient instead of the one that arrived.
    """

    role: ClassVar[Role] = Role.FEEDBACK

    waits = True

    def __init__(self, site: Site, predictor: nn.Module, *, mix: float, true_targets: bool) -> None:
        super().__init__()
        self.predictor, self._mix, self._true_targets = predictor, mix, true_targets
        self.reads_input_gradient = site.part > 0
        self._true: dict[int, Tensor] = {}

    def forward(self, context: Context) -> Signal:
        """The mixture for the part, the squared error for the predictor."""
        h_out = context.h_out
        received = received_gradient(_picked(context, 0))
        target = received_gradient(_picked(context, 1)) if self._true_targets else received
        guess = self.predictor(h_out.detach(), context.labels)
        if self._true_targets:
            self._true = _pulled_back(context, target)
        gradient = mixed_gradient(received, guess.detach(), mix=self._mix)
        return Signal(loss=predictor_loss(guess, target), gradient=gradient.to(h_out.dtype))

    def messages(self, context: Context) -> Mapping[int, Any]:
        """The mixture's gradient at the part's inputs, with the true one where that is wanted."""
        followed = input_gradients(context)
        if not self._true_targets:
            return followed
        true, self._true = self._true, {}
        return {below: (gradient, true[below]) for below, gradient in followed.items()}


def _picked(context: Context, which: int) -> Context:
    """The context with one of two gradients in every message; a single one is both."""
    feedback = {sender: m[which] if isinstance(m, tuple) else m for sender, m in context.feedback.items()}
    return replace(context, feedback=feedback)


def _pulled_back(context: Context, gradient: Tensor) -> dict[int, Tensor]:
    """A gradient at h_out, taken through the part to everything it read, by the part below each boundary."""
    read = dict(context.ports)
    if context.part > 0:
        read[context.part - 1] = context.h_in
    if not read:
        return {}
    pulled = torch.autograd.grad(
        context.h_out,
        list(read.values()),
        gradient.to(context.h_out.dtype),
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(read, pulled, strict=True))
