"""The solver of local propagation: descent in weights and activations, ascent in multipliers, all at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import MethodError
from ...objective import Loss
from .coordinate_solver import CoordinateSolver, weight_optimizer
from .local_propagation_updates import constraint, lagrangian_share, zeros
from .part_runs import PartRuns, Task

if TYPE_CHECKING:
    from ...partition import Partition

__all__ = ["SaddleSearch", "SaddleSettings"]


@dataclass(frozen=True, kw_only=True)
class SaddleSettings:
    """How far all variables move; see `LocalPropagation`."""

    iterations: int
    activation_rate: float
    multiplier_rate: float
    weight_rate: float
    damping: float
    epsilon: float
    absolute: bool
    adam: bool


class SaddleSearch(CoordinateSolver):
    """Activations and multipliers of one batch, and the parts that they train.

    Args:
        partition: the parts.
        loss: the task loss.
        seed: the run's seed.
        settings: how far all variables move.

    Raises:
        MethodError: there are too few iterations for the labels to reach part 0.
    """

    def __init__(self, partition: Partition, *, loss: Loss, seed: int, settings: SaddleSettings) -> None:
        make = weight_optimizer(settings.weight_rate, adam=settings.adam)
        super().__init__(partition, loss=loss, seed=seed, make=make, who="LocalPropagation")
        least = len(partition) if settings.damping > 0 else 2 * len(partition) - 1
        if settings.iterations < least:
            raise MethodError(
                f"iterations={settings.iterations} was given for {len(partition)} parts, expected at least {least}: "
                "the labels pass one part down at a time, and part 0 would learn nothing"
            )
        self._settings = settings

    def _learn(self, runs: PartRuns, start: list[Tensor], task: Task) -> list[Tensor]:
        s = self._settings
        activations = [h.clone().requires_grad_() for h in start]
        multipliers = zeros(activations)
        # A sample's step belongs to its own term of the sum, so the mean over N is undone.
        descent = torch.optim.SGD(activations, lr=s.activation_rate * runs.rows) if activations else None
        shares: list[Tensor] = []
        for _ in range(s.iterations):
            shares, violations = self._gradients(runs, activations, multipliers, task)
            for part in range(len(start) + 1):
                self.weights.step(part)
            if descent is not None:
                descent.step()
                descent.zero_grad()
            for multiplier, violation in zip(multipliers, violations, strict=True):
                multiplier.add_(violation, alpha=s.multiplier_rate)
        return shares

    def _gradients(
        self, runs: PartRuns, activations: list[Tensor], multipliers: list[Tensor], task: Task
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Gradients of L on activations and weights, one part's graph at a time; shares, and violations below."""
        s = self._settings
        tie = constraint(s.epsilon, absolute=s.absolute)
        shares, violations = [], []
        for part in range(len(activations) + 1):
            share, violation = lagrangian_share(part, runs, activations, multipliers, task, tie=tie, damping=s.damping)
            leaves = [*activations, *self.weights.leaves(part)]
            shares.append(self._differentiate(share, leaves, part=part))
            violations += [] if violation is None else [violation]
        return shares, violations
