"""GAIT-prop: targets a small step away, mapped back by exact inverses; with orthogonal weights backpropagation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...errors import MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from .gait_prop_objective import Adjusted, AdjustedTop
from .invertible import invertible_layer

__all__ = ["GaitProp"]


@dataclass(frozen=True, kw_only=True)
class GaitProp(PartwiseMethod):
    """Gradient-adjusted incremental target propagation: m_l ||h_l - s_l||^2 / 2 with targets from exact inverses.

    Every part above the first is f_l(x) = act(W x + b), W square. s_K = o - N dL/do (the label, for half the squared
    error), s_{l-1} = f_l^{-1}((1 - gamma f'^2) h_l + gamma f'^2 s_l), m_K = 1, m_{l-1} = m_l / gamma, and these parts
    also minimise orthogonality ||W W^T - diag(W W^T)||^2. Where W is orthogonal the updates are those of E2EBP: exactly
    for leaky ReLU as long as targets cross no kink, to O(gamma) for smooth activations. The last part minimises the
    task loss; it may narrow, and is then inverted as the square layer with added outputs that keep their values, the
    auxiliary outputs of the paper. The first part may be anything: nothing is below it.

    Activations: LeakyReLU, Tanh, Sigmoid, ELU or none. Orthogonal initial weights help, and are the caller's to set:
    `modulewise.methods.targets.orthogonal_`.

    Args:
        gamma: share of the target in what is inverted, in (0, 1].
        orthogonality: factor of the soft orthogonality, >= 0.

    Raises:
        MethodError: an argument is out of range, or a part above the first has no exact inverse.

    References:
        N. Ahmad, M. A. J. van Gerven, L. Ambrogioni, GAIT-prop: A biologically plausible learning rule derived from
        backpropagation of error, NeurIPS 2020, https://arxiv.org/abs/2006.06438

    Departs from the paper: messages carry m (s - h) in float64 instead of s, which costs no digits; added outputs of
    the last part are not stored, their rows are taken to be orthogonal to those of W; the task loss may be any.

    >>> GaitProp(gamma=1e-2).orthogonality
    0.1
    """

    gamma: float = 1e-3
    orthogonality: float = 0.1

    name: ClassVar[str] = "gait-prop"
    family: ClassVar[Family] = Family.TARGETS
    locality: ClassVar[Locality] = Locality(Reach.TARGETS)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "N. Ahmad, M. A. J. van Gerven, L. Ambrogioni",
            "GAIT-prop: A biologically plausible learning rule derived from backpropagation of error",
            "NeurIPS",
            2020,
            "https://arxiv.org/abs/2006.06438",
        ),
    )

    def __post_init__(self) -> None:
        if not (0 < self.gamma <= 1 and self.orthogonality >= 0):
            raise MethodError(f"{self} was given; give gamma in (0, 1] and orthogonality >= 0")

    def objective(self, site: Site) -> Objective:
        """The task loss at the top, targets below it; every part but the first is checked for its inverse."""
        layer = None if site.input is None else invertible_layer(site)
        if site.last:
            return AdjustedTop(site, layer, gamma=self.gamma, orthogonality=self.orthogonality)
        return Adjusted(layer, gamma=self.gamma, orthogonality=self.orthogonality)
