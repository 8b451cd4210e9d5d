"""The task loss of a window's own outputs, beside whatever a method has the window learn from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..objective import Context, Loss, Objective, Role, Signal
from .objectives import Around

__all__ = ["Windowed"]


class Windowed(Around):
    """A window before the last, in a partition over time with an output for every moment.

    The signal is the method's for the state, and the task loss of the window's own outputs beside it.

    Args:
        inner: the method's objective for the state that leaves the window.
        loss: the window's share of the task loss.

    >>> from modulewise.methods.objectives import TaskLoss
    >>> own = TaskLoss(lambda output, y: output.sum())
    >>> Windowed(own, loss=own.loss).taps
    ('',)
    """

    def __init__(self, inner: Objective, *, loss: Loss) -> None:
        super().__init__(inner)
        self.loss = loss
        self.role: Role = inner.role  # type: ignore[misc]
        self.taps = (*inner.taps, "")
        self.waits, self.hears, self.overlaps = inner.waits, inner.hears, inner.overlaps
        self.reads_input_gradient, self.recompute = inner.reads_input_gradient, inner.recompute
        self.rounds, self.looks_ahead, self.delay = inner.rounds, inner.looks_ahead, inner.delay

    def forward(self, context: Context) -> Signal:
        """The inner signal and the window's own loss, which is what is shown."""
        outputs, _ = context.taps[""][1]
        own = self.loss(outputs, context.labels)
        signal = self.inner(context)
        loss = own if signal.loss is None else own + signal.loss
        return Signal(loss=loss, gradient=signal.gradient, report=own)

    def messages(self, context: Context) -> Mapping[int, Any]:
        """The inner ones."""
        return self.inner.messages(context)

    def hear(self, context: Context) -> Signal | None:
        """What the inner objective learns."""
        return self.inner.hear(context)

    def rehearse(self, context: Context) -> Signal | None:
        """What the inner objective rehearses."""
        return self.inner.rehearse(context)

    def rehearsed(self, context: Context) -> Mapping[int, Any]:
        """The inner messages."""
        return self.inner.rehearsed(context)
