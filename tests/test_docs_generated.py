"""Tables in README.md and docs/ are those that code and results give, and links between pages lead somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cards
import pytest
import tables

import modulewise

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
OWN_PAGES = {
    *("recipes", "objectives", "survey", "slow_down", "kills", "plans", "predicted"),
    "transfer",
    "labels",
    *("schedules", "ranks", "pieces", "constant_memory", "options"),
}
BEGIN = re.compile(r"<!-- (\w+):begin -->")


def benchmark(**changes) -> dict:
    """One benchmark row."""
    facts = {
        "benchmark": "memory",
        "case": "a network, 4 parts",
        "quantity": "peak",
        "value": 4e8,
        "reference": 1e9,
        "ratio": 0.4,
        "target": 0.5,
        "met": True,
        "seed": 0,
        "device": "cpu",
        "versions": {"torch": "2.8.0"},
        "git": {},
    }
    return facts | changes


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_tables_are_the_generated_ones(path: Path) -> None:
    """Else run `python tools/tables.py`."""
    text = path.read_text()
    assert set(BEGIN.findall(text)) <= set(tables.tables()), "a marker that no table fills"
    assert tables.rendered(text) == text, f"{path.name} is out of date; run python tools/tables.py"


def test_the_readme_has_every_table() -> None:
    """Methods, results, memory and speed; every method of the library is in the first."""
    text = (ROOT / "README.md").read_text()
    assert sorted(BEGIN.findall(text)) == sorted(set(tables.tables()) - OWN_PAGES)  # on pages of their own
    listed = re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE)
    assert len(listed) == len(modulewise.methods.__all__)


def test_an_old_table_is_noticed() -> None:
    """The test above can fail, and what stands outside the markers is kept."""
    page = (
        "before\n<!-- methods:begin -->\n| old |\n<!-- methods:end -->\nafter\n<!-- own:begin -->\n<!-- own:end -->\n"
    )
    made = tables.rendered(page)
    assert made != page
    assert "| old |" not in made
    assert "| `backprop` |" in made
    assert made.startswith("before\n<!-- methods:begin -->\n")
    assert made.endswith("\n<!-- methods:end -->\nafter\n<!-- own:begin -->\n<!-- own:end -->\n")


def test_cards_are_those_of_the_docstrings() -> None:
    """`python tools/cards.py` would change nothing, and every method has a card on one page."""
    made = cards.pages()
    assert {path.name: path.read_text() for path in made if path.is_file()} == {
        path.name: text for path, text in made.items()
    }, "run python tools/cards.py"
    headings = re.findall(r"^## (\w+)$", "\n".join(made.values()), re.MULTILINE)
    assert sorted(headings) == sorted(modulewise.methods.__all__)


def test_what_has_not_run_is_said(tmp_path: Path) -> None:
    """No file of results: the tables say so."""
    assert "not run yet" in tables.results_table(tmp_path)
    assert "not run yet" in tables.benchmark_table(tmp_path, memory=True)
    assert "not run yet" in tables.objectives_table(tmp_path)


def test_objectives_have_one_row_with_both_ratios(tmp_path: Path) -> None:
    """Seconds and bytes of one case stand beside one another, and not among the other benchmarks."""
    rows = [
        benchmark(case="net, 4 parts, DGL, linear head / E2EBP", ratio=0.5),
        benchmark(case="net, 4 parts, DGL, linear head / E2EBP", quantity="seconds", ratio=1.25),
    ]
    (tmp_path / "bench-heads.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "| DGL, linear head | 1.25 | 0.50 |" in tables.objectives_table(tmp_path)
    assert "net, 4 parts, cpu" in tables.objectives_table(tmp_path)
    assert "DGL" not in tables.benchmark_table(tmp_path, memory=True)


def test_benchmark_rows_are_split_by_quantity(tmp_path: Path) -> None:
    """Bytes in one table, seconds in the other; a missed target is shown as one, heads have a column of their own."""
    rows = [
        benchmark(heads_bytes=2_000_000),
        benchmark(case="end to end", target=None, met=None),
        benchmark(case="its steps", quantity="seconds", value=0.2, reference=0.1, ratio=2.0, met=False),
    ]
    (tmp_path / "bench-all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    memory, speed = (tables.benchmark_table(tmp_path, memory=memory) for memory in (True, False))
    assert "| a network, 4 parts | 400 MB | 1 GB | 0.40 | <= 0.50 | yes | 2 MB |" in memory
    assert "| end to end | 400 MB | 1 GB | 0.40 |  |  |  |" in memory
    assert "its steps" not in memory
    assert "| its steps | 200 ms | 100 ms | 2.00 | <= 0.50 | no |" in speed
    assert "heads" not in speed


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_links_lead_to_files(path: Path) -> None:
    """Every relative link and picture of a page exists, and so does every heading it names."""
    for target in re.findall(r"\]\((?!https?://|mailto:)([^)\s]+)\)", path.read_text()):
        file, _, anchor = target.partition("#")
        there = (path.parent / file) if file else path
        assert there.exists(), f"{path.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{path.name} links to {target}"


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_tests_that_pages_name_exist(path: Path) -> None:
    """A claim that rests on a test rests on one that is there."""
    for name in re.findall(r"`(tests/[\w/]+\.py)(?:::\w+)?`", path.read_text()):
        assert (ROOT / name).is_file(), f"{path.name} names {name}"
    for file, function in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", path.read_text()):
        assert f"def {function}(" in (ROOT / file).read_text(), f"{path.name} names {file}::{function}"
