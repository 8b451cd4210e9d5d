"""A part's own loss that reaches the part below as well: two adjacent parts share a gradient."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..objective import Context, Objective, Signal, Site
from .objectives import Around

__all__ = ["Overlapping"]


class Overlapping(Around):
    """An objective whose loss L_k is minimised by parts k and k - 1, on an input of part k - 1 that is cut off.

    Part k follows d(L_k + L_{k+1})/d(theta_k), where L_{k+1} is a function of h_{k-1} through parts k and k + 1 alone.
    Under contract (b): part k tells the part below dL_k/dh_{k-1}, and nothing of what it hears from above.

    Args:
        inner: makes L_k a signal with a loss, and owns the head.
        site: where it sits.
        closed: nothing comes from above, so that no graph is kept: for the part below one whose loss is its own.

    >>> from modulewise.methods.objectives import TaskLoss
    >>> own = TaskLoss(lambda output, y: output.sum())
    >>> Overlapping(own, site=Site(1, 3, None, None, loss=own.loss)).overlaps
    True
    """

    def __init__(self, inner: Objective, *, site: Site, closed: bool = False) -> None:
        super().__init__(inner)
        self.overlaps = not (closed or site.last)
        self.reads_input_gradient = site.part > 0

    def forward(self, context: Context) -> Signal:
        """The inner signal."""
        signal = self.inner(context)
        assert isinstance(signal, Signal)
        return signal

    def messages(self, context: Context) -> Mapping[int, Tensor]:
        """dL_k/dh_{k-1} to the part below; taken off h_in, which the second backward would add to."""
        if not self.reads_input_gradient or context.h_in.grad is None:
            return {}
        gradient, context.h_in.grad = context.h_in.grad, None
        return {context.part - 1: gradient}

    def hear(self, context: Context) -> Signal | None:
        """dL_{k+1}/dh_k, to be pushed through this part."""
        gradients = list(context.feedback.values())
        return Signal(gradient=sum(gradients[1:], gradients[0])) if gradients else None
