"""End-to-end backpropagation with activation checkpointing: the control for memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from .backprop import ChainRule

__all__ = ["Checkpointed"]


@dataclass(frozen=True)
class Checkpointed(PartwiseMethod):
    """Backpropagation that keeps only the boundaries and runs every part again when its gradient arrives.

    The gradients are those of `Backprop`; one more forward of every part but the last is paid for holding the
    graph of one part at a time.

    References:
        T. Chen, B. Xu, C. Zhang, C. Guestrin, Training deep nets with sublinear memory cost, arXiv 2016,
        https://arxiv.org/abs/1604.06174

    >>> from modulewise.partition.boundary import Boundary
    >>> site = Site(0, 2, None, Boundary("cut", (4, 3)), loss=lambda output, y: output.mean())
    >>> Checkpointed().objective(site).recompute
    True
    """

    family: ClassVar[Family] = Family.REFERENCE
    locality: ClassVar[Locality] = Locality(Reach.GLOBAL)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "T. Chen, B. Xu, C. Zhang, C. Guestrin",
            "Training deep nets with sublinear memory cost",
            "arXiv",
            2016,
            "https://arxiv.org/abs/1604.06174",
        ),
    )

    def objective(self, site: Site) -> Objective:
        """The chain rule's share of the part, recomputed."""
        return ChainRule(site, recompute=True)
