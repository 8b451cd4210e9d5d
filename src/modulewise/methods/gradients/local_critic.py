"""Local critic training: critics that end like the network, each held to the loss of the next one up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ... import heads
from ...errors import MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Context, Objective, Role, Signal, Site
from ..objectives import TaskLoss
from .sample_losses import sample_losses

__all__ = ["LocalCritic", "cascade_loss"]


def cascade_loss(losses: Tensor, above: Tensor) -> Tensor:
    """The distance of a critic's losses to those of the next one up, 1/N sum_n |L_n - L'_n|; (N,) each.

    >>> cascade_loss(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0]))
    tensor(1.5000)
    """
    return (losses - above.to(losses.dtype)).abs().mean()


class _Judged(Objective):
    """The last part: minimises the task loss and tells the critic below the loss of every sample."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.task = TaskLoss(site.loss)

    def forward(self, context: Context) -> Signal:
        """The task loss."""
        return self.task.forward(context)

    def messages(self, context: Context) -> Mapping[int, Tensor]:
        """The losses (N,), to the part below."""
        if context.part == 0:
            return {}
        with torch.no_grad():
            return {context.part - 1: sample_losses(self.task.loss, context.h_out, context.labels)}


class _Criticised(Objective):
    """An earlier part: follows its critic's loss, and tells the critic below; the critic learns from the one above."""

    role: ClassVar[Role] = Role.FEEDBACK

    hears = True

    def __init__(self, site: Site, critic: nn.Module, *, every: int) -> None:
        super().__init__()
        self.critic, self.loss, self._every = critic, site.loss, every

    @property
    def classifier(self) -> nn.Module:
        """The critic."""
        return self.critic

    def forward(self, context: Context) -> Signal:
        """The gradient of the critic's loss; the loss is what is shown."""
        h = context.h_out.detach().requires_grad_()
        loss = self.loss(self.critic(h), context.labels)
        (gradient,) = torch.autograd.grad(loss, h)
        return Signal(gradient=gradient, report=loss)

    def messages(self, context: Context) -> Mapping[int, Tensor]:
        """The losses (N,) by the critic, to the part below."""
        if context.part == 0:
            return {}
        with torch.no_grad():
            return {context.part - 1: self._losses(context)}

    def hear(self, context: Context) -> Signal | None:
        """The distance of the critic's losses to those that arrived, in every so many steps."""
        if context.step % self._every:
            return None
        return Signal(loss=cascade_loss(self._losses(context), context.feedback[context.part + 1]))

    def _losses(self, context: Context) -> Tensor:
        return sample_losses(self.loss, self.critic(context.h_out.detach()), context.labels)


@dataclass(frozen=True, kw_only=True)
class LocalCritic(PartwiseMethod):
    """Local critic training: part k follows dL_k/dh_k, L_k = loss(c_k(h_k), y), with c_k a small stand-in for the rest.

    Critics do not minimise their own loss. In cascade each is held to the next one up: c_k minimises
    1/N sum_n |L_kn - L_{k+1,n}| over samples, where the last part's L is the task loss. A critic equal to the remaining
    network gives backpropagation. Critics are classifiers, so trained ones give early exits.

    Args:
        classes: number of outputs of a critic, >= 1.
        head: makes the critic of a boundary; a convolution and a linear layer, as published, unless given.
        every: critics learn in every so many steps, >= 1; every 5th was published as costing 1 to 4 points.

    Raises:
        MethodError: a number is below 1, or (in the first step) the task loss cannot be taken sample by sample.

    References:
        H. Lee, J.-S. Lee, Local critic training of deep neural networks, 2018, https://arxiv.org/abs/1805.01128

    Departs from the paper: critics share the method's optimiser settings unless parameters with the role `feedback` get
    their own; published were Adam at 1e-4 for critics, SGD with momentum for the network.

    >>> LocalCritic(classes=10, every=5).every
    5
    """

    classes: int
    head: heads.HeadFactory = heads.conv
    every: int = 1

    family: ClassVar[Family] = Family.GRADIENTS
    locality: ClassVar[Locality] = Locality(Reach.GRADIENTS)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "H. Lee, J.-S. Lee",
            "Local critic training of deep neural networks",
            "arXiv",
            2018,
            "https://arxiv.org/abs/1805.01128",
        ),
    )

    def __post_init__(self) -> None:
        if not self.classes >= 1 or not self.every >= 1:
            raise MethodError(f"classes={self.classes}, every={self.every} were given; give 1 or more of both")

    def objective(self, site: Site) -> Objective:
        """A critic for every part but the last, which minimises the task loss."""
        if site.last:
            return _Judged(site)
        return _Criticised(site, self.head(site.boundary, self.classes), every=self.every)
