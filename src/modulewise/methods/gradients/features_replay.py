"""Features replay: every part runs an earlier batch's input again, with its present weights, for a delayed gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...errors import MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from ..reference.backprop import ChainRule

__all__ = ["FeaturesReplay"]


@dataclass(frozen=True, kw_only=True)
class FeaturesReplay(PartwiseMethod):
    """Features replay: in step t part k of K runs on its input of step t - d_k again, d_k = lag (K - 1 - k).

    theta_k(t+1) = theta_k(t) - rate (d f_k(h_{k-1}(t - d_k); theta_k(t)) / dtheta_k)^T delta_k, where delta_k is the
    gradient at h_k that part k + 1 made of the same batch one lag before. Only inputs are kept, no graph and no
    weights; one more forward of every part but the last is paid for that. Draws (dropout) of a batch are those of its
    first forward, and buffers move in that one alone. Parts do not learn in their first d_k steps, and the last d_k
    batches of training are not learned from. With lag 0, or one part, this is E2EBP.

    Args:
        lag: steps between a part and the part above it, >= 0, default 1 (the paper's).

    Raises:
        MethodError: lag is below 0; or, from the trainer, batches are cut into slices or a schedule has no later parts.

    References:
        Z. Huo, B. Gu, H. Huang, Training Neural Networks Using Features Replay, NeurIPS 2018,
        https://arxiv.org/abs/1807.04511

    Departs from the paper: one process runs the parts one after the other; what every part computes is the same.

    >>> from modulewise.partition.boundary import Boundary
    >>> site = Site(0, 3, None, Boundary("cut", (4, 3)), loss=lambda output, y: output.mean())
    >>> objective = FeaturesReplay().objective(site)
    >>> objective.delay, objective.recompute
    (2, True)
    """

    family: ClassVar[Family] = Family.GRADIENTS
    locality: ClassVar[Locality] = Locality(Reach.DELAYED)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "Z. Huo, B. Gu, H. Huang",
            "Training Neural Networks Using Features Replay",
            "NeurIPS",
            2018,
            "https://arxiv.org/abs/1807.04511",
        ),
    )

    lag: int = 1

    def __post_init__(self) -> None:
        if self.lag < 0:
            raise MethodError(
                f"lag={self.lag} was given to FeaturesReplay; give the steps between two parts, 0 or more"
            )

    def objective(self, site: Site) -> Objective:
        """The chain rule's share of the part, run again late."""
        return ChainRule(site, recompute=True, lag=self.lag)
