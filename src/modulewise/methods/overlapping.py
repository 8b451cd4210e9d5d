"""A part's own loss that reaches the part below as well: two adjacent parts share a gradient."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..objective import Context, Objective, Signal

__all__ = ["Overlapping"]


class Overlapping(Objective):
    """An objective whose loss L_k is minimised by parts k and k - 1, on an input of part k - 1 that is cut off.

    Part k follows d(L_k + L_{k+1})/d(theta_k), where L_{k+1} is a function of h_{k-1} through parts k and k + 1 alone.
    Under contract (b): part k tells the part below dL_k/dh_{k-1}, and nothing of what it hears from above.

    Args:
        inner: makes L_k a signal with a loss, and owns the head.
        part: index of the part.
        alone: the loss stays in this part (label-free methods cut their last part off).

    >>> from modulewise.methods.objectives import TaskLoss
    >>> Overlapping(TaskLoss(lambda output, y: output.sum()), part=1).overlaps
    True
    """

    def __init__(self, inner: Objective, *, part: int, alone: bool = False) -> None:
        super().__init__()
        self.inner = inner
        self.rule, self.taps = inner.rule, inner.taps
        self.overlaps = True
        self.reads_input_gradient = part > 0 and not alone

    def forward(self, context: Context) -> Signal:
        """The inner signal."""
        signal = self.inner(context)
        assert isinstance(signal, Signal)
        return signal

    def messages(self, context: Context) -> Mapping[int, Tensor]:
        """dL_k/dh_{k-1} to the part below; taken off h_in, which the second backward would add to."""
        if not self.reads_input_gradient:
            return {}
        gradient, context.h_in.grad = context.h_in.grad, None
        return {context.part - 1: gradient}

    def hear(self, context: Context) -> Signal | None:
        """dL_{k+1}/dh_k, to be pushed through this part."""
        gradients = list(context.feedback.values())
        return Signal(gradient=sum(gradients[1:], gradients[0])) if gradients else None
