"""Rows of results in, Markdown out: what the generated tables share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["NOT_RUN", "read_rows", "table"]

NOT_RUN = "not run yet"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none where it is not there."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
