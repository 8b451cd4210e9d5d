"""The table of few labels: accuracy against labelled examples, one row an arm and number."""

from __future__ import annotations

from pathlib import Path

from markup import NOT_RUN, read_rows, table

from modulewise.workflow.labels.rows import HEADINGS, LabelRow, table_rows

__all__ = ["LABELS", "labels_table"]

LABELS = "bench-labels.jsonl"
"""Rows that `modulewise labels` wrote."""


def labels_table(folder: Path) -> str:
    """Every arm and number of labels; what has not run says so."""
    rows = [LabelRow.from_json(row) for row in read_rows(folder / LABELS)]
    rows = [row for row in rows if not row.settings["quick"]]
    unpublished = f"ResNet-18 on CIFAR-10: {NOT_RUN}."
    if not rows:
        return table(HEADINGS, [(NOT_RUN, *[""] * (len(HEADINGS) - 1))]) + f"\n\n{unpublished}"
    first = rows[0]
    settings = first.settings
    data = settings["data"].rstrip("/").rpartition("/")[2]
    commit = (first.git or {}).get("commit", "unknown")[:7]
    caption = (
        f"`{settings['model']}` on `{data}`, {settings['epochs']} epochs, batch {settings['batch_size']}, test "
        f"accuracy in %, {first.device}, torch {first.versions['torch']}, seed {first.seed}, commit {commit} "
        f"(`results/{LABELS}`):"
    )
    return f"{caption}\n\n{table(HEADINGS, table_rows(rows))}\n\n{unpublished}"
