"""Greedy layerwise learning: every part with a shallow convolutional classifier."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from ... import heads, losses
from ...heads.layers import at_least_one
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from ..objectives import HeadLoss, TaskLoss

__all__ = ["Greedy"]


@dataclass(frozen=True)
class Greedy(PartwiseMethod):
    """Each part minimises the classification loss of a head of depth k, CE(C_k(h_out), y); the last the task loss.

    C_1 is linear after average pooling to 2x2; C_k has k - 1 convolutions before it. Published with one
    part after another (`schedules.sequential`); side by side it is decoupled greedy learning with another
    head. `models.greedy_cnn` is the paper's network; `engine.exits.ensemble` is its ensemble of the heads
    after training, Z = sum_j 2^j z_j. Progressive improvement (proposition 3.1): a new block that can be the
    identity (same shape, no norm in the way), under the head of the part below, gives the same logits, since
    ReLU(ReLU(h)) = ReLU(h); the least training loss of such a part is at most that of the part below.

    Args:
        classes: number of classes, >= 1.
        depth: k >= 1; published 1, 2 and 3, default 1.
        width: channels of the head's convolutions, >= 1; those of the boundary where left out.
        criterion: criterion(logits, y) -> scalar.
        dense: one label per position (tokens, pixels) instead of one per sample.

    Raises:
        MethodError: a number is below 1, or a dense head is asked of a boundary without positions (when
            bound to a partition).

    References:
        E. Belilovsky, M. Eickenberg, E. Oyallon, Greedy Layerwise Learning Can Scale to ImageNet, ICML 2019,
        https://arxiv.org/abs/1812.11446

    Departs from the paper: downsampling stays where the user's network has it; no batch norm between the
    pooling and the linear layer, which the authors' scripts have where the network is normed.

    >>> from modulewise.partition.boundary import Boundary
    >>> site = Site(0, 2, None, Boundary("layer1", (2, 8, 4, 4)), loss=losses.classification)
    >>> sum(p.numel() for p in Greedy(classes=10).objective(site).parameters())  # 8 channels at 2x2, and biases
    330
    """

    family: ClassVar[Family] = Family.PROXY
    locality: ClassVar[Locality] = Locality(Reach.STRICT)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "E. Belilovsky, M. Eickenberg, E. Oyallon",
            "Greedy Layerwise Learning Can Scale to ImageNet",
            "ICML",
            2019,
            "https://arxiv.org/abs/1812.11446",
        ),
    )

    classes: int
    _: KW_ONLY
    depth: int = 1
    width: int | None = None
    criterion: losses.Criterion = losses.classification
    dense: bool = False

    def __post_init__(self) -> None:
        at_least_one(classes=self.classes, depth=self.depth, width=self.width)

    def objective(self, site: Site) -> Objective:
        """The head of depth k, or the task loss."""
        if site.last:
            return TaskLoss(site.loss)
        head = heads.conv(site.boundary, self.classes, depth=self.depth, width=self.width, dense=self.dense)
        return HeadLoss(head, self.criterion)
