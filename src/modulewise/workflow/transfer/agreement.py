"""How well a ranking by score agrees with the accuracies that training reached."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...errors import DataError

__all__ = ["regret", "weighted_tau"]


def weighted_tau(values: Sequence[float], accuracies: Sequence[float]) -> float:
    """Weighted Kendall tau of two lists, in [-1, 1]; 0 where one of them is constant.

    A swap of ranks r and s, counted from 0, weighs 1 / (r + 1) + 1 / (s + 1), so that the best places count most; mean
    of ranking by values and by accuracies, ties broken by the other list (`scipy.stats.weightedtau`). This is the
    measure of the literature on transferability.

    Args:
        values: a score for every candidate, higher is better.
        accuracies: what training on each of them reached.

    Raises:
        DataError: there are fewer than two candidates, or the lists differ in length.

    References:
        S. Vigna, A Weighted Correlation Index for Rankings with Ties, WWW 2015,
        https://doi.org/10.1145/2736277.2741088

    A constant score, such as the number of parameters of parts of one size, has no tau; it says nothing, hence 0.

    >>> weighted_tau([1, 2, 3], [0.1, 0.2, 0.3]), weighted_tau([7, 7, 7], [0.1, 0.2, 0.3])
    (1.0, 0.0)
    """
    _check(values, accuracies)
    if len(set(values)) < 2 or len(set(accuracies)) < 2:
        return 0.0
    from scipy.stats import weightedtau

    return float(weightedtau(np.asarray(values, dtype=float), np.asarray(accuracies, dtype=float)).statistic)


def regret(values: Sequence[float], accuracies: Sequence[float]) -> float:
    """The best accuracy less that of the candidate with the highest score, >= 0; the mean over candidates tied there.

    Args:
        values: a score for every candidate, higher is better.
        accuracies: what training on each of them reached.

    Raises:
        DataError: there are fewer than two candidates, or the lists differ in length.

    >>> regret([1, 3, 2], [0.5, 0.75, 1.0]), regret([7, 7], [0.5, 1.0])
    (0.25, 0.25)
    """
    _check(values, accuracies)
    top = max(values)
    picked = [accuracy for value, accuracy in zip(values, accuracies, strict=True) if value == top]
    return max(accuracies) - sum(picked) / len(picked)


def _check(values: Sequence[float], accuracies: Sequence[float]) -> None:
    if len(values) != len(accuracies) or len(values) < 2:
        raise DataError(f"{len(values)} scores and {len(accuracies)} accuracies, expected as many, two or more")
