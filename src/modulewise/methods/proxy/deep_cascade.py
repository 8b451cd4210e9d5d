"""Deep cascade learning: layers added one at a time, each below a fully connected output block of its own."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from ... import losses
from ...errors import MethodError
from ...heads.cascade import output_block
from ...heads.layers import at_least_one
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from ..objectives import HeadLoss, TaskLoss

__all__ = ["DeepCascade"]


@dataclass(frozen=True)
class DeepCascade(PartwiseMethod):
    """Each part minimises CE(block(h_out), y) of a fully connected output block; the last part the task loss.

    block = flatten, dropout, linear to `width`, ReLU, dropout, linear to width / 2, ReLU, linear to the
    classes. Published with one part after another, those below frozen (`schedules.sequential`); the block is
    thrown away when the next part begins. What differs from `Greedy` and `DGL` is the block, which sees every
    position instead of an average, and from `DGL` the schedule.

    The block's first layer has `width` times all elements of h_out as weights (67 million for 128 maps of
    32x32), far more than the part it trains; `pool` bounds that.

    Args:
        classes: number of classes, >= 1.
        width: units of the first hidden layer, >= 1, default 512; the second has half of them.
        dropout: probability of dropping an input of each hidden layer, in [0, 1), default 0.5.
        pool: average spatial axes to this size before flattening, >= 1; None (default) keeps all positions.
        criterion: criterion(logits, y) -> scalar.

    Raises:
        MethodError: a number is out of range.

    References:
        E. S. Marquez, J. S. Hare, M. Niranjan, Deep Cascade Learning, IEEE TNNLS 2018,
        https://doi.org/10.1109/TNNLS.2018.2805098

    Departs from the paper: the last part is trained on the network's own output instead of keeping its block;
    the number of epochs is the same for every part (the paper's grows with depth), and the learning rate
    follows the trainer's scheduler instead of a plateau rule. Sizes and dropout are those of the authors'
    scripts; tokens are averaged before the block.

    >>> from modulewise.partition.boundary import Boundary
    >>> site = Site(0, 2, None, Boundary("layer1", (2, 8, 4, 4)), loss=losses.classification)
    >>> [tuple(p.shape) for p in DeepCascade(classes=10, width=6).objective(site).parameters() if p.ndim == 2]
    [(6, 128), (3, 6), (10, 3)]
    """

    name: ClassVar[str] = "deep-cascade"
    family: ClassVar[Family] = Family.PROXY
    locality: ClassVar[Locality] = Locality(Reach.STRICT)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "E. S. Marquez, J. S. Hare, M. Niranjan",
            "Deep Cascade Learning",
            "IEEE Transactions on Neural Networks and Learning Systems",
            2018,
            "https://doi.org/10.1109/TNNLS.2018.2805098",
        ),
    )

    classes: int
    _: KW_ONLY
    width: int = 512
    dropout: float = 0.5
    pool: int | None = None
    criterion: losses.Criterion = losses.classification

    def __post_init__(self) -> None:
        at_least_one(classes=self.classes, width=self.width, pool=self.pool)
        if not 0 <= self.dropout < 1:
            raise MethodError(f"dropout={self.dropout} was given, expected a probability in [0, 1); the paper's is 0.5")

    def objective(self, site: Site) -> Objective:
        """The output block of the part, or the task loss."""
        if site.last:
            return TaskLoss(site.loss)
        head = output_block(site.boundary, self.classes, width=self.width, dropout=self.dropout, pool=self.pool)
        return HeadLoss(head, self.criterion)
