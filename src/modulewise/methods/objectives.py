"""Objectives that many methods share: the task loss of the last part, a criterion on an auxiliary head."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import MethodError
from ..heads import HeadFactory
from ..losses import Criterion
from ..objective import Context, Loss, Objective, Signal, Site

__all__ = ["Around", "HeadLoss", "TaskLoss", "classified", "output_tensor"]


class TaskLoss(Objective):
    """The last part's objective, loss(h_out, y) on the raw output of the model.

    Args:
        loss: the task loss; where it is a module, its parameters learn with the part's head.

    >>> import torch
    >>> context = Context(h_in=None, h_out=torch.ones(2), x=None, y=torch.zeros(2), views=1, part=0, step=0)
    >>> TaskLoss(torch.nn.functional.mse_loss)(context).loss
    tensor(1.)
    """

    reads_x = False
    per_sample = True

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

    reads_x = False
    per_sample = True

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


def output_tensor(output: Any) -> Tensor:
    """The tensor whose error or target is sent: the model's raw output itself, or its logits.

    Raises:
        MethodError: there is neither.

    >>> import torch
    >>> output_tensor(torch.zeros(2)).shape
    torch.Size([2])
    """
    tensor = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(tensor, Tensor):
        raise MethodError(
            f"the model returned {type(output).__name__}; an error or a target of the output needs a tensor or an "
            "output with .logits: wrap the model"
        )
    return tensor


class Around(Objective):
    """An objective around another one: it owns that one's head, and asks for what it needs of the engine. Abstract.

    Args:
        inner: makes the loss, and owns the head.
    """

    def __init__(self, inner: Objective) -> None:
        super().__init__()
        self.inner = inner
        self.rule, self.taps, self.differentiates = inner.rule, inner.taps, inner.differentiates
        self.reads_x, self.per_sample = inner.reads_x, inner.per_sample

    @property
    def classifier(self) -> nn.Module | None:
        """The inner objective's."""
        return self.inner.classifier


def classified(site: Site, head: HeadFactory, *, classes: int, criterion: Criterion, dense: bool = False) -> Objective:
    """The criterion on a head of the part, or the task loss for the last.

    Args:
        site: where the objective sits.
        head: makes the head of a boundary.
        classes: number of classes.
        criterion: criterion(logits, y) -> scalar.
        dense: one label per position instead of one per sample.

    >>> from modulewise import heads, losses
    >>> site = Site(1, 2, None, None, loss=losses.classification)
    >>> type(classified(site, heads.linear, classes=3, criterion=losses.classification)).__name__
    'TaskLoss'
    """
    if site.last:
        return TaskLoss(site.loss)
    return HeadLoss(head(site.boundary, classes, dense=dense), criterion)
