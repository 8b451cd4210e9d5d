"""The defects that the tests must notice: where, what one line becomes, and which tests should turn red."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MUTANTS", "Mutant", "read"]


@dataclass(frozen=True)
class Mutant:
    """One defect.

    Args:
        name: what is wrong, in a few words.
        file: below src/modulewise.
        old: text that is there exactly once; of several lines where one alone is not unique.
        new: what it becomes, different in one line.
        tests: node ids, below tests/; the narrowest that must turn red.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def read(path: Path) -> tuple[Mutant, ...]:
    """The defects of a file."""
    entries = tomllib.loads(path.read_text())["mutant"]
    return tuple(Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries)


MUTANTS = read(Path(__file__).with_name("mutants.toml"))
