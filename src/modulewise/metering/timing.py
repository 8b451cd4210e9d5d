"""Seconds of a training step, so measured that candidates can be compared on a machine that is not quiet."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ModulewiseError

__all__ = ["Timing", "interleaved_seconds", "ratio", "step_seconds"]


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs of one step, in the order they were run.

    Args:
        seconds: one measurement a run, at least one.

    >>> timing = Timing((0.3, 0.1, 0.2))
    >>> timing.median, timing.minimum, timing.maximum, timing.repeats
    (0.2, 0.1, 0.3, 3)
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The figure to quote: half the runs were faster."""
        return statistics.median(self.seconds)

    @property
    def minimum(self) -> float:
        """The fastest run."""
        return min(self.seconds)

    @property
    def maximum(self) -> float:
        """The slowest run."""
        return max(self.seconds)

    @property
    def repeats(self) -> int:
        """How many runs were timed."""
        return len(self.seconds)


def step_seconds(step: Callable[[], object], *, warmup: int = 1, repeats: int = 5) -> Timing:
    """Wall-clock seconds of one step, waiting for CUDA where it is in use.

    Args:
        step: what to time.
        warmup: runs that are not timed, >= 0 (the first step allocates, tunes and creates optimiser state).
        repeats: runs that are timed, >= 1.

    Raises:
        ModulewiseError: if `repeats` is below 1 or `warmup` below 0.

    >>> step_seconds(lambda: sum(range(100)), repeats=3).repeats
    3
    """
    return interleaved_seconds({"": step}, warmup=warmup, repeats=repeats)[""]


def interleaved_seconds(
    steps: Mapping[str, Callable[[], object]], *, warmup: int = 1, repeats: int = 5
) -> dict[str, Timing]:
    """Seconds of several steps run in turn, A B C A B C: a slow spell of the machine falls on all of them.

    Args:
        steps: what to time, by name.
        warmup: rounds that are not timed, >= 0.
        repeats: rounds that are timed, >= 1.

    Raises:
        ModulewiseError: if `repeats` is below 1 or `warmup` below 0.

    >>> list(interleaved_seconds({"a": int, "b": float}, repeats=2))
    ['a', 'b']
    """
    if repeats < 1 or warmup < 0:
        raise ModulewiseError(f"got repeats={repeats}, warmup={warmup}; give repeats >= 1 and warmup >= 0")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(warmup + repeats):
        for name, step in steps.items():
            elapsed = _run(step)
            if round_ >= warmup:
                seconds[name].append(elapsed)
    return {name: Timing(tuple(runs)) for name, runs in seconds.items()}


def ratio(a: Timing, b: Timing) -> float:
    """How many times as long a takes as b: median over rounds r of a_r / b_r, for timings of the same rounds.

    Unlike the ratio of the medians, it divides only runs that stood next to each other.

    Args:
        a: numerator, from `interleaved_seconds`.
        b: denominator, from the same call.

    Raises:
        ModulewiseError: if the two were not repeated equally often.

    >>> ratio(Timing((2.0, 20.0, 4.0)), Timing((1.0, 10.0, 1.0)))
    2.0
    """
    if a.repeats != b.repeats:
        raise ModulewiseError(
            f"got timings of {a.repeats} and {b.repeats} runs, expected as many of each; "
            "time both in one call of interleaved_seconds"
        )
    return statistics.median(x / y for x, y in zip(a.seconds, b.seconds, strict=True))


def _run(step: Callable[[], object]) -> float:
    _synchronize()
    start = time.perf_counter()
    step()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    """Wait for the current CUDA device, if the process uses CUDA at all."""
    cuda: Any = torch.cuda  # is_initialized has no types
    if cuda.is_available() and cuda.is_initialized():
        cuda.synchronize()
