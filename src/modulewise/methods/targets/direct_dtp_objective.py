"""The objectives of direct difference target propagation: from the output to every part at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...losses import sum_squared_error
from ...objective import Context, Objective, Role, Signal, Site
from .difference_reconstruction import (
    FeedbackTraining,
    LastPart,
    difference_reconstruction_loss,
    flattened_output,
    squared_weights,
    target_signal,
)
from .output_targets import random_features

__all__ = ["DirectPart", "FeedbackSource"]

Features = Callable[[Tensor], Tensor]
"""What a part's feedback weights are given of the output: itself, or tanh of a fixed random projection of it."""


class FeedbackSource(Objective):
    """The last part: minimises the task loss, and sends every earlier part features of the output and of its target.

    Args:
        site: where it sits.
        outputs: elements of one sample's output, >= 1.
        hidden: units of the random hidden layer that all parts but the one below share; None for no such layer.
        step_size: length of the step from the output to its target, > 0.
        warmup: steps at the start in which feedback alone learns, >= 0.
    """

    random: Tensor
    waits = True
    rounds = 1

    def __init__(self, site: Site, *, outputs: int, hidden: int | None, step_size: float, warmup: int) -> None:
        super().__init__()
        self.last = LastPart(site, step_size=step_size, warmup=warmup)
        self._outputs = outputs
        drawn = torch.empty(0 if hidden is None else hidden, outputs).uniform_(-1, 1) / outputs**0.5
        assert site.input is not None
        self.register_buffer("random", drawn.to(site.input.dtype))

    def forward(self, context: Context) -> Signal:
        """The task loss."""
        return self.last.forward(context)

    def features(self, receiver: int, sender: int, output: Any) -> Tensor:
        """tanh(R a); a itself for the part below, and for all where there is no random layer."""
        a = flattened_output(output, outputs=self._outputs)
        if len(self.random) == 0 or receiver == sender - 1:
            return a
        return random_features(a, self.random)

    def rehearsed(self, context: Context) -> Mapping[int, Features]:
        """The function that makes features of an output, to every earlier part."""
        return {k: partial(self.features, k, context.part) for k in range(context.part)}

    def messages(self, context: Context) -> Mapping[int, Tensor]:
        """Features of the output's target less those of the output, to every earlier part."""
        with torch.no_grad():
            a = flattened_output(context.h_out, outputs=self._outputs)
            target = a + self.last.step(context)
            made = {k: partial(self.features, k, context.part) for k in range(context.part)}
            return {k: features(target) - features(a) for k, features in made.items()}


class DirectPart(Objective):
    """An earlier part: moves to h + Q (features of the output's target - features of the output).

    Args:
        site: where it sits.
        training: how Q learns.
        inputs: number of features, >= 1.
        plain: learn by the plain reconstruction loss.
    """

    role: ClassVar[Role] = Role.FEEDBACK
    waits = True
    looks_ahead = True

    def __init__(self, site: Site, training: FeedbackTraining, *, inputs: int, plain: bool) -> None:
        super().__init__()
        # The difference takes a bias away; without it the bias is the mean of h.
        self.back = nn.Linear(inputs, site.boundary.features, bias=plain, dtype=site.boundary.dtype)
        nn.init.xavier_normal_(self.back.weight)
        self.rounds, self._last = training.rounds, site.parts - 1
        self._lessons, self._plain = training, plain

    def rehearse(self, context: Context) -> Signal:
        """The reconstruction of a corrupted h_out from the output that it leads to, and the decay."""
        assert context.ahead is not None
        h, features = context.h_out, context.feedback[self._last]
        corrupted = h + self._lessons.noise * torch.randn_like(h)
        with torch.no_grad():
            there = features(context.ahead(corrupted))
            here = None if self._plain else features(context.ahead(h))
        if here is None:
            loss = sum_squared_error(self.back(there).reshape(h.shape), corrupted)
        else:
            returned = h + self.back(there - here).reshape(h.shape)
            loss = difference_reconstruction_loss(returned, corrupted, noise=self._lessons.noise)
        return Signal(loss=loss + self._lessons.decay * squared_weights(self.back))

    def target(self, context: Context) -> Tensor:
        """The part's target."""
        h = context.h_out.detach()
        with torch.no_grad():
            move = nn.functional.linear(context.feedback[self._last], self.back.weight)
        return h + move.reshape(h.shape)

    def forward(self, context: Context) -> Signal:
        """Squared distance to the target."""
        return target_signal(context, self.target(context), learns=self._lessons.learns(context.step))
