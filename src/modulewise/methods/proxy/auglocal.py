"""AugLocal: every part with a head made of fresh, small copies of later layers."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from ... import heads, losses
from ...errors import MethodError
from ...heads.layers import at_least_one
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from ..objectives import HeadLoss, TaskLoss

__all__ = ["AugLocal"]


@dataclass(frozen=True)
class AugLocal(PartwiseMethod):
    """Each part minimises the classification loss of a head made of d later layers; the last the task loss.

    Features then keep what later layers can use, not what a linear classifier can read at once. Copies are
    sampled evenly from the layers after the part and start afresh (see `heads.downstream`); they share
    nothing with the network, so that locality is strict. The depth falls linearly with the part's index k =
    0 .. K - 2:

        d_k = floor(depth - (depth - minimum_depth) * k / max(1, K - 2) + 1/2).

    Args:
        classes: number of classes, >= 1.
        depth: copies for the first part, >= 1, default 2.
        minimum_depth: copies for the part before the last, in [1, depth], default 1.
        shrink: factor by which copies reduce the resolution of images, >= 1, default 2.
        criterion: criterion(logits, y) -> scalar.
        dense: one label per position (tokens, pixels) instead of one per sample.

    Raises:
        MethodError: a number is below 1, minimum_depth exceeds depth, or a block cannot be copied.

    References:
        C. Ma, J. Wu, C. Si, K. C. Tan, Scaling Supervised Local Learning with Augmented Auxiliary Networks,
        ICLR 2024, https://arxiv.org/abs/2402.17318

    Departs from the paper: see `heads.downstream`.

    >>> [AugLocal(classes=10, depth=3).depth_at(part, parts=6) for part in range(5)]
    [3, 3, 2, 2, 1]
    """

    name: ClassVar[str] = "auglocal"
    family: ClassVar[Family] = Family.PROXY
    locality: ClassVar[Locality] = Locality(Reach.STRICT)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "C. Ma, J. Wu, C. Si, K. C. Tan",
            "Scaling Supervised Local Learning with Augmented Auxiliary Networks",
            "ICLR",
            2024,
            "https://arxiv.org/abs/2402.17318",
        ),
    )

    classes: int
    _: KW_ONLY
    depth: int = 2
    minimum_depth: int = 1
    shrink: int = 2
    criterion: losses.Criterion = losses.classification
    dense: bool = False

    def __post_init__(self) -> None:
        at_least_one(classes=self.classes, depth=self.depth, minimum_depth=self.minimum_depth, shrink=self.shrink)
        if self.minimum_depth > self.depth:
            raise MethodError(
                f"minimum_depth={self.minimum_depth} and depth={self.depth} were given, heads grow shallower with "
                "the part; choose minimum_depth <= depth"
            )

    def depth_at(self, part: int, *, parts: int) -> int:
        """d_k, the number of copies in the head of a part before the last."""
        fall = (self.depth - self.minimum_depth) * part / max(1, parts - 2)
        return math.floor(self.depth - fall + 0.5)

    def objective(self, site: Site) -> Objective:
        """The head of copies, or the task loss."""
        if site.last:
            return TaskLoss(site.loss)
        head = heads.downstream(
            site.boundary,
            self.classes,
            blocks=site.blocks(),
            depth=self.depth_at(site.part, parts=site.parts),
            dense=self.dense,
            shrink=self.shrink,
        )
        return HeadLoss(head, self.criterion)
