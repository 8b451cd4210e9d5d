"""Generated tables of what scale buys: asynchronous parts, predicted peaks, plans on paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markup import NOT_RUN, read_rows, table

from modulewise.compare.summary import bytes_text
from modulewise.planning import size_text

__all__ = ["FILES", "kills_table", "plans_table", "predicted_table", "ratio_table", "slow_down_table"]

DEVICE = 80 * 2**30
SLOW_DOWN = "bench-slow-down.jsonl"
PREDICTED = "bench-plan.jsonl"
PAPER = Path("paper") / "plans.jsonl"
RANKS = "bench-ranks.jsonl"
PIECES = "bench-pieces.jsonl"
CONSTANT_MEMORY = "bench-constant-memory.jsonl"
OPTIONS = "bench-options.jsonl"
KILLS = ("bench-kills.jsonl", "bench-actor-kills.jsonl")
FILES = (SLOW_DOWN, PREDICTED, RANKS, PIECES, CONSTANT_MEMORY, OPTIONS, *KILLS)
"""Files of benchmarks with a table of their own."""


def slow_down_table(folder: Path) -> str:
    """Accuracy and throughput where one part is slow, and accuracy against bytes, each beside its reference."""
    headings = ("case", "quantity", "asynchronous", "reference", "ratio")
    path = folder / SLOW_DOWN
    rows = read_rows(path)
    if not rows:
        return table(headings, [(NOT_RUN, *[""] * (len(headings) - 1))])
    first = rows[0]
    caption = (
        f"MNIST, {first['samples']} samples, {first['epochs']} passes, {first['device']}, torch "
        f"{first['versions']['torch']}, seed {first['seed']}:"
    )
    body = [
        (row["case"], row["quantity"], f"{row['value']:.4g}", f"{row['reference']:.4g}", f"{row['ratio']:.3f}")
        for row in rows
    ]
    return f"{caption}\n\n{table(headings, body)}"


def ratio_table(folder: Path, name: str) -> str:
    """The rows of one benchmark, one ratio each; the targets are the most that a ratio may be."""
    headings = ("case", "ratio", "target", "met")
    rows = read_rows(folder / name)
    if not rows:
        return table(headings, [(NOT_RUN, *[""] * (len(headings) - 1))])
    body = [
        (
            row["case"],
            f"{row['ratio']:.3f}",
            "" if row["target"] is None else f"<= {row['target']:.3g}",
            "" if row["met"] is None else _yes(row["met"]),
        )
        for row in rows
    ]
    first = rows[0]
    return f"{first['device']}, torch {first['versions']['torch']}, seed {first['seed']}:\n\n{table(headings, body)}"


def kills_table(folder: Path) -> str:
    """Runs with kills: how many tensors ended other than in an undisturbed run."""
    headings = ("case", "kills", "tensors that differ", "of")
    rows = [row for name in KILLS for row in read_rows(folder / name)]
    if not rows:
        return table(headings, [(NOT_RUN, *[""] * (len(headings) - 1))])
    body = [
        (row["case"].partition(",")[0], *map(str, (row["kills"], int(row["value"]), int(row["reference"]))))
        for row in rows
    ]
    first = rows[0]
    return f"{first['device']}, torch {first['versions']['torch']}, seed {first['seed']}:\n\n{table(headings, body)}"


def predicted_table(folder: Path) -> str:
    """Predicted and measured peaks, and by how much the resident set grew; one row a case."""
    headings = ("case", "predicted", "measured", "ratio", "within 10 %", "growth of the resident set")
    path = folder / PREDICTED
    rows = read_rows(path)
    if not rows:
        return table(headings, [(NOT_RUN, *[""] * (len(headings) - 1))])
    body = [
        (
            row["case"].removesuffix(": predicted / measured"),
            *map(bytes_text, (row["value"], row["reference"])),
            f"{row['ratio']:.3f}",
            "yes" if row["met"] else "no",
            "" if row["resident_bytes"] is None else bytes_text(row["resident_bytes"]),
        )
        for row in rows
    ]
    first = rows[0]
    return f"{first['device']}, torch {first['versions']['torch']}, seed {first['seed']}:\n\n{table(headings, body)}"


def plans_table(folder: Path) -> str:
    """Plans on paper: for every model one device, then copies of it on several devices each."""
    path = folder / PAPER
    rows = read_rows(path)
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        found.append(f"### {model}\n\n{_one_device(own[0])}")
        for depth in dict.fromkeys(row["depth"] for row in own[1:]):
            found.append(_several_devices([row for row in own[1:] if row["depth"] == depth]))
    return "\n\n".join(found) or table(("model", "plan"), [(NOT_RUN, "")])


def _one_device(row: dict[str, Any]) -> str:
    first = row["controls"][0]["flops"]
    ways = [(c["name"], c["peak"], c["flops"] / first) for c in row["controls"] if "these cuts" not in c["name"]]
    body = [(name, size_text(peak), _yes(peak <= DEVICE), f"{time:.2f}") for name, peak, time in ways]
    for word in ("every part", "one part"):
        found = row[word]
        name = f"local, {word} on the device"
        if "refused" in found:
            body.append((f"{name}: {found['refused']}", "", "no", ""))
        else:
            cells = (size_text(found["peak"]), "yes", f"{found['time']:.2f}")
            body.append((f"{name}, {found['parts']} parts", *cells))
    ways_found = table(("way", "peak", "fits 80 GiB", "operations / E2EBP"), body)
    return f"{row['parameters'] / 1e9:.3g}e9 parameters. 1 device, batch {row['batch']} {row['unit']}:\n\n{ways_found}"


def _several_devices(rows: Sequence[dict[str, Any]]) -> str:
    first = rows[0]
    head = f"{first['depth']} devices a copy of the model, batch {first['batch']} {first['unit']} a copy"
    if "refused" in first:
        return f"{head}: {first['refused']}."
    counts = [f"{row['devices']} devices" for row in rows]
    body = [
        (
            way["name"],
            *("" if way["name"].startswith("simult") else f"{way['relative'] * row['copies']:.1f}" for row in rows),
            f"{100 * way['share']:.0f} %",
            size_text(way["peak"]),
            _yes(way["fits"]),
        )
        for way in first["ways"]
    ]
    return (
        f"{head}, {first['parts']} parts. Slowest stage / mean {first['imbalance']:.3f}, objectives / E2EBP "
        f"{first['heads']:.3f}. A step sends {size_text(first['boundary_bytes'])} a cut; copies all-reduce "
        f"{size_text(first['gradient_bytes'])} of gradients a device, in data parallelism "
        f"{size_text(first['all_gradient_bytes'])}. Throughput relative to E2EBP on one device:\n\n"
        + table(("way", *counts, "useful", "peak", "fits 80 GiB"), body)
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"
