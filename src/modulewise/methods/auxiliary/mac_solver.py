"""The solver of the method of auxiliary coordinates: Z-steps and W-steps in turn on one batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ...errors import MethodError
from ...objective import Loss
from .coordinate_solver import CoordinateSolver, weight_optimizer
from .mac_updates import mac_coordinates, mac_penalty, mac_share
from .part_runs import PartRuns, Task

if TYPE_CHECKING:
    from ...partition import Partition

__all__ = ["Alternation", "AuxiliaryCoordinates"]


@dataclass(frozen=True, kw_only=True)
class Alternation:
    """How the two steps take turns; see `MAC`."""

    mu: float
    growth: float
    every: int
    mu_limit: float
    alternations: int
    coordinate_steps: int
    coordinate_rate: float
    weight_steps: int
    weight_rate: float
    adam: bool


class AuxiliaryCoordinates(CoordinateSolver):
    """Coordinates of one batch, and the parts that they train.

    Args:
        partition: the parts.
        loss: the task loss.
        seed: the run's seed.
        settings: how often and how far.

    Raises:
        MethodError: a Z-step is too short for the labels to reach the first coordinate.
    """

    def __init__(self, partition: Partition, *, loss: Loss, seed: int, settings: Alternation) -> None:
        make = weight_optimizer(settings.weight_rate, adam=settings.adam)
        super().__init__(partition, loss=loss, seed=seed, make=make, who="MAC")
        if settings.coordinate_steps < len(partition) - 1:
            raise MethodError(
                f"coordinate_steps={settings.coordinate_steps} was given for {len(partition)} parts, expected at least "
                f"{len(partition) - 1}: a step takes the labels one coordinate down, and part 0 would learn nothing"
            )
        self._settings = settings

    def _learn(self, runs: PartRuns, start: list[Tensor], task: Task) -> list[Tensor]:
        s = self._settings
        mu = mac_penalty(mu=s.mu, growth=s.growth, every=s.every, limit=s.mu_limit, step=self._now)
        parts, z = range(len(start) + 1), start
        shares: list[Tensor] = []
        for _ in range(s.alternations):
            z = mac_coordinates(runs, z, task, mu=mu, rate=s.coordinate_rate, steps=s.coordinate_steps)
            for repeat in range(s.weight_steps):
                now = [self._descend(part, runs, z, task, mu=mu) for part in parts]
                for part in parts:
                    self.weights.step(part)
                shares = shares if repeat else now
        return shares

    def _descend(self, part: int, runs: PartRuns, z: list[Tensor], task: Task, *, mu: float) -> Tensor:
        share = mac_share(part, runs, z, task, mu=mu)
        return self._differentiate(share, self.weights.leaves(part), part=part)
