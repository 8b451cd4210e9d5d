"""Write the generated tables of README.md and docs/ anew, between markers such as `<!-- methods:begin -->`.

    python tools/tables.py            write them
    python tools/tables.py --check    say which pages are out of date, and end with 1 if any is

`methods` comes from the classes in `modulewise.methods` with figures from results/recipes.jsonl, `recipes` and `survey`
from that file too, `results` from the other results/*.jsonl, `memory` and `speed` from results/bench-*.jsonl,
`predicted` from results/bench-plan.jsonl, `plans` from results/paper/plans.jsonl, which tools/plans.py writes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from label_tables import LABELS, labels_table
from markup import NOT_RUN, read_rows, table
from scale_tables import (
    CONSTANT_MEMORY,
    FILES,
    OPTIONS,
    PIECES,
    RANKS,
    kills_table,
    plans_table,
    predicted_table,
    ratio_table,
    slow_down_table,
)
from transfer_tables import TRANSFER, transfer_table

from modulewise import recipes, registry
from modulewise.compare import Result, summarise
from modulewise.compare.summary import bytes_text, markdown, seconds_text
from modulewise.recipes.summary import rows_table
from modulewise.recipes.survey import SURVEY, survey_rows

__all__ = [
    "benchmark_table",
    "methods_table",
    "pages",
    "recipes_table",
    "rendered",
    "results_table",
    "survey_table",
    "tables",
]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
BYTES = ("peak", "bytes")
SECTION = re.compile(r"(<!-- (?P<name>\w+):begin -->\n).*?(<!-- (?P=name):end -->)", re.DOTALL)
HEADINGS = ("case", "value", "reference", "ratio", "target", "met")
HEADS = "heads_bytes"
OBJECTIVES = "bench-heads.jsonl"
RECIPES = "recipes.jsonl"
SCHEDULES = ("mnist-schedules-rate-0.02.jsonl", "mnist-schedules-rate-0.05.jsonl")
RECIPE_HEADINGS = (
    *("recipe", "row", "data", "device", "published", "reached here", "unit", "epochs"),
    *("FLOPs / E2EBP", "step time / E2EBP", "peak memory / E2EBP"),
)


def pages() -> list[Path]:
    """README.md and every page below docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def results_table(folder: Path, *, only: Sequence[str] = ()) -> str:
    """One table a file of runs that `modulewise compare` wrote; what they were made with stands above it.

    Args:
        folder: where the files lie.
        only: names of files; where left out, all that have no page of their own.
    """
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        apart = path.name.startswith("bench-") or path.name in (RECIPES, *SCHEDULES, TRANSFER)
        if path.name not in only if only else apart:
            continue
        results = [Result.from_json(row) for row in read_rows(path)]
        if results:
            found.append(f"{_caption(results, path.name)}\n\n{markdown(summarise(results))}")
    return "\n\n".join(found) or table(("method@schedule", "accuracy", "peak memory"), [(NOT_RUN, "", "")])


def _recipes(folder: Path) -> tuple[list[recipes.Recipe], list[recipes.Record]]:
    return [recipes.load(name) for name in recipes.names()], recipes.Book(folder / RECIPES).records()


def methods_table(folder: Path) -> str:
    """Every method with the published and the reproduced figure of its best-known recipe; E2EBP's in parentheses."""
    known, records = _recipes(folder)
    figures = {name: recipes.method_columns(name, known, records) for name in registry.known()}
    return registry.markdown(
        {
            "published (E2EBP)": {name: published for name, (published, _) in figures.items()},
            "reproduced (E2EBP)": {name: reached for name, (_, reached) in figures.items()},
        }
    )


def recipes_table(folder: Path) -> str:
    """Every row of every recipe; quick runs say so, and what has not run says so."""
    return table(RECIPE_HEADINGS, rows_table(*_recipes(folder)))


def survey_table(folder: Path) -> str:
    """Every method beside end-to-end backpropagation, family by family; what has not run says so."""
    return table(SURVEY, survey_rows(*_recipes(folder)))


def _caption(results: Sequence[Result], name: str) -> str:
    first = results[0]
    seeds = ", ".join(str(seed) for seed in sorted({result.seed for result in results}))
    threads = first.versions.get("threads")
    return (
        f"`{first.model}` on `{first.data.rstrip('/').rpartition('/')[2]}`, {first.epochs} epochs, batch "
        f"{first.batch_size}, seeds {seeds}, {first.device}{f' with {threads} threads' if threads else ''}, torch "
        f"{first.versions['torch']} (`results/{name}`):"
    )


def benchmark_table(folder: Path, *, memory: bool) -> str:
    """The benchmark rows in bytes or those in seconds; value and reference are of one run.

    Args:
        folder: where `bench-*.jsonl` lie.
        memory: bytes, with the share of auxiliary heads where a row has it; else seconds.
    """
    paths = [path for path in sorted(folder.glob("bench-*.jsonl")) if path.name not in (OBJECTIVES, LABELS, *FILES)]
    rows = [row for path in paths for row in read_rows(path)]
    rows = [row for row in rows if any(word in row["quantity"] for word in BYTES) is memory]
    if not rows:
        return table(HEADINGS, [(NOT_RUN, *[""] * (len(HEADINGS) - 1))])
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        setting = f"{row['device']}, torch {row['versions']['torch']}, seed {row['seed']}:"
        groups.setdefault(setting, []).append(row)
    tables = [f"{setting}\n\n{_benchmarks(group, memory=memory)}" for setting, group in groups.items()]
    if all(row["device"].startswith("cpu") for row in rows):
        tables.append(f"On a GPU: {NOT_RUN}.")
    return "\n\n".join(tables)


def objectives_table(folder: Path) -> str:
    """What every method's objective costs, one row a method: step time and peak memory relative to E2EBP."""
    headings = ("objective", "step time / E2EBP", "peak memory / E2EBP")
    path = folder / OBJECTIVES
    rows = read_rows(path)
    if not rows:
        return table(headings, [(NOT_RUN, "", "")])
    ratios: dict[str, dict[str, float]] = {}
    for row in rows:
        setting, _, case = row["case"].partition(" parts, ")
        ratios.setdefault(case.removesuffix(" / E2EBP"), {})[row["quantity"]] = row["ratio"]
    first = rows[0]
    caption = f"{setting} parts, {first['device']}, torch {first['versions']['torch']}, seed {first['seed']}:"
    body = [(case, f"{found['seconds']:.2f}", f"{found['peak']:.2f}") for case, found in ratios.items()]
    return f"{caption}\n\n{table(headings, body)}"


def _benchmarks(rows: Sequence[dict[str, Any]], *, memory: bool) -> str:
    text = bytes_text if memory else seconds_text
    heads = any(HEADS in row for row in rows)
    body = [(*_cells(row, text), *([_heads(row)] if heads else [])) for row in rows]
    return table((*HEADINGS, *(["heads"] if heads else [])), body)


def _heads(row: dict[str, Any]) -> str:
    return bytes_text(row[HEADS]) if HEADS in row else ""


def _cells(row: dict[str, Any], text: Callable[[float], str]) -> tuple[str, ...]:
    target = "" if row["target"] is None else f"<= {row['target']:.2f}"
    met = "" if row["met"] is None else "yes" if row["met"] else "no"
    return row["case"], text(row["value"]), text(row["reference"]), f"{row['ratio']:.2f}", target, met


def tables() -> dict[str, Callable[[], str]]:
    """What stands between the markers of each name."""
    return {
        "methods": lambda: methods_table(RESULTS),
        "recipes": lambda: recipes_table(RESULTS),
        "survey": lambda: survey_table(RESULTS),
        "results": lambda: results_table(RESULTS),
        "objectives": lambda: objectives_table(RESULTS),
        "plans": lambda: plans_table(RESULTS),
        "predicted": lambda: predicted_table(RESULTS),
        "memory": lambda: benchmark_table(RESULTS, memory=True),
        "speed": lambda: benchmark_table(RESULTS, memory=False),
        "schedules": lambda: results_table(RESULTS, only=SCHEDULES),
        "ranks": lambda: ratio_table(RESULTS, RANKS),
        "pieces": lambda: ratio_table(RESULTS, PIECES),
        "constant_memory": lambda: ratio_table(RESULTS, CONSTANT_MEMORY),
        "options": lambda: ratio_table(RESULTS, OPTIONS),
        "labels": lambda: labels_table(RESULTS),
        "kills": lambda: kills_table(RESULTS),
        "slow_down": lambda: slow_down_table(RESULTS),
        "transfer": lambda: transfer_table(RESULTS),
    }


def rendered(text: str) -> str:
    """A page with its tables made anew; a marker that no table has is left alone."""
    known = tables()

    def anew(found: re.Match[str]) -> str:
        make = known.get(found["name"])
        return found[0] if make is None else f"{found[1]}{make()}\n{found[3]}"

    return SECTION.sub(anew, text)


def main(arguments: Sequence[str]) -> int:
    """Write, or check; the value is the exit code."""
    stale = [path for path in pages() if rendered(path.read_text()) != path.read_text()]
    for path in stale:
        if "--check" not in arguments:
            path.write_text(rendered(path.read_text()))
        print(f"{'out of date' if '--check' in arguments else 'wrote'}: {path.relative_to(ROOT)}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
