"""What the methods around the difference reconstruction loss share: the loss, the output and the targets made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import MethodError
from ...losses import sum_squared_error
from ...losses.rows import widened
from ...objective import Context, Loss, Objective, Signal, Site
from ...partition.tree import map_tensors
from ..objectives import TaskLoss, output_tensor

__all__ = [
    "FeedbackTraining",
    "LastPart",
    "difference_reconstruction_loss",
    "flattened_output",
    "output_step",
    "squared_weights",
    "target_signal",
]


@dataclass(frozen=True, kw_only=True)
class FeedbackTraining:
    """How feedback learns in the feedback phase.

    Args:
        noise: standard deviation of the corruption, in units of h, > 0.
        decay: factor of the squared feedback weights in their loss, >= 0.
        rounds: updates in every step, >= 1.
        warmup: steps at the start in which feedback alone learns, >= 0.

    Raises:
        MethodError: an argument is out of range.

    >>> FeedbackTraining(noise=0.1, decay=0.0, rounds=1, warmup=2).learns(1)
    False
    """

    noise: float
    decay: float
    rounds: int
    warmup: int

    def __post_init__(self) -> None:
        if not (self.noise > 0 and self.decay >= 0 and self.rounds >= 1 and self.warmup >= 0):
            raise MethodError(
                f"noise={self.noise}, decay={self.decay}, rounds={self.rounds}, warmup={self.warmup} were given; give "
                "noise > 0, decay >= 0, rounds >= 1 and warmup >= 0"
            )

    def learns(self, step: int) -> bool:
        """Whether parts learn in this step, and not feedback alone."""
        return step >= self.warmup


def difference_reconstruction_loss(reconstruction: Tensor, corrupted: Tensor, *, noise: float) -> Tensor:
    """(1/noise^2) mean_n ||reconstruction_n - corrupted_n||^2.

    With h~ = h + noise e, e ~ N(0, I), a map to the output with Jacobian J and feedback Q after the difference
    correction, reconstruction = h + Q J (h~ - h), the expectation is ||I - Q J||_F^2 whatever the noise. So with
    decay ||Q||_F^2 added the minimiser is Q = J^T (J J^T + decay I)^-1, the pseudo-inverse damped by the decay. (Where
    the loss is not divided by noise^2 the damping is decay / noise^2.)

    Args:
        reconstruction: what came back (N, ...).
        corrupted: h~, same shape.
        noise: standard deviation of the corruption, > 0.

    >>> difference_reconstruction_loss(torch.ones(2, 3), torch.zeros(2, 3), noise=0.5).item()
    12.0
    """
    return sum_squared_error(reconstruction, corrupted, scale=noise**-2)


def squared_weights(feedback: nn.Module) -> Tensor:
    """The sum of all squared entries of the weight matrices and kernels; biases are no part of it.

    >>> layer = nn.Linear(2, 3)
    >>> torch.equal(squared_weights(layer), layer.weight.square().sum())
    True
    """
    weights = [p for p in feedback.parameters() if p.dim() > 1]
    return torch.stack([widened(weight).square().sum() for weight in weights]).sum() if weights else torch.zeros(())


def flattened_output(output: Any, *, outputs: int) -> Tensor:
    """The raw output as (N, outputs).

    Raises:
        MethodError: a sample's output has another number of elements.

    >>> flattened_output(torch.ones(2, 3, 4), outputs=12).shape
    torch.Size([2, 12])
    """
    tensor = output_tensor(output).flatten(1)
    if tensor.shape[1] != outputs:
        raise MethodError(
            f"outputs={outputs} was given and a sample of the model's output has {tensor.shape[1]} elements; "
            "give the method their number"
        )
    return tensor


def output_step(loss: Loss, output: Any, y: Any, *, step_size: float) -> Tensor:
    """What the output's target adds to the output a: -step_size N dL/da, a step on every sample's own loss.

    Args:
        loss: the task loss.
        output: the model's raw output; its graph is not used.
        y: labels (N, ...).
        step_size: length of the step, > 0.

    Returns:
        (N, outputs), without a graph.

    >>> output_step(lambda a, y: (a - y).square().mean() / 2, torch.ones(4, 1), torch.zeros(4, 1), step_size=0.5)[0]
    tensor([-0.5000])
    """
    a = output_tensor(output)
    with torch.enable_grad():
        leaf = widened(a.detach()).requires_grad_()
        value = loss(map_tensors(lambda t: leaf if t is a else t.detach(), output), y)
        (gradient,) = torch.autograd.grad(value, leaf)
    return -step_size * len(a) * gradient.flatten(1)


def target_signal(context: Context, target: Tensor, *, learns: bool) -> Signal:
    """||h_out - target||^2, the batch mean; a loss without a graph where the part does not learn yet."""
    loss = sum_squared_error(context.h_out, target)
    return Signal(loss=loss if learns else loss.detach())


class LastPart(Objective):
    """The last part: minimises the task loss and tells every earlier part which way the output is to go.

    Args:
        site: where it sits.
        step_size: length of the step from the output to its target, > 0.
        warmup: steps at the start in which it does not learn, >= 0.
    """

    waits = True

    def __init__(self, site: Site, *, step_size: float, warmup: int = 0) -> None:
        super().__init__()
        self.task, self._step_size, self._warmup = TaskLoss(site.loss), step_size, warmup

    def forward(self, context: Context) -> Signal:
        """The task loss; during warmup without a graph."""
        signal = self.task.forward(context)
        assert signal.loss is not None
        return signal if context.step >= self._warmup else Signal(loss=signal.loss.detach())

    def step(self, context: Context) -> Tensor:
        """The output's target less the output, (N, outputs)."""
        return output_step(self.task.loss, context.h_out, context.labels, step_size=self._step_size)

    def messages(self, context: Context) -> Mapping[int, Any]:
        """The output's target less the output, to every earlier part."""
        return dict.fromkeys(range(context.part), self.step(context))
