"""Write the generated tables of README.md and docs/ anew, between markers such as `<!-- methods:begin -->`.

    python tools/tables.py            write them
    python tools/tables.py --check    say which pages are out of date, and end with 1 if any is

`methods` comes from the classes in `modulewise.methods` with figures from results/recipes.jsonl, `recipes` and `survey`
from that file too, `results` from the other results/*.jsonl, `memory` and `speed` from results/bench-*.jsonl,
`predicted` from results/bench-plan.jsonl, `plans` from results/paper/plans.jsonl, which tools/plans.py writes.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modulewise import recipes, registry
from modulewise.compare import Result, summarise
from modulewise.compare.summary import bytes_text, markdown, seconds_text
from modulewise.planning import size_text
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
NOT_RUN = "not run yet"
BYTES = ("peak", "bytes")
DEVICE = 80 * 2**30
SECTION = re.compile(r"(<!-- (?P<name>\w+):begin -->\n).*?(<!-- (?P=name):end -->)", re.DOTALL)
HEADINGS = ("case", "value", "reference", "ratio", "target", "met")
HEADS = "heads_bytes"
OBJECTIVES = "bench-heads.jsonl"
PREDICTED = "bench-plan.jsonl"
PAPER = Path("paper") / "plans.jsonl"
RECIPES = "recipes.jsonl"
RECIPE_HEADINGS = (
    *("recipe", "row", "data", "device", "published", "reached here", "unit", "epochs"),
    *("FLOPs / E2EBP", "step time / E2EBP", "peak memory / E2EBP"),
)


def pages() -> list[Path]:
    """README.md and every page below docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def results_table(folder: Path) -> str:
    """One table a file of runs that `modulewise compare` wrote; what they were made with stands above it."""
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        if path.name.startswith("bench-") or path.name == RECIPES:
            continue
        results = [Result.from_json(row) for row in _rows(path)]
        if results:
            found.append(f"{_caption(results, path.name)}\n\n{markdown(summarise(results))}")
    return "\n\n".join(found) or _table(("method@schedule", "accuracy", "peak memory"), [(NOT_RUN, "", "")])


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
    return _table(RECIPE_HEADINGS, rows_table(*_recipes(folder)))


def survey_table(folder: Path) -> str:
    """Every method beside end-to-end backpropagation, family by family; what has not run says so."""
    return _table(SURVEY, survey_rows(*_recipes(folder)))


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
    paths = [path for path in sorted(folder.glob("bench-*.jsonl")) if path.name not in (OBJECTIVES, PREDICTED)]
    rows = [row for path in paths for row in _rows(path)]
    rows = [row for row in rows if any(word in row["quantity"] for word in BYTES) is memory]
    if not rows:
        return _table(HEADINGS, [(NOT_RUN, *[""] * (len(HEADINGS) - 1))])
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
    rows = _rows(path) if path.is_file() else []
    if not rows:
        return _table(headings, [(NOT_RUN, "", "")])
    ratios: dict[str, dict[str, float]] = {}
    for row in rows:
        setting, _, case = row["case"].partition(" parts, ")
        ratios.setdefault(case.removesuffix(" / E2EBP"), {})[row["quantity"]] = row["ratio"]
    first = rows[0]
    caption = f"{setting} parts, {first['device']}, torch {first['versions']['torch']}, seed {first['seed']}:"
    body = [(case, f"{found['seconds']:.2f}", f"{found['peak']:.2f}") for case, found in ratios.items()]
    return f"{caption}\n\n{_table(headings, body)}"


def predicted_table(folder: Path) -> str:
    """Predicted and measured peaks, and by how much the resident set grew; one row a case."""
    headings = ("case", "predicted", "measured", "ratio", "within 10 %", "growth of the resident set")
    path = folder / PREDICTED
    rows = _rows(path) if path.is_file() else []
    if not rows:
        return _table(headings, [(NOT_RUN, *[""] * (len(headings) - 1))])
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
    return f"{first['device']}, torch {first['versions']['torch']}, seed {first['seed']}:\n\n{_table(headings, body)}"


def plans_table(folder: Path) -> str:
    """Plans on paper: for every model one device, then copies of it on several devices each."""
    path = folder / PAPER
    rows = _rows(path) if path.is_file() else []
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        found.append(f"### {model}\n\n{_one_device(own[0])}")
        for depth in dict.fromkeys(row["depth"] for row in own[1:]):
            found.append(_several_devices([row for row in own[1:] if row["depth"] == depth]))
    return "\n\n".join(found) or _table(("model", "plan"), [(NOT_RUN, "")])


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
    table = _table(("way", "peak", "fits 80 GiB", "operations / E2EBP"), body)
    return f"{row['parameters'] / 1e9:.3g}e9 parameters. 1 device, batch {row['batch']} {row['unit']}:\n\n{table}"


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
        + _table(("way", *counts, "useful", "peak", "fits 80 GiB"), body)
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _benchmarks(rows: Sequence[dict[str, Any]], *, memory: bool) -> str:
    text = bytes_text if memory else seconds_text
    heads = any(HEADS in row for row in rows)
    body = [(*_cells(row, text), *([_heads(row)] if heads else [])) for row in rows]
    return _table((*HEADINGS, *(["heads"] if heads else [])), body)


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
