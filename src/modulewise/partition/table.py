"""`print(partition)`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .partition import Partition

__all__ = ["table"]


def table(partition: Partition) -> str:
    """Parts, modules, parameters, output shape and bytes of a partition, one line a part."""
    rows = [("part", "modules", "parameters", "output", "parameter bytes", "output bytes")]
    for part in partition.parts:
        names = [name for name, _ in part.modules()]
        modules = names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}" if names else "-"
        parameters = list(part.parameters())
        output = part.output
        size = output.dtype.itemsize * output.features * output.shape[0] if output else 0
        rows.append(
            (
                str(part.index),
                modules,
                f"{sum(p.numel() for p in parameters):,}",
                str(tuple(output.shape)) if output else "the model's output",
                f"{sum(p.numel() * p.element_size() for p in parameters):,}",
                f"{size:,}" if output else "",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
