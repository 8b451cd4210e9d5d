"""Difference target propagation: every part moves towards a target that learned inverses send down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...errors import MethodError
from ...losses import sum_squared_error
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Context, Objective, Role, Signal, Site
from ..objectives import TaskLoss
from ..reference.backprop import input_gradients
from .inverses import Inverse

__all__ = ["DifferenceTargetPropagation", "difference_target", "first_target"]


def first_target(h: Tensor, gradient: Tensor, *, step_size: float) -> Tensor:
    """The target below the last part: h - step_size N dL/dh, a step on every sample's own loss.

    >>> first_target(torch.zeros(2, 1), torch.ones(2, 1), step_size=0.5).flatten()
    tensor([-1., -1.])
    """
    return h - step_size * len(h) * gradient


def difference_target(h_in: Tensor, from_target: Tensor, from_output: Tensor) -> Tensor:
    """The target below a middle part: h_in + g(t) - g(h_out), which is h_in where t = h_out, whatever g is.

    >>> difference_target(torch.tensor([1.0]), torch.tensor([5.0]), torch.tensor([3.0]))
    tensor([3.])
    """
    return h_in + from_target - from_output


class _Top(Objective):
    """The last part: the task loss, and the first target by gradient."""

    def __init__(self, site: Site, *, step_size: float) -> None:
        super().__init__()
        self.task, self._step_size = TaskLoss(site.loss), step_size
        self.reads_input_gradient = site.part > 0

    def forward(self, context: Context) -> Signal:
        """The task loss."""
        return self.task.forward(context)

    def messages(self, context: Context) -> Mapping[int, Tensor]:
        """The first target, to the part below."""
        gradient = input_gradients(context).get(context.part - 1)
        if gradient is None:
            return {}
        return {context.part - 1: first_target(context.h_in.detach(), gradient, step_size=self._step_size)}


class _Targeted(Objective):
    """An earlier part: moves to the target sent from above; above the first part, learns to invert itself."""

    role: ClassVar[Role] = Role.FEEDBACK
    waits = True

    def __init__(self, inverse: nn.Module | None, *, noise: float) -> None:
        super().__init__()
        self.inverse, self._noise = inverse, noise

    def forward(self, context: Context) -> Signal:
        """Squared distance to the target, and the inverse's own loss."""
        target = context.feedback[context.part + 1]
        loss = sum_squared_error(context.h_out, target)
        return Signal(loss=loss if self.inverse is None else loss + self.reconstruction(context))

    def reconstruction(self, context: Context) -> Tensor:
        """||g(f(h + e)) - (h + e)||^2 with Gaussian e; it reaches the inverse alone."""
        assert self.inverse is not None
        assert context.run is not None
        with torch.no_grad():
            corrupted = context.h_in + self._noise * torch.randn_like(context.h_in)
            output = context.run(corrupted)
        return sum_squared_error(self.inverse(output), corrupted)

    def messages(self, context: Context) -> Mapping[int, Tensor]:
        """The difference target, to the part below."""
        if self.inverse is None:
            return {}
        with torch.no_grad():
            from_target = self.inverse(context.feedback[context.part + 1])
            from_output = self.inverse(context.h_out.detach())
            return {context.part - 1: difference_target(context.h_in.detach(), from_target, from_output)}


@dataclass(frozen=True, kw_only=True)
class DifferenceTargetPropagation(PartwiseMethod):
    """Difference target propagation: ||h_k - t_k||^2 with t_{k-1} = h_{k-1} + g_k(t_k) - g_k(h_k).

    The last part minimises the task loss and sends t = h - step_size N dL/dh. The inverse g_k minimises
    ||g_k(f_k(h + e)) - (h + e)||^2, e ~ N(0, noise^2), in the same step; part 0 has none. All distances are
    batch means of sums over features, so the part below the last follows 2 step_size times its true gradient.

    Args:
        step_size: length of the step to the first target, > 0.
        noise: standard deviation of the noise in the inverses' loss, in units of h, >= 0.
        width: channels of the default inverse's hidden layer; None for as many as enter the part.
        inverse: site -> module from h_out to h_in; the default is `Inverse`.

    Raises:
        MethodError: an argument is out of range.

    References:
        D.-H. Lee, S. Zhang, A. Fischer, Y. Bengio, Difference target propagation, ECML PKDD 2015,
        https://arxiv.org/abs/1412.7525. There inverses and parts learn in alternating epochs; here both in
        every step.

    >>> DifferenceTargetPropagation(step_size=0.3).noise
    0.36
    """

    step_size: float = 0.328
    noise: float = 0.36
    width: int | None = None
    inverse: Callable[[Site], nn.Module] | None = None

    family: ClassVar[Family] = Family.TARGETS
    locality: ClassVar[Locality] = Locality(Reach.TARGETS)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "D.-H. Lee, S. Zhang, A. Fischer, Y. Bengio",
            "Difference target propagation",
            "ECML PKDD",
            2015,
            "https://arxiv.org/abs/1412.7525",
        ),
    )

    def __post_init__(self) -> None:
        if self.step_size <= 0 or self.noise < 0 or (self.width is not None and self.width < 1):
            raise MethodError(f"{self} was given; give step_size > 0, noise >= 0, and width >= 1 or None")

    def objective(self, site: Site) -> Objective:
        """The task loss at the top, targets below it, an inverse for every part that sends a target on."""
        if site.last:
            return _Top(site, step_size=self.step_size)
        if site.input is None:
            return _Targeted(None, noise=self.noise)
        own = self.inverse(site) if self.inverse else Inverse(site.input, site.boundary, width=self.width)
        return _Targeted(own, noise=self.noise)
