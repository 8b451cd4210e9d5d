"""Target propagation: every part moves towards what its successor's inverse makes of the target above."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from ...errors import MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from .difference_target_propagation import first_target
from .inverses import inverse_at
from .output_targets import LabelTarget
from .targets_objective import ByGradient, ByOutput, Targeted, reconstruction

__all__ = ["TargetPropagation", "by_inverse"]


def by_inverse(inverse: nn.Module, h_in: Tensor, target: Tensor, h_out: Tensor) -> Tensor:
    """The target below a part: g(t), whatever the part's own input and output are.

    >>> import torch
    >>> by_inverse(nn.Identity(), torch.tensor([1.0]), torch.tensor([5.0]), torch.tensor([3.0]))
    tensor([5.])
    """
    back: Tensor = inverse(target)
    return back


@dataclass(frozen=True, kw_only=True)
class TargetPropagation(PartwiseMethod):
    """Target propagation: ||h_k - t_k||^2 with t_{k-1} = g_k(t_k), g_k an inverse that learns.

    The last part minimises the task loss and sends t = h - step_size N dL/dh or, with `labelled`, g_K(label), its own
    inverse of the one-hot label (of a floating label: the label itself). The inverse g_k minimises
    ||g_k(f_k(h + e)) - (h + e)||^2, e ~ N(0, noise^2); part 0 has none. All distances are batch means of sums over
    features. With `rounds` 0 the inverses learn beside the parts; else they make `rounds` updates on the batch before
    any part learns. Where g_k is no inverse of f_k, a part whose output is perfect is still moved; with `labelled` all
    inputs of one class have the same targets. `DifferenceTargetPropagation` corrects for both.

    Args:
        step_size: length of the step to the first target, > 0.
        labelled: make the first target out of the label instead of the gradient, so that no gradient crosses a cut.
        outputs: number of elements of one sample's output, >= 1; needed with `labelled` alone.
        noise: standard deviation of the noise in the inverses' loss, in units of h, >= 0.
        width: channels of the default inverse's hidden layer; None for as many as enter the part.
        rounds: updates of the inverses on the batch before the parts learn, >= 0; 0 for parallel training.
        inverse: site -> module back to h_in, from h_out (N, ...) or, for the last part, from (N, outputs); the default
            is `Inverse`.

    Raises:
        MethodError: an argument is out of range, or `labelled` comes without `outputs`.

    References:
        Y. Bengio, How auto-encoders could provide credit assignment in deep networks via target propagation,
        arXiv 2014, https://arxiv.org/abs/1407.7906

    Departs from the paper: it trains pairs of encoders and decoders with several reconstruction terms; here encoders
    follow their target alone, which is how D.-H. Lee et al., ECML PKDD 2015, state and compare the method.

    >>> TargetPropagation(labelled=True, outputs=10).rounds
    0
    """

    step_size: float = 0.328
    labelled: bool = False
    outputs: int | None = None
    noise: float = 0.36
    width: int | None = None
    rounds: int = 0
    inverse: Callable[[Site], nn.Module] | None = None

    family: ClassVar[Family] = Family.TARGETS
    locality: ClassVar[Locality] = Locality(Reach.TARGETS)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "Y. Bengio",
            "How auto-encoders could provide credit assignment in deep networks via target propagation",
            "arXiv",
            2014,
            "https://arxiv.org/abs/1407.7906",
        ),
    )

    def __post_init__(self) -> None:
        sizes = all(value is None or value >= 1 for value in (self.width, self.outputs))
        if not (self.step_size > 0 and self.noise >= 0 and sizes and self.rounds >= 0):
            raise MethodError(
                f"{self} was given; give step_size > 0, noise >= 0, width >= 1 or None, outputs >= 1, rounds >= 0"
            )
        if self.labelled and self.outputs is None:
            raise MethodError(f"{self} was given; with labelled=True give outputs, the elements of one sample's output")

    def objective(self, site: Site) -> Objective:
        """The task loss at the top, targets below it, an inverse for every part that sends a target on."""
        if site.last and not self.labelled:
            return ByGradient(site, first=partial(first_target, step_size=self.step_size), waits=self.rounds > 0)
        lesson = partial(reconstruction, noise=self.noise)
        own = inverse_at(site, self.inverse, outputs=self.outputs or 1, width=self.width)
        if not site.last:
            return Targeted(own, rule=by_inverse, lesson=lesson, rounds=self.rounds)
        target = LabelTarget(self.outputs or 1)
        return ByOutput(site, own, target=target, rule=by_inverse, lesson=lesson, rounds=self.rounds)
