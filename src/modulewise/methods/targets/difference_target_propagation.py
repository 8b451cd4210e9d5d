"""Difference target propagation: every part moves towards a target that learned inverses send down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from ...errors import MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from .inverses import inverse_at
from .targets_objective import ByGradient, Targeted, reconstruction

__all__ = ["DifferenceTargetPropagation", "by_difference", "difference_target", "first_target"]


def first_target(h: Tensor, gradient: Tensor, *, step_size: float) -> Tensor:
    """The target below the last part: h - step_size N dL/dh, a step on every sample's own loss.

    >>> import torch
    >>> first_target(torch.zeros(2, 1), torch.ones(2, 1), step_size=0.5).flatten()
    tensor([-1., -1.])
    """
    return h - step_size * len(h) * gradient


def difference_target(h_in: Tensor, from_target: Tensor, from_output: Tensor) -> Tensor:
    """The target below a middle part: h_in + g(t) - g(h_out), which is h_in where t = h_out, whatever g is.

    >>> import torch
    >>> difference_target(torch.tensor([1.0]), torch.tensor([5.0]), torch.tensor([3.0]))
    tensor([3.])
    """
    return h_in + from_target - from_output


def by_difference(inverse: nn.Module, h_in: Tensor, target: Tensor, h_out: Tensor) -> Tensor:
    """The difference target through an inverse g: h_in + g(t) - g(h_out).

    >>> import torch
    >>> by_difference(nn.Identity(), torch.tensor([1.0]), torch.tensor([5.0]), torch.tensor([3.0]))
    tensor([3.])
    """
    return difference_target(h_in, inverse(target), inverse(h_out))


@dataclass(frozen=True, kw_only=True)
class DifferenceTargetPropagation(PartwiseMethod):
    """Difference target propagation: ||h_k - t_k||^2 with t_{k-1} = h_{k-1} + g_k(t_k) - g_k(h_k).

    The last part minimises the task loss and sends t = h - step_size N dL/dh. The inverse g_k minimises
    ||g_k(f_k(h + e)) - (h + e)||^2, e ~ N(0, noise^2); part 0 has none. All distances are batch means of sums over
    features, so the part below the last follows 2 step_size times its true gradient. With `rounds` 0 the inverses learn
    beside the parts and targets are made before their update (parallel training); else they make `rounds` updates on
    the batch before any part learns, and targets are made with what they have learned (alternating training).

    Args:
        step_size: length of the step to the first target, > 0.
        noise: standard deviation of the noise in the inverses' loss, in units of h, >= 0.
        width: channels of the default inverse's hidden layer; None for as many as enter the part.
        rounds: updates of the inverses on the batch before the parts learn, >= 0; 0 for parallel training.
        inverse: site -> module from h_out to h_in; the default is `Inverse`.

    Raises:
        MethodError: an argument is out of range.

    References:
        D.-H. Lee, S. Zhang, A. Fischer, Y. Bengio, Difference target propagation, ECML PKDD 2015,
        https://arxiv.org/abs/1412.7525

    Departs from the paper: there inverses and parts take turns of an epoch; here they take turns within a step, or
    learn in parallel as in S. Bartunov et al., NeurIPS 2018.

    >>> DifferenceTargetPropagation(step_size=0.3).noise
    0.36
    """

    step_size: float = 0.328
    noise: float = 0.36
    width: int | None = None
    rounds: int = 0
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
        width = self.width is None or self.width >= 1
        if not (self.step_size > 0 and self.noise >= 0 and width and self.rounds >= 0):
            raise MethodError(f"{self} was given; give step_size > 0, noise >= 0, and width >= 1 or None, rounds >= 0")

    def objective(self, site: Site) -> Objective:
        """The task loss at the top, targets below it, an inverse for every part that sends a target on."""
        if site.last:
            return ByGradient(site, first=partial(first_target, step_size=self.step_size), waits=self.rounds > 0)
        lesson = partial(reconstruction, noise=self.noise)
        own = inverse_at(site, self.inverse, outputs=1, width=self.width)
        return Targeted(own, rule=by_difference, lesson=lesson, rounds=self.rounds)
