"""Run the parts of a partition on free coordinates: each part one fixed function for the length of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import MethodError
from ...partition.tree import batch_size, plain
from ...seeding import seed_of, set_generators

if TYPE_CHECKING:
    from ...partition import Partition

__all__ = ["PartRuns", "Run", "Task", "check_boundaries", "counts", "positive", "squared_distance"]

Run = Callable[[int, Sequence[Tensor]], Any]
"""run(part, coordinates): the part's output on the coordinates that it reads; coordinate k is that of boundary k."""

Task = Callable[[Any], Tensor]
"""task(output) -> scalar: the task loss of the model's raw output, the labels filled in."""


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """1/N sum_n ||a_n - b_n||^2 of a and b (N, ...), a scalar.

    >>> squared_distance(torch.ones(2, 3), torch.zeros(2, 3))
    tensor(3.)
    """
    return (a - b).square().sum() / len(a)


def positive(who: str, **numbers: float) -> None:
    """Refuse numbers that are not above 0.

    Raises:
        MethodError: one is 0, negative or no number.
    """
    wrong = [f"{name}={value}" for name, value in numbers.items() if not 0 < value < float("inf")]
    if wrong:
        raise MethodError(f"{', '.join(wrong)} was given to {who}; give finite numbers above 0")


def counts(who: str, **numbers: int) -> None:
    """Refuse numbers that are not 1, 2, 3, ...

    Raises:
        MethodError: one is below 1 or no whole number.
    """
    wrong = [f"{name}={value}" for name, value in numbers.items() if not isinstance(value, int) or value < 1]
    if wrong:
        raise MethodError(f"{', '.join(wrong)} was given to {who}; give whole numbers, at least 1")


def check_boundaries(partition: Partition, who: str) -> None:
    """Refuse boundaries that are too coarse for coordinates that differ a little from what the parts give.

    Raises:
        MethodError: a boundary is neither float32 nor float64; part and module are named.
    """
    for part in partition.parts[:-1]:
        boundary = part.output
        if boundary is not None and boundary.dtype not in (torch.float32, torch.float64):
            raise MethodError(
                f"part {part.index} (cut {boundary.name!r}) gives {boundary.dtype}, but {who} keeps coordinates there "
                "that need float32 or float64; convert the model with .float()"
            )


class PartRuns:
    """The parts of one step as functions of the boundaries that they read.

    Every run of a part in a step makes the same random draws, those of (seed, step, part); buffers are written by
    `forward` alone. So a step works on one function, with one dropout mask a part. Skips are read as any boundary.

    Args:
        partition: the parts.
        x: the model's input (N, ...), tuple or mapping.
        seed: the run's seed.
        step: index of the training step.

    Attributes:
        rows: N.
        reads: for every part the boundaries that it reads.
    """

    def __init__(self, partition: Partition, x: Any, *, seed: int, step: int) -> None:
        self._partition, self._x = partition, plain(x)
        self._seed, self._step = seed, step
        self._plans = partition.plans(self._x)
        self.rows = batch_size(self._x)
        self.reads = [plan.reads for plan in self._plans]

    def __call__(self, part: int, coordinates: Sequence[Tensor]) -> Any:
        """The part's output with its present weights; buffers are left alone."""
        return self._run(part, coordinates, recomputing=True)

    @torch.no_grad()
    def forward(self) -> list[Tensor]:
        """The K-1 boundaries of an ordinary forward pass, float32 at least; every part writes its buffers once."""
        boundaries: list[Tensor] = []
        last = len(self._plans) - 1
        for part in range(last):
            h = self._run(part, boundaries, recomputing=False)
            boundaries.append(h.detach() if h.dtype is torch.float64 else h.detach().float())
        if next(self._partition.model.buffers(), None) is not None:
            self._run(last, boundaries, recomputing=False)
        return boundaries

    def _run(self, part: int, coordinates: Sequence[Tensor], *, recomputing: bool) -> Any:
        return self._partition.run(
            part,
            self._x,
            {index: coordinates[index] for index in self.reads[part]},
            enter=lambda index: set_generators(seed_of(self._seed, self._step, index)),
            recomputing=recomputing,
            plan=self._plans[part],
        )
