"""What a benchmark comes to: rows of JSON, one file, complete or as it was."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...compare.results import git_state, versions
from ...errors import DataError
from .agreement import regret, weighted_tau
from .judging import Pair

__all__ = ["HINDSIGHT", "agreement_rows", "columns", "keep", "matrix_rows", "provenance", "read"]

HINDSIGHT = "mean accuracy on the other targets"
"""The static list that only somebody knows who has trained heads on every part."""


def provenance(*, seed: int) -> dict[str, Any]:
    """Seed, device, versions and commit that a row was made with."""
    device = f"cpu ({torch.get_num_threads()} threads)"
    return {"seed": seed, "device": device, "versions": versions(), "git": git_state()}


def columns(pairs: Sequence[Pair]) -> dict[str, dict[str, float]]:
    """Scores of one target's pairs: name of the score to name of the source to value; those that could be computed.

    Static baselines are columns as well.
    """
    found: dict[str, dict[str, float]] = {}
    for pair in pairs:
        for entry in pair.scored:
            if entry.value is not None:
                found.setdefault(entry.score, {})[pair.source] = entry.value
        for name, value in pair.static.items():
            found.setdefault(name, {})[pair.source] = value
    return {name: values for name, values in found.items() if len(values) == len(pairs)}


def _targets(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.target, []).append(pair)
    return groups


def _with_hindsight(pairs: Sequence[Pair]) -> dict[str, dict[str, float]]:
    """For every target and source the mean accuracy of the source on all other targets: the best static list."""
    by_source: dict[str, dict[str, float]] = {}
    for pair in pairs:
        by_source.setdefault(pair.source, {})[pair.target] = pair.accuracy
    return {
        target: {
            source: statistics.fmean(value for other, value in found.items() if other != target)
            for source, found in by_source.items()
            if set(found) - {target}
        }
        for target in _targets(pairs)
    }


def agreement_rows(pairs: Sequence[Pair], *, own: bool) -> list[dict[str, Any]]:
    """One row a score and static baseline: tau_w and regret for every target, their means, and seconds.

    Args:
        pairs: all candidates on all targets.
        own: whether a part is a candidate for the very task it was trained for.
    """
    taus: dict[str, dict[str, float]] = {}
    regrets: dict[str, dict[str, float]] = {}
    hindsight = _with_hindsight(pairs)
    counts = []
    for target, group in _targets(pairs).items():
        taken = [pair for pair in group if own or not pair.own]
        counts.append(len(taken))
        accuracies = [pair.accuracy for pair in taken]
        found = columns(taken)
        if len(hindsight[target]) == len(group):
            found[HINDSIGHT] = hindsight[target]
        for name, values in found.items():
            listed = [values[pair.source] for pair in taken]
            taus.setdefault(name, {})[target] = weighted_tau(listed, accuracies)
            regrets.setdefault(name, {})[target] = regret(listed, accuracies)
    costs = _costs(pairs)
    return [
        {
            "kind": "agreement",
            "score": name,
            "static": name not in costs,
            "own_source": own,
            "tau_w": statistics.fmean(found.values()),
            "tau_w_spread": statistics.stdev(found.values()) if len(found) > 1 else None,
            "tau_w_by_target": found,
            "regret": statistics.fmean(regrets[name].values()),
            "regret_by_target": regrets[name],
            "seconds_beyond": costs[name][0] if name in costs else 0.0,
            "seconds_total": costs[name][1] if name in costs else 0.0,
            "candidates": statistics.fmean(counts),
            "targets": len(found),
        }
        for name, found in taus.items()
    ]


def _costs(pairs: Sequence[Pair]) -> dict[str, tuple[float, float]]:
    """Mean seconds of a score for a part and target, beyond the pass and in total."""
    beyond: dict[str, list[float]] = {}
    total: dict[str, list[float]] = {}
    for pair in pairs:
        for entry in pair.scored:
            beyond.setdefault(entry.score, []).append(entry.seconds)
            total.setdefault(entry.score, []).append(entry.total_seconds)
    return {name: (statistics.fmean(beyond[name]), statistics.fmean(total[name])) for name in beyond}


def matrix_rows(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """One row a target: sources, their accuracies, and every score in the same order."""
    return [
        {
            "kind": "target",
            "target": target,
            "sources": [pair.source for pair in group],
            "own": [pair.own for pair in group],
            "accuracy": [pair.accuracy for pair in group],
            "scores": {
                name: [float(f"{values[pair.source]:.6g}") for pair in group] for name, values in columns(group).items()
            },
        }
        for target, group in _targets(pairs).items()
    ]


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; none where there is no file.

    Raises:
        DataError: a line is no JSON object.
    """
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number} is damaged ({error}); give another file") from error
        rows.append(row)
    return rows


def keep(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows beside those of other experiments, in place of earlier rows of the same ones.

    Args:
        path: a file of JSON lines; its folder is made.
        rows: each with `experiment` and `quick`.
    """
    made = {(row["experiment"], row["quick"]) for row in rows}
    kept = [row for row in read(path) if (row["experiment"], row["quick"]) not in made]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".draft-{path.name}")
    with draft.open("w", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in (*kept, *rows)))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
