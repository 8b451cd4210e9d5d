"""The benchmark of scores as pictures: what the proxy says of every part for every task, and what training reached."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .drawing import style
from .maps import task_map

__all__ = ["transfer_svgs"]

PROXY = "alignment"


def transfer_svgs(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Two maps of parts by tasks of one experiment and group: the proxy value, and the accuracy of trained heads.

    Args:
        rows: of one experiment and group, as `workflow.transfer` writes them; those of kind "target" are drawn.

    Returns:
        The text of an SVG file by a word for what it shows; the same for the same rows. Nothing without targets.
    """
    targets = [row for row in rows if row["kind"] == "target"]
    if not targets:
        return {}
    parts, tasks = targets[0]["sources"], [row["target"] for row in targets]
    accuracies = torch.tensor([row["accuracy"] for row in targets]).T
    proxies = torch.tensor([row["scores"][PROXY] for row in targets]).T
    return {
        PROXY: _svg(proxies, parts, tasks, title=f"proxy value ({PROXY}), no training"),
        "accuracy": _svg(accuracies, parts, tasks, title="test accuracy of a head trained on the frozen part"),
    }


def _svg(values: Tensor, parts: Sequence[str], tasks: Sequence[str], *, title: str) -> str:
    with style():
        made = task_map(values, parts=parts, tasks=tasks, title=title)
        buffer = io.StringIO()
        made.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return buffer.getvalue()
