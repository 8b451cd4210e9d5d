"""Rows of the benchmark as cells of a table: a row a score, the best first, static baselines among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["HEADINGS", "agreement_cells", "groups"]

HEADINGS = ("score", "tau_w", "regret, points", "tau_w, own part too", "regret, own too", "seconds beyond", "in total")


def groups(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, bool], list[Mapping[str, Any]]]:
    """Rows by (experiment, group, quick), in the order in which they appear.

    >>> list(groups([{"experiment": "binary", "group": "features", "quick": True}]))
    [('binary', 'features', True)]
    """
    found: dict[tuple[str, str, bool], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["experiment"], row["group"], row["quick"]), []).append(row)
    return found


def agreement_cells(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The cells of one group, under `HEADINGS`, by falling tau_w; static baselines say so.

    Args:
        rows: of one experiment and group.
    """
    without = {row["score"]: row for row in rows if row["kind"] == "agreement" and not row["own_source"]}
    own = {row["score"]: row for row in rows if row["kind"] == "agreement" and row["own_source"]}
    order = sorted(without.values(), key=lambda row: -row["tau_w"])
    return [(_name(row), *_figures(row), *_figures(own[row["score"]]), *_seconds(row)) for row in order]


def _name(row: Mapping[str, Any]) -> str:
    return f"*{row['score']}* (static)" if row["static"] else str(row["score"])


def _figures(row: Mapping[str, Any]) -> tuple[str, str]:
    spread = "" if row["tau_w_spread"] is None else f" ± {row['tau_w_spread']:.2f}"
    return f"{row['tau_w']:.3f}{spread}", f"{100 * row['regret']:.2f}"


def _seconds(row: Mapping[str, Any]) -> tuple[str, str]:
    return ("", "") if row["static"] else (f"{row['seconds_beyond']:.3f}", f"{row['seconds_total']:.3f}")
