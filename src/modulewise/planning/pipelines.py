"""Time of a step on several devices, out of the work of every stage: local learning, and backpropagation in pipelines.

Work is in any unit (operations, seconds); a device runs one stage. Transfers are taken to hide behind work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ModulewiseError

__all__ = ["Stage", "bubble", "bubble_free", "decoupled", "gpipe", "one_forward_one_backward", "zero_bubble_h1"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The work of one stage for a whole batch.

    Args:
        forward: F, >= 0.
        to_input: B, the part of the backward that leads to the stage's input.
        to_weights: W, the rest of the backward.
        objective: what an objective of its own adds in local learning.
    """

    forward: float
    to_input: float
    to_weights: float
    objective: float = 0.0

    @property
    def work(self) -> float:
        """F + B + W."""
        return self.forward + self.to_input + self.to_weights


def decoupled(stages: Sequence[Stage]) -> float:
    """A step of local learning in steady state: max_d (F + B + W + objective)_d; no stage waits for a later one.

    The pipeline is filled once a run, not once a step. The asynchronous schedule has the same slowest part.

    >>> decoupled([Stage(forward=1, to_input=1, to_weights=1, objective=0.5)] * 2)
    3.5
    """
    return max(stage.work + stage.objective for stage in stages)


def gpipe(stages: Sequence[Stage], micro_batches: int) -> float:
    """All forwards, then all backwards: sum F / m + (m - 1) max F / m, and the same of B + W.

    With equal stages (m + p - 1) (F + B + W) / m, a bubble of (p - 1) / (m + p - 1).

    References:
        Y. Huang et al., GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism, NeurIPS 2019,
        https://arxiv.org/abs/1811.06965

    >>> gpipe([Stage(forward=1, to_input=1, to_weights=1)] * 4, 4) == 3 * (4 + 4 - 1) / 4
    True
    """
    m = _checked(stages, micro_batches)
    forward = [stage.forward for stage in stages]
    backward = [stage.to_input + stage.to_weights for stage in stages]
    return sum((sum(work) + (m - 1) * max(work)) / m for work in (forward, backward))


def one_forward_one_backward(stages: Sequence[Stage], micro_batches: int) -> float:
    """1F1B: sum_d (F + B + W)_d / m + (m - 1) max_d (F + B + W)_d / m; the bubble of GPipe with fewer activations.

    References:
        D. Narayanan et al., PipeDream: Generalized Pipeline Parallelism for DNN Training, SOSP 2019,
        https://arxiv.org/abs/1806.03377 (flushed at every step, as torch's `Schedule1F1B` is)

    >>> one_forward_one_backward([Stage(forward=1, to_input=1, to_weights=1)] * 4, 8) == 3 * (8 + 4 - 1) / 8
    True
    """
    m = _checked(stages, micro_batches)
    work = [stage.work for stage in stages]
    return (sum(work) + (m - 1) * max(work)) / m


def zero_bubble_h1(stages: Sequence[Stage], micro_batches: int) -> float:
    """ZB-H1, with the activations of 1F1B: max work + sum over the other stages of (F + B - W) / m, >= 0 each.

    With equal stages the bubble is (p - 1) (F + B - W) / m, a third of that of 1F1B where F = B = W.

    References:
        P. Qi, X. Wan, G. Huang, M. Lin, Zero Bubble Pipeline Parallelism, ICLR 2024, https://arxiv.org/abs/2401.10241

    >>> zero_bubble_h1([Stage(forward=1, to_input=1, to_weights=1)] * 4, 4) == 3 + 3 / 4
    True
    """
    m = _checked(stages, micro_batches)
    slowest = max(range(len(stages)), key=lambda index: stages[index].work)
    idle = (max(0.0, s.forward + s.to_input - s.to_weights) for i, s in enumerate(stages) if i != slowest)
    return stages[slowest].work + sum(idle) / m


def bubble_free(stages: Sequence[Stage]) -> float:
    """What no backpropagation schedule on these stages beats: max_d (F + B + W)_d, as ZB-H2 and ZB-V approach it.

    >>> bubble_free([Stage(forward=1, to_input=1, to_weights=1), Stage(forward=2, to_input=2, to_weights=2)])
    6
    """
    return max(stage.work for stage in stages)


def bubble(stages: Sequence[Stage], time: float) -> float:
    """The share of a step in which the average device is idle: 1 - sum_d work_d / (p time); bubble and imbalance.

    >>> round(bubble([Stage(forward=1, to_input=1, to_weights=1)] * 4, 3 * 7 / 4), 4) == round(3 / 7, 4)
    True
    """
    return 1 - sum(stage.work for stage in stages) / (len(stages) * time)


def _checked(stages: Sequence[Stage], micro_batches: int) -> int:
    if micro_batches < 1 or not stages:
        raise ModulewiseError(
            f"{micro_batches} micro-batches on {len(stages)} stages were given, expected at least one of each"
        )
    return micro_batches
