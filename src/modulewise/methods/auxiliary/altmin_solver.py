"""The solver of online alternating minimisation: codes from the top down, then every part's weights by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ...objective import Loss
from .altmin_updates import altmin_codes, altmin_share
from .coordinate_solver import CoordinateSolver, weight_optimizer
from .part_runs import PartRuns, Task

if TYPE_CHECKING:
    from ...partition import Partition

__all__ = ["CodeSettings", "OnlineCodes"]


@dataclass(frozen=True, kw_only=True)
class CodeSettings:
    """How far codes and weights move; see `OnlineAlternatingMinimisation`."""

    mu: float
    sparsity: float
    code_steps: int
    code_rate: float
    code_momentum: float
    weight_steps: int
    weight_rate: float
    adam: bool


class OnlineCodes(CoordinateSolver):
    """Codes of one batch, and the parts that they train.

    Args:
        partition: the parts.
        loss: the task loss.
        seed: the run's seed.
        settings: how far codes and weights move.
    """

    def __init__(self, partition: Partition, *, loss: Loss, seed: int, settings: CodeSettings) -> None:
        make = weight_optimizer(settings.weight_rate, adam=settings.adam)
        super().__init__(partition, loss=loss, seed=seed, make=make, who="OnlineAlternatingMinimisation")
        self._settings = settings

    def _learn(self, runs: PartRuns, start: list[Tensor], task: Task) -> list[Tensor]:
        s = self._settings
        parts = range(len(start) + 1)
        readers = [[part for part in parts if index in runs.reads[part]] for index in range(len(start))]
        codes = altmin_codes(
            runs,
            start,
            readers,
            task,
            mu=s.mu,
            rate=s.code_rate,
            momentum=s.code_momentum,
            steps=s.code_steps,
            sparsity=s.sparsity,
        )
        shares: list[Tensor] = []
        for _ in range(s.weight_steps):
            now = [self._descend(part, runs, codes, task) for part in parts]
            for part in parts:
                self.weights.step(part)
            shares = shares or now
        return shares

    def _descend(self, part: int, runs: PartRuns, codes: list[Tensor], task: Task) -> Tensor:
        share = altmin_share(part, runs, codes, task)
        return self._differentiate(share, self.weights.leaves(part), part=part)
