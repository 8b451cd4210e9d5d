"""What makes a part large: cost functions for automatic cuts, and the exact split that minimises the largest part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Balance", "Slice", "memory", "split", "time"]


@dataclass(frozen=True)
class Slice:
    """One slice of a model between neighbouring cut points, measured at the example's batch size.

    Args:
        name: the cut point that ends it; "" for the last.
        parameters: number of parameters.
        parameter_bytes: their bytes.
        saved_bytes: bytes that a forward keeps for the backward, parameters excluded.
        output_bytes: bytes of the boundary above it.
        seconds: one forward and backward.
    """

    name: str
    parameters: int
    parameter_bytes: int
    saved_bytes: int
    output_bytes: int
    seconds: float


Balance = Callable[[Slice], float]


def memory(piece: Slice) -> float:
    """Bytes that exist only while the part learns: saved activations and gradients."""
    return float(piece.saved_bytes + piece.parameter_bytes)


def time(piece: Slice) -> float:
    """Seconds of one forward and backward."""
    return piece.seconds


def split(costs: Sequence[float], parts: int) -> list[int]:
    """Group neighbouring slices so that the largest group is as small as possible (exact, dynamic programming).

    Of the splits with the smallest largest group, the one with the smallest sum of squares is taken.

    Args:
        costs: cost of every slice, additive.
        parts: number of groups, 1 <= parts <= len(costs).

    Returns:
        The index of the last slice of every group but the last.

    >>> split([3, 1, 1, 1, 3], 3)
    [0, 3]
    """
    total = [0.0]
    for cost in costs:
        total.append(total[-1] + cost)
    limit = _best(total, parts, lambda worst, size: max(worst, size), float("inf"))[0]
    _, ends = _best(total, parts, lambda sum_, size: sum_ + size * size, limit * (1 + 1e-12))
    return ends


def _best(
    total: list[float], parts: int, combine: Callable[[float, float], float], limit: float
) -> tuple[float, list[int]]:
    """Minimise a combination over groups, none of them larger than the limit."""
    n = len(total) - 1
    infinite = float("inf")
    best = [0.0 if stop == 0 else infinite for stop in range(n + 1)]
    choices: list[list[int]] = []
    for _ in range(parts):
        row, choice = [infinite] * (n + 1), [0] * (n + 1)
        for stop in range(1, n + 1):
            for start in range(stop):
                size = total[stop] - total[start]
                if best[start] < infinite and size <= limit:
                    value = combine(best[start], size)
                    if value < row[stop]:
                        row[stop], choice[stop] = value, start
        best = row
        choices.append(choice)
    ends, stop = [], n
    for choice in reversed(choices):
        stop = choice[stop]
        ends.append(stop - 1)
    return best[n], ends[-2::-1]
