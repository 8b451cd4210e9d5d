"""The list of planted defects fits the source: `make mutants` then only has to run them."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutant_list import MUTANTS

ROOT = Path(__file__).parents[1]


def test_there_are_enough_and_every_one_has_a_name() -> None:
    """Fourteen at least, no name twice."""
    names = [mutant.name for mutant in MUTANTS]
    assert len(names) >= 14
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_defect_changes_one_line_that_is_there_once(mutant) -> None:
    """Its text is found exactly once, and one line of it differs."""
    source = (ROOT / "src" / "modulewise" / mutant.file).read_text()
    assert source.count(mutant.old) == 1
    old, new = mutant.old.splitlines(), mutant.new.splitlines()
    assert sum(a != b for a, b in zip(old, new, strict=True)) == 1
    compile(source.replace(mutant.old, mutant.new), mutant.file, "exec")


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_defect_names_tests_that_exist(mutant) -> None:
    """Every test named is one test function, not a file."""
    assert mutant.tests
    for test in mutant.tests:
        path, _, function = test.partition("::")
        assert f"def {function.rpartition('::')[2].partition('[')[0]}(" in (ROOT / path).read_text()
