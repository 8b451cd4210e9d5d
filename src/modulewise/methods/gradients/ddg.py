"""Decoupled parallel backpropagation with delayed gradients: every part uses an earlier batch's gradient and graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...errors import MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from ..reference.backprop import ChainRule

__all__ = ["DDG"]


@dataclass(frozen=True, kw_only=True)
class DDG(PartwiseMethod):
    """Delayed gradients: in step t part k of K follows the gradient of step t - d_k, d_k = lag (K - 1 - k).

    theta_k(t+1) = theta_k(t) - rate (dh_k/dtheta_k)^T dL/dh_k, both factors those of batch t - d_k at the weights of
    step t - d_k. Part k + 1 made dL/dh_k one lag before, so that in a step no part waits for another's backward. The
    graph is kept until then, with a copy of the weights it was made with: memory grows with d_k. Parts do not learn
    in their first d_k steps, and the last d_k batches of training are not learned from. With lag 0, or one part,
    this is E2EBP.

    Args:
        lag: steps between a part and the part above it, >= 0, default 1 (the paper's).

    Raises:
        MethodError: lag is below 0; or, from the trainer, batches are cut into slices or a schedule has no later parts.

    References:
        Z. Huo, B. Gu, Q. Yang, H. Huang, Decoupled Parallel Backpropagation with Convergence Guarantee, ICML 2018,
        https://arxiv.org/abs/1804.10574

    Departs from the paper: one process runs the parts one after the other; what every part computes is the same.

    >>> from modulewise.partition.boundary import Boundary
    >>> site = Site(0, 3, None, Boundary("cut", (4, 3)), loss=lambda output, y: output.mean())
    >>> DDG().objective(site).delay
    2
    """

    name: ClassVar[str] = "ddg"
    family: ClassVar[Family] = Family.GRADIENTS
    locality: ClassVar[Locality] = Locality(Reach.DELAYED)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "Z. Huo, B. Gu, Q. Yang, H. Huang",
            "Decoupled Parallel Backpropagation with Convergence Guarantee",
            "ICML",
            2018,
            "https://arxiv.org/abs/1804.10574",
        ),
    )

    lag: int = 1

    def __post_init__(self) -> None:
        if self.lag < 0:
            raise MethodError(f"lag={self.lag} was given to DDG; give the steps between two parts, 0 or more")

    def objective(self, site: Site) -> Objective:
        """The chain rule's share of the part, late."""
        return ChainRule(site, lag=self.lag)
