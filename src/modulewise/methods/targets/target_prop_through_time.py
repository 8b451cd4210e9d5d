"""Target propagation through time: states of a recurrent network move to targets that an inverse cell sends back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...errors import MethodError
from ...losses import sum_squared_error
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Context, Objective, Role, Signal, Site
from .difference_target_propagation import difference_target, first_target
from .targets_objective import ByGradient, reconstruction

__all__ = ["InverseCell", "TargetPropThroughTime"]


class InverseCell(nn.Module):
    """The state before a window from its moments x and the state after it: tanh(U x + V h + c).

    Args:
        moments: elements of the moments of the longest window; shorter ones are filled with zeros.
        state: elements of the state.

    >>> InverseCell(20, 3)(torch.zeros(2, 4, 4), torch.zeros(2, 3)).shape
    torch.Size([2, 3])
    """

    def __init__(self, moments: int, state: int) -> None:
        super().__init__()
        self.moments, self.state = nn.Linear(moments, state, bias=False), nn.Linear(state, state)

    def forward(self, moments: Tensor, h: Tensor) -> Tensor:
        """(N, t, ...) and (N, ...) -> (N, ...), the shape of h."""
        flat = moments.flatten(1).to(h.dtype)
        filled = nn.functional.pad(flat, (0, self.moments.in_features - flat.shape[1]))
        back: Tensor = torch.tanh(self.moments(filled) + self.state(h.flatten(1)))
        return back.view_as(h)


class _TimeTargeted(Objective):
    """A window before the last: its state moves to the target; after the first, the inverse cell sends one back."""

    role: ClassVar[Role] = Role.FEEDBACK
    waits = True
    taps = ("",)

    def __init__(self, inverse: nn.Module | None, *, noise: float) -> None:
        super().__init__()
        self.inverse, self._noise = inverse, noise
        self._bound: Callable[[Tensor], Tensor] | None = None

    def forward(self, context: Context) -> Signal:
        """||h_k - t_k||^2, and the inverse's own loss."""
        loss = sum_squared_error(context.h_out, context.feedback[context.part + 1])
        if self.inverse is None:
            return Signal(loss=loss)
        assert context.run is not None
        self._bound = partial(self.inverse, context.taps[""][0])
        h_in, h_out = context.h_in.detach(), context.h_out.detach()
        taught = reconstruction(self._bound, context.run, h_in, h_out, noise=self._noise)  # type: ignore[arg-type]
        return Signal(loss=loss + taught, report=loss)

    def messages(self, context: Context) -> Mapping[int, Tensor]:
        """The target of the state before."""
        bound, self._bound = self._bound, None
        if bound is None:
            return {}
        with torch.no_grad():
            from_target = bound(context.feedback[context.part + 1])
            target = difference_target(context.h_in.detach(), from_target, bound(context.h_out.detach()))
        return {context.part - 1: target}


@dataclass(frozen=True, kw_only=True)
class TargetPropThroughTime(PartwiseMethod):
    """Target propagation through time: ||h_k - t_k||^2 with t_{k-1} = h_{k-1} + G(x_k, t_k) - G(x_k, h_k).

    The last window minimises the task loss and sends t = h - step_size N dL/dh for the state that entered it. The
    inverse cell G, one for all windows, minimises sum_k ||G(x_k, F(x_k, h_{k-1} + e)) - (h_{k-1} + e)||^2, e ~ N(0,
    noise^2), in the same step. Distances are batch means of sums over the state. With windows of one moment this is the
    paper's; with longer ones backpropagation reaches to the window's start. With an output for every moment, a window's
    own task loss is minimised beside its target.

    Args:
        step_size: length of the step to the first target, > 0.
        noise: standard deviation of the noise in the inverse's loss, in units of h, >= 0.
        inverse: site -> module with forward(moments, h) -> the state before; the default is `InverseCell`.

    Raises:
        MethodError: a number is out of range; or the partition is one in depth, of a feed-forward model.

    References:
        N. Manchev, M. Spratling, Target Propagation in Recurrent Neural Networks, JMLR 2020,
        https://jmlr.org/papers/v21/18-141.html

    Departs from the paper: inverse and cell learn in every step, and input weights by targets as the recurrent ones.

    >>> TargetPropThroughTime(step_size=0.5).noise
    0.1
    """

    name: ClassVar[str] = "tptt"
    family: ClassVar[Family] = Family.TARGETS
    locality: ClassVar[Locality] = Locality(Reach.TARGETS)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "N. Manchev, M. Spratling",
            "Target Propagation in Recurrent Neural Networks",
            "JMLR",
            2020,
            "https://jmlr.org/papers/v21/18-141.html",
        ),
    )

    step_size: float = 0.1
    noise: float = 0.1
    inverse: Callable[[Site], nn.Module] | None = None

    def __post_init__(self) -> None:
        if not self.step_size > 0 or not self.noise >= 0:
            raise MethodError(f"step_size={self.step_size}, noise={self.noise} were given; give > 0 and >= 0")

    def objective(self, site: Site) -> Objective:
        """Targets for the states of all windows but the last, which minimises the task loss."""
        if not site.over_time:
            raise MethodError(
                f"part {site.part} is no window of time: TargetPropThroughTime sends targets through a recurrent "
                "model; give a TimePartition, or DifferenceTargetPropagation for parts in depth"
            )
        if site.last:
            return ByGradient(site, first=partial(first_target, step_size=self.step_size))
        if site.input is None:
            return _TimeTargeted(None, noise=self.noise)
        return _TimeTargeted((self.inverse or _inverse)(site), noise=self.noise)


def _inverse(site: Site) -> nn.Module:
    assert site.moments is not None
    cell = InverseCell(torch.Size(site.moments[1:]).numel(), site.boundary.features)
    return cell.to(site.boundary.dtype)
