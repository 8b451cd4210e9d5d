"""Objectives that many methods share: the task loss of the last part, a criterion on an auxiliary head."""

from __future__ import annotations

from torch import nn

from ..losses import Criterion
from ..objective import Context, Loss, Objective, Signal

__all__ = ["HeadLoss", "TaskLoss"]


class TaskLoss(Objective):
    """The last part's objective, loss(h_out, y) on the raw output of the model.

    Args:
        loss: the task loss; where it is a module, its parameters learn with the part's head.

    >>> import torch
    >>> context = Context(h_in=None, h_out=torch.ones(2), x=None, y=torch.zeros(2), views=1, part=0, step=0)
    >>> TaskLoss(torch.nn.functional.mse_loss)(context).loss
    tensor(1.)
    """

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, context: Context) -> Signal:
        """The task loss."""
        return Signal(loss=self.loss(context.h_out, context.labels))


class HeadLoss(Objective):
    """A proxy objective, criterion(head(h_out), y).

    Args:
        head: the auxiliary head.
        criterion: criterion(logits, y) -> scalar.

    >>> import torch
    >>> context = Context(h_in=None, h_out=torch.ones(2), x=None, y=torch.zeros(2), views=1, part=0, step=0)
    >>> HeadLoss(nn.Identity(), torch.nn.functional.mse_loss)(context).loss
    tensor(1.)
    """

    def __init__(self, head: nn.Module, criterion: Criterion) -> None:
        super().__init__()
        self.head = head
        self.criterion = criterion

    @property
    def classifier(self) -> nn.Module | None:
        """The head."""
        return self.head

    def forward(self, context: Context) -> Signal:
        """The criterion on the head's logits."""
        return Signal(loss=self.criterion(self.head(context.h_out), context.labels))
