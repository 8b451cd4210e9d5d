"""Generated tables of the benchmark of scores: how far rankings without training agree with trained accuracies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markup import NOT_RUN, read_rows, table

from modulewise.workflow.transfer.table import HEADINGS, agreement_cells, groups

__all__ = ["TRANSFER", "transfer_table"]

TRANSFER = "transfer.jsonl"
"""Where `modulewise bench transfer` keeps its rows."""

EXPERIMENTS = ("binary", "modules: mnist", "modules: cifar10", "modules: tiny-imagenet")
TITLES = {"binary": "Binary tasks of CIFAR-10 classes"}


def transfer_table(folder: Path) -> str:
    """A table for every experiment and cut; what has not run in full says so, and quick runs are left out."""
    rows = [row for row in read_rows(folder / TRANSFER) if not row["quick"]]
    found = []
    for name in EXPERIMENTS:
        made = {group: own for (experiment, group, _), own in groups(rows).items() if experiment == name}
        if not made:
            found.append(f"### {_title(name)}\n\n{table(HEADINGS, [(NOT_RUN, *[''] * (len(HEADINGS) - 1))])}")
        for group, own in made.items():
            found.append(f"### {_title(name)}, parts up to `{group}`\n\n{_caption(own)}\n\n{_table(own)}")
    return "\n\n".join(found)


def _title(name: str) -> str:
    return TITLES.get(name, f"Parts of one size, {name.partition(': ')[2]}")


def _caption(rows: Sequence[Mapping[str, Any]]) -> str:
    facts = next(row for row in rows if row["kind"] == "setting")
    counts = [row for row in rows if row["kind"] == "agreement"]
    without = next(row for row in counts if not row["own_source"])
    own = next(row for row in counts if row["own_source"])
    targets = [row for row in rows if row["kind"] == "target"]
    best = 100 * sum(max(row["accuracy"]) for row in targets) / len(targets)
    spread = 100 * sum(max(row["accuracy"]) - min(row["accuracy"]) for row in targets) / len(targets)
    return (
        f"{without['targets']} targets, {without['candidates']:g} parts a target ({own['candidates']:g} with its own), "
        f"{facts['setting']['samples']} samples scored; best part, the own one included, {best:.1f} %, {spread:.1f} "
        f"points above the worst (means over targets). One epoch of head training on the frozen part "
        f"{facts['epoch_seconds']:.2f} s. "
        f"{facts['device']}, torch {facts['versions']['torch']}, seed {facts['seed']}:"
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    return table(HEADINGS, agreement_cells(rows))
