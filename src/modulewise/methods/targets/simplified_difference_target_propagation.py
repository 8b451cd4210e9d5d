"""Simplified difference target propagation: the difference rule from the label down; no gradient crosses a cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import nn

from ...errors import MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from .difference_target_propagation import by_difference
from .inverses import inverse_at
from .output_targets import LabelTarget
from .targets_objective import ByOutput, Targeted, reconstruction

__all__ = ["SimplifiedDTP"]


@dataclass(frozen=True, kw_only=True)
class SimplifiedDTP(PartwiseMethod):
    """Simplified difference target propagation: t_{k-1} = h_{k-1} + g_k(t_k) - g_k(h_k) at all parts, the last too.

    The target of the output is the label: h_K = softmax(o) and t_K one-hot for integer labels, h_K = o and t_K the
    label for floating ones. The last part minimises the task loss, earlier ones ||h_k - t_k||^2. Every inverse, that of
    the last part included, minimises ||g_k(h_k(h + e)) - (h + e)||^2, e ~ N(0, noise^2); part 0 has none. Distances are
    batch means of sums over features. With `rounds` 0 the inverses learn beside the parts; else they make `rounds`
    updates on the batch before any part learns, and targets are made with what they have learned.

    Args:
        outputs: number of elements of one sample's output (the classes, in classification), >= 1.
        noise: standard deviation of the noise in the inverses' loss, in units of h, >= 0.
        width: channels of the default inverse's hidden layer; None for as many as enter the part.
        rounds: updates of the inverses on the batch before the parts learn, >= 0; 0 for parallel training.
        distribution: floating labels are distributions over the classes, so that h_K = softmax(o).
        inverse: site -> module back to h_in, from h_out (N, ...) or, for the last part, from (N, outputs); the default
            is `Inverse`.

    Raises:
        MethodError: an argument is out of range.

    References:
        S. Bartunov, A. Santoro, B. A. Richards, L. Marris, G. E. Hinton, T. P. Lillicrap, Assessing the scalability of
        biologically-motivated deep learning algorithms and architectures, NeurIPS 2018,
        https://arxiv.org/abs/1807.04587

    >>> SimplifiedDTP(outputs=10).noise
    0.36
    """

    outputs: int
    noise: float = 0.36
    width: int | None = None
    rounds: int = 0
    distribution: bool = False
    inverse: Callable[[Site], nn.Module] | None = None

    name: ClassVar[str] = "sdtp"
    family: ClassVar[Family] = Family.TARGETS
    locality: ClassVar[Locality] = Locality(Reach.TARGETS)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "S. Bartunov, A. Santoro, B. A. Richards, L. Marris, G. E. Hinton, T. P. Lillicrap",
            "Assessing the scalability of biologically-motivated deep learning algorithms and architectures",
            "NeurIPS",
            2018,
            "https://arxiv.org/abs/1807.04587",
        ),
    )

    def __post_init__(self) -> None:
        width = self.width is None or self.width >= 1
        if not (self.outputs >= 1 and self.noise >= 0 and width and self.rounds >= 0):
            raise MethodError(f"{self} was given; give outputs >= 1, noise >= 0, width >= 1 or None, rounds >= 0")

    def objective(self, site: Site) -> Objective:
        """The task loss at the top, targets below it, an inverse for every part but the first."""
        lesson = partial(reconstruction, noise=self.noise)
        own = inverse_at(site, self.inverse, outputs=self.outputs, width=self.width)
        if not site.last:
            return Targeted(own, rule=by_difference, lesson=lesson, rounds=self.rounds)
        target = LabelTarget(self.outputs, distribution=self.distribution)
        return ByOutput(site, own, target=target, rule=by_difference, lesson=lesson, rounds=self.rounds)
