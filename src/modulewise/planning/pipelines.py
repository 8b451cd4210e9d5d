"""Time of a step on several devices, out of the work of every stage: local learning, and backpropagation in pipelines.

Work is in any unit (operations, seconds); a device runs one stage. Transfers are taken to hide behind work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ModulewiseError

__all__ = [
    "Piece",
    "Stage",
    "bubble",
    "bubble_free",
    "decoupled",
    "gpipe",
    "one_forward_one_backward",
    "played",
    "zero_bubble_h1",
]


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
    """All forwards, then all backwards.

    With equal stages (m + p - 1) (F + B + W) / m, a bubble of (p - 1) / (m + p - 1).

    References:
        Y. Huang et al., GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism, NeurIPS 2019,
        https://arxiv.org/abs/1811.06965

    >>> gpipe([Stage(forward=1, to_input=1, to_weights=1)] * 4, 4) == 3 * (4 + 4 - 1) / 4
    True
    """
    m = _checked(stages, micro_batches)
    order = [Piece("F", b) for b in range(m)] + [Piece("B", b) for b in range(m)]
    return played([order for _ in stages], _whole(stages), m)


def one_forward_one_backward(stages: Sequence[Stage], micro_batches: int) -> float:
    """1F1B: as many forwards as there are later stages, then a forward and a backward in turn.

    The bubble of GPipe; the first of p stages keeps the activations of p micro-batches, not of all.

    References:
        D. Narayanan et al., PipeDream: Generalized Pipeline Parallelism for DNN Training, SOSP 2019,
        https://arxiv.org/abs/1806.03377 (flushed at every step, as torch's `Schedule1F1B` is)

    >>> one_forward_one_backward([Stage(forward=1, to_input=1, to_weights=1)] * 4, 8) == 3 * (8 + 4 - 1) / 8
    True
    """
    m = _checked(stages, micro_batches)
    return played([_in_turn(len(stages) - d - 1, m, None) for d in range(len(stages))], _whole(stages), m)


def zero_bubble_h1(stages: Sequence[Stage], micro_batches: int) -> float:
    """ZB-H1: 1F1B whose backward is cut in two; stage d puts gradients of weights off by d micro-batches.

    With equal stages the bubble is (p - 1) (F + B - W) / m, a third of that of 1F1B where F = B = W, and activations
    are those of 1F1B. Where nothing is gained by putting off (unequal stages), nothing is put off.

    References:
        P. Qi, X. Wan, G. Huang, M. Lin, Zero Bubble Pipeline Parallelism, ICLR 2024, https://arxiv.org/abs/2401.10241

    >>> zero_bubble_h1([Stage(forward=1, to_input=1, to_weights=1)] * 4, 4) == 3 + 3 / 4
    True
    """
    m, p = _checked(stages, micro_batches), len(stages)
    late = [_in_turn(p - d - 1, m, d) for d in range(p)]
    soon = [_in_turn(p - d - 1, m, 0) for d in range(p)]
    return min(played(orders, stages, m) for orders in (late, soon))


@dataclass(frozen=True)
class Piece:
    """F, B or W of one micro-batch at one stage."""

    kind: str
    micro_batch: int


def played(orders: Sequence[Sequence[Piece]], stages: Sequence[Stage], micro_batches: int) -> float:
    """When a step ends in which every stage does its pieces in its order, each as soon as what it needs is there.

    F needs F of the stage below, B needs F of its own stage and B of the stage above, W needs B of its own.

    Args:
        orders: for every stage its pieces.
        stages: whose work a micro-batch has an equal share of.
        micro_batches: m.

    Raises:
        ModulewiseError: the orders wait for one another.
    """
    ends: dict[tuple[str, int, int], float] = {}
    free, position, moved = [0.0] * len(stages), [0] * len(stages), True
    while moved:
        moved = False
        for d, (order, stage) in enumerate(zip(orders, stages, strict=True)):
            while position[d] < len(order):
                piece = order[position[d]]
                needs = _needs(piece, d, len(stages))
                if any(need not in ends for need in needs):
                    break
                start = max([free[d], *(ends[need] for need in needs)])
                free[d] = ends[piece.kind, d, piece.micro_batch] = start + _length(piece, stage) / micro_batches
                position[d], moved = position[d] + 1, True
    if any(at < len(order) for at, order in zip(position, orders, strict=True)):
        raise ModulewiseError("orders that wait for one another were given, expected ones that end; check both ways")
    return max(free)


def _needs(piece: Piece, stage: int, stages: int) -> list[tuple[str, int, int]]:
    if piece.kind == "F":
        return [("F", stage - 1, piece.micro_batch)] if stage else []
    if piece.kind == "W":
        return [("B", stage, piece.micro_batch)]
    above = [("B", stage + 1, piece.micro_batch)] if stage + 1 < stages else []
    return [("F", stage, piece.micro_batch), *above]


def _length(piece: Piece, stage: Stage) -> float:
    return {"F": stage.forward, "B": stage.to_input, "W": stage.to_weights}[piece.kind]


def _whole(stages: Sequence[Stage]) -> list[Stage]:
    """Stages whose backward is one piece."""
    return [Stage(forward=s.forward, to_input=s.to_input + s.to_weights, to_weights=0) for s in stages]


def _in_turn(ahead: int, micro_batches: int, late: int | None) -> list[Piece]:
    """Some forwards ahead, then forward and backward in turn; W, where it is a piece, so many micro-batches late."""
    ahead = min(ahead, micro_batches)
    order, owed = [Piece("F", b) for b in range(ahead)], 0
    for b in range(micro_batches):
        if b + ahead < micro_batches:
            order.append(Piece("F", b + ahead))
        order.append(Piece("B", b))
        if late is not None and b >= late:
            order.append(Piece("W", owed))
            owed += 1
    return order + ([] if late is None else [Piece("W", b) for b in range(owed, micro_batches)])


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
