"""What makes a part large: costs of a run of slices, and the exact split that minimises the largest part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

__all__ = ["Balance", "Slice", "kept_from", "memory", "parameters", "recomputed_memory", "split", "time"]


@dataclass(frozen=True)
class Slice:
    """One slice of a model between neighbouring cut points, measured at the example's batch size.

    Args:
        name: the cut point that ends it; "" for the last.
        parameters: number of parameters.
        parameter_bytes: their bytes.
        input_bytes: bytes of the boundary below it.
        output_bytes: bytes of the boundary above it.
        saved_bytes: bytes that a forward keeps for the backward, the input included where it is kept, parameters not.
        shared_bytes: those of them that the slice before it keeps as well.
        transient_bytes: what the backward needs at most beyond `saved_bytes`.
        seconds: one forward and backward; 0 where not timed.
        forward_flops: floating-point operations of the forward; 0, as the two that follow, where not counted.
        input_flops: of the backward that leads to the boundary below it.
        weight_flops: of the rest of the backward.
    """

    name: str
    parameters: int
    parameter_bytes: int
    input_bytes: int
    output_bytes: int
    saved_bytes: int
    shared_bytes: int
    transient_bytes: int
    seconds: float
    forward_flops: int = 0
    input_flops: int = 0
    weight_flops: int = 0


Balance = Callable[[Sequence[Slice]], float]
"""The cost of a part made of neighbouring slices."""


def memory(slices: Sequence[Slice]) -> float:
    """Most bytes alive while a part of these slices learns: activations, gradients, its input and output.

    max_s [ sum_{t<=s} saved_t - sum_{first<t<=s} shared_t + transient_s + sum_{t>s} gradients_t ] + output: when the
    backward has come down to slice s, what is above it has gone, but for the gradients of its parameters.
    """
    return _peak(slices, _held(slices, 0))


def recomputed_memory(slices: Sequence[Slice]) -> float:
    """The same where all slices but the last are run again in the backward: of those below s only inputs are held."""
    return _peak(slices, _held(slices, len(slices) - 1))


def kept_from(slices: Sequence[Slice], limit: float) -> int:
    """The fewest slices to run again: the first from which on all can keep what they save within a limit of bytes.

    Args:
        slices: of one part, in order.
        limit: most bytes alive while the part learns.

    Returns:
        An index, 0 (nothing is run again) to len(slices) - 1 (all but the last are, whether or not that is enough).
    """
    return next((k for k in range(len(slices)) if _peak(slices, _held(slices, k)) <= limit), len(slices) - 1)


def _held(slices: Sequence[Slice], kept: int) -> list[int]:
    """Bytes held when the backward is at each slice: inputs below `kept`, all that is saved from there on."""
    held, below = [], 0
    for index, piece in enumerate(slices):
        held.append(below + piece.saved_bytes - (piece.shared_bytes if index > kept else 0))
        below = below + piece.input_bytes if index < kept else held[-1]
    return held


def _peak(slices: Sequence[Slice], held: Sequence[int]) -> float:
    gradients = sum(s.parameter_bytes for s in slices)
    worst, last = 0, len(slices) - 1
    for index, (piece, bytes_held) in enumerate(zip(slices, held, strict=True)):
        gradients -= piece.parameter_bytes
        output = slices[last].output_bytes if index < last else 0
        worst = max(worst, bytes_held + piece.transient_bytes + gradients + output)
    return float(worst)


def time(slices: Sequence[Slice]) -> float:
    """Seconds of one forward and backward."""
    return sum(piece.seconds for piece in slices)


def parameters(slices: Sequence[Slice]) -> float:
    """Number of parameters: parts of like capacity."""
    return float(sum(piece.parameters for piece in slices))


def split(
    cost: Callable[[int, int], float],
    count: int,
    parts: int,
    *,
    spread: Callable[[int, int], float] | None = None,
) -> list[int]:
    """Group neighbouring slices so that the costliest group is as cheap as possible (exact, dynamic programming).

    Of the splits with the cheapest costliest group, the one with the smallest sum of squares is taken.

    Args:
        cost: cost(start, stop) >= 0 of the group of slices start, ..., stop - 1.
        count: number of slices.
        parts: number of groups, 1 <= parts <= count.
        spread: spread(start, stop) >= 0, whose squares are summed; the cost where left out.

    Returns:
        The index of the last slice of every group but the last.

    >>> sizes = [3, 1, 1, 1, 3]
    >>> split(lambda start, stop: sum(sizes[start:stop]), 5, 3)
    [0, 3]
    """
    known, second = cache(cost), cache(spread or cost)
    limit = _best(known, count, parts, lambda worst, start, stop: max(worst, known(start, stop)), float("inf"))[0]
    return _best(known, count, parts, lambda total, start, stop: total + second(start, stop) ** 2, limit)[1]


def _best(
    cost: Callable[[int, int], float],
    count: int,
    parts: int,
    combine: Callable[[float, int, int], float],
    limit: float,
) -> tuple[float, list[int]]:
    """Minimise a combination over groups, none of them costlier than the limit."""
    infinite = float("inf")
    best = [0.0, *[infinite] * count]
    choices: list[list[int]] = []
    for _ in range(parts):
        row, choice = [infinite] * (count + 1), [0] * (count + 1)
        for stop in range(1, count + 1):
            for start in range(stop):
                if best[start] < infinite and cost(start, stop) <= limit:
                    value = combine(best[start], start, stop)
                    if value < row[stop]:
                        row[stop], choice[stop] = value, start
        best = row
        choices.append(choice)
    ends, stop = [], count
    for choice in reversed(choices):
        stop = choice[stop]
        ends.append(stop - 1)
    return best[count], ends[-2::-1]
