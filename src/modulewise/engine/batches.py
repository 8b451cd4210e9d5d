"""One step's batch, whole or in slices whose gradients accumulate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..partition.tree import batch_size, is_fake, map_tensors, tensors
from .local import LocalEngine, Micro
from .session import Session

__all__ = ["Batch", "Slice", "check_batch", "sliced"]


def check_batch(x: Any, y: Any, *, views: int, classes: int | None) -> None:
    """Refuse labels that do not fit the input or the number of classes.

    Args:
        x: input (views N, ...).
        y: labels (N, ...); anything but a tensor is left to the loss.
        views: views stacked along the batch.
        classes: number of classes of integer labels, if known; values are read where that needs no waiting (CPU).

    Raises:
        DataError: x holds no tensor, y has another number of rows, or a label is out of range.
    """
    if not tensors(x):
        raise DataError(f"x is {type(x).__name__} without a tensor, expected a tensor, tuple or mapping of tensors")
    if not isinstance(y, Tensor):
        return
    rows = y.shape[0] if y.ndim else 1
    if rows * views != batch_size(x):
        raise DataError(f"y has {rows} rows for {batch_size(x)} of x with views={views}, expected x to have views * N")
    if classes and y.device.type == "cpu" and not is_fake(y) and not y.is_floating_point() and y.numel():
        wrong = y[(y < 0) & (y != -100) | (y >= classes)]
        if len(wrong):
            raise DataError(
                f"labels reach from {int(wrong.min())} to {int(wrong.max())} outside 0 to {classes - 1} "
                f"(classes={classes}; -100 is left out)"
            )


def _take(tree: Any, index: Tensor, size: int) -> Any:
    return map_tensors(lambda leaf: leaf[index.to(leaf.device)] if leaf.ndim and leaf.shape[0] == size else leaf, tree)


def _slices(samples: int, views: int, count: int) -> list[tuple[Tensor, Tensor]]:
    """For every slice, the rows of x (all views of its samples) and of y."""
    rows = torch.arange(samples * views).view(views, samples)
    return [
        (rows[:, index].reshape(-1), index) for index in torch.arange(samples).tensor_split(count) if len(index) > 0
    ]


@dataclass(frozen=True)
class Slice:
    """Some samples of a batch, with all their views.

    Args:
        x: input (views n, ...).
        y: labels (n, ...).
        views: views stacked along the batch.
        rows: n, the number of samples.
    """

    x: Any
    y: Any
    views: int
    rows: int


def sliced(x: Any, y: Any, *, views: int, count: int) -> list[Slice]:
    """A batch as so many slices of neighbouring samples, as even as can be.

    Raises:
        DataError: there are fewer samples than slices, or rows that belong to no sample.

    >>> [part.rows for part in sliced(torch.zeros(5, 2), torch.zeros(5), views=1, count=2)]
    [3, 2]
    """
    rows = batch_size(x)
    if rows % views or rows // views < count:
        raise DataError(f"{rows} rows of x with views={views} do not make {count} slices; give views * N rows, N more")
    if count == 1:
        return [Slice(x, y, views, rows // views)]
    return [
        Slice(_take(x, of_x, rows), _take(y, of_y, rows // views), views, len(of_y))
        for of_x, of_y in _slices(rows // views, views, count)
    ]


class Batch:
    """The parts' work on one batch.

    With `accumulate` slices a part sees all slices, then steps, then the next part runs; so one part's gradients live
    at a time. Where a part waits for messages, or for the loss above it, each slice goes through all parts
    instead, and all gradients live together.

    Args:
        engine: what to run on.
        x: input (views N, ...).
        y: labels (N, ...).
        views: views stacked along the batch.
        step: index of the training step.
        accumulate: number of slices, >= 1.
        boundaries: boundaries at hand already, by index.
    """

    def __init__(
        self,
        engine: LocalEngine,
        x: Any,
        y: Any,
        *,
        views: int,
        step: int,
        accumulate: int,
        boundaries: Mapping[int, Tensor] | None = None,
    ) -> None:
        self.engine = engine
        self.whole = accumulate > 1 and any(o.waits or o.overlaps for o in engine.objectives)
        if accumulate == 1:
            self.sessions = [Session(engine, x, y, views=views, step=step, boundaries=boundaries)]
            self.sizes = [1]
            return
        rows = batch_size(x)
        if rows % views:
            raise DataError(f"{rows} rows of x do not hold {views} views of every sample; give views * N rows")
        pieces = _slices(rows // views, views, accumulate)
        self.sizes = [len(index) for _, index in pieces]
        self.sessions = []
        units: dict[int, int] = {}
        for i, (of_x, of_y) in enumerate(pieces):
            micro = Micro(
                draw=step * accumulate + i,
                last=i == len(pieces) - 1,
                rows=self.sizes[i],
                units=units,
                weight=self.sizes[i] * views / rows,
            )
            given = {index: h[of_x] for index, h in (boundaries or {}).items()}
            self.sessions.append(
                Session(
                    engine,
                    _take(x, of_x, rows),
                    _take(y, of_y, rows // views),
                    views=views,
                    step=step,
                    boundaries=given,
                    micro=micro,
                )
            )

    def up(self, part: int) -> None:
        """Let a part run on every slice."""
        if not self.whole:
            for session in self.sessions:
                session.up(part)

    def down(self) -> None:
        """Deliver messages and end the step."""
        for session in self.sessions:
            if self.whole:
                for part in range(len(self.engine.partition)):
                    session.up(part)
            session.down()

    def losses(self) -> dict[int, Tensor]:
        """The mean loss of every part that learned, detached."""
        if len(self.sessions) == 1:
            return dict(sorted(self.sessions[0].losses.items()))
        total = sum(self.sizes)
        return {
            part: sum(
                (s.losses[part] * (n / total) for s, n in zip(self.sessions, self.sizes, strict=True)),
                start=torch.zeros((), device=self.sessions[0].losses[part].device),
            )
            for part in sorted(self.sessions[0].losses)
        }
