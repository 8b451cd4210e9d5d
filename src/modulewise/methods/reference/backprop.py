"""End-to-end backpropagation as messages: every part sends dL/d(input) to the parts it read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Context, Objective, Signal, Site
from ..objectives import TaskLoss

__all__ = ["Backprop", "ChainRule", "input_gradients", "received_gradient"]


def received_gradient(context: Context) -> Tensor:
    """dL/d(h_out): the sum of the gradients that later parts sent, latest sender first.

    That is the order in which autograd adds them, so that three and more senders give the same bits.

    Raises:
        MethodError: nothing was sent to this part.
    """
    gradients = [context.feedback[sender] for sender in sorted(context.feedback, reverse=True)]
    if not gradients:
        raise MethodError(f"part {context.part} received no gradient; run the later parts first")
    total: Tensor = gradients[0]
    for gradient in gradients[1:]:
        total = total + gradient
    return total


def input_gradients(context: Context) -> dict[int, Tensor]:
    """dL/d(boundary) for every boundary that this part read, by the part below that boundary.

    A boundary that the loss does not depend on has gradient zero.
    """
    read = dict(context.ports)
    if context.part > 0:
        read[context.part - 1] = context.h_in
    return {below: torch.zeros_like(h) if h.grad is None else h.grad for below, h in read.items()}


class ChainRule(Objective):
    """The last part minimises the task loss; the others follow the gradient that later parts send.

    Args:
        site: where the objective sits.
        recompute: while waiting, keep h_in instead of the graph.
        lag: every part learns so many steps after the part above it, >= 0.
    """

    reads_x = False
    per_sample = True

    def __init__(self, site: Site, *, recompute: bool = False, lag: int = 0) -> None:
        super().__init__()
        self.delay = lag * (site.parts - 1 - site.part)
        self.task = TaskLoss(site.loss) if site.last else None
        self.waits = not site.last
        self.recompute = recompute and self.waits
        self.reads_input_gradient = site.part > 0

    def forward(self, context: Context) -> Signal:
        """The task loss, or the received gradient (whose norm is what is shown)."""
        if self.task is not None:
            return self.task.forward(context)
        return Signal(gradient=received_gradient(context))

    def messages(self, context: Context) -> Mapping[int, Tensor]:
        """dL/d(boundary), to the part below every boundary read."""
        return input_gradients(context)


@dataclass(frozen=True)
class Backprop(PartwiseMethod):
    """End-to-end backpropagation, the control: dL/dh_{k-1} = (dh_k/dh_{k-1})^T dL/dh_k, part by part.

    Equal to `loss.backward()` on the whole model bit for bit. Parts before the last have no loss of their
    own: the number shown for them is the norm of dL/dh_k.

    References:
        D. E. Rumelhart, G. E. Hinton, R. J. Williams, Learning representations by back-propagating errors,
        Nature 1986, https://doi.org/10.1038/323533a0

    >>> from modulewise.partition.boundary import Boundary
    >>> site = Site(0, 2, None, Boundary("cut", (4, 3)), loss=lambda output, y: output.mean())
    >>> Backprop().objective(site).waits
    True
    """

    family: ClassVar[Family] = Family.REFERENCE
    locality: ClassVar[Locality] = Locality(Reach.GLOBAL)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "D. E. Rumelhart, G. E. Hinton, R. J. Williams",
            "Learning representations by back-propagating errors",
            "Nature",
            1986,
            "https://doi.org/10.1038/323533a0",
        ),
    )

    def objective(self, site: Site) -> Objective:
        """The chain rule's share of the part."""
        return ChainRule(site)
