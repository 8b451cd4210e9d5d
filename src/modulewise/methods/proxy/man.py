"""MAN: every part's head looks ahead through an average of the next part's first weights."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import nn

from ... import heads, losses
from ...errors import MethodError
from ...heads.averaging import MomentumHead, momentum_head
from ...heads.layers import at_least_one
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Context, Objective, Signal, Site
from ..objectives import TaskLoss

__all__ = ["MAN", "MomentumLoss"]


class MomentumLoss(Objective):
    """criterion(head(h_out), y), once the head's average has followed the next part's weights.

    Args:
        head: the auxiliary head; one that is no `MomentumHead` follows nothing.
        criterion: criterion(logits, y) -> scalar.
    """

    def __init__(self, head: nn.Module, criterion: losses.Criterion) -> None:
        super().__init__()
        self.head, self.criterion = head, criterion

    @property
    def classifier(self) -> nn.Module | None:
        """The head."""
        return self.head

    def forward(self, context: Context) -> Signal:
        """Follow, then the criterion on the head's logits."""
        if isinstance(self.head, MomentumHead):
            self.head.follow()
        return Signal(loss=self.criterion(self.head(context.h_out), context.labels))


@dataclass(frozen=True)
class MAN(PartwiseMethod):
    """Part k minimises CE(classifier(s LB(h_k) + (2 - s) EMA(h_k)), y); the last the task loss.

    LB ("learnable bias") and EMA are copies of the first block of the next part. LB is trained with the head. EMA
    follows the block itself, before every forward: EMA <- m EMA + (1 - m) w_{k+1}; no gradient reaches its weights,
    but one passes through it to h_k. With s learned from 1 on it is MAN++, with s = 1 it is MAN. Parts are isolated
    in gradient and not in parameters: next to h, weights of part k + 1 cross the cut, read-only, from part k + 1 to
    part k. Under `schedules.sequential` these are the next part's initial weights, as it learns later.

    Args:
        classes: number of classes, >= 1.
        momentum: m, in [0, 1], default 0.995.
        learned_scale: learn s (MAN++, default) or keep it at 1 (MAN).
        head: makes the classifier, default `heads.mlp_sr`, that of DGL.
        criterion: criterion(logits, y) -> scalar.
        dense: one label per position (tokens, pixels) instead of one per sample.

    Raises:
        MethodError: classes is below 1, momentum is outside [0, 1], or the block cannot be copied.

    References:
        J. Su, C. Cai, F. Zhu, C. He, X. Xu, D. Guan, C. Si, Momentum Auxiliary Network for Supervised Local
        Learning, ECCV 2024, https://arxiv.org/abs/2407.05623
        J. Su, F. Zhu, H. Shi, T. Han, Y. Qiu, J. Luo, X. Wei, J. Gao, MAN++: Scaling Momentum Auxiliary
        Network for Supervised Local Learning in Vision Tasks, IEEE TPAMI 2026, https://arxiv.org/abs/2507.16279

    Departs from the paper's code: EMA starts at the next part's weights instead of at random ones, and follows before
    the forward instead of after the backward. The paper puts its copies under DGL's or InfoPro's loss; here it is DGL's
    alone. For ViT its head has a second trained block. A part that only a classifier follows has a classifier alone.
    With gradients accumulated over n slices EMA follows n times a step.

    >>> from modulewise.partition.boundary import Block, Boundary
    >>> here = Boundary("body", (4, 8))
    >>> site = Site(0, 2, None, here, losses.classification, lambda: (Block("next", nn.Linear(8, 8), here, here),))
    >>> objective = MAN(classes=3, head=heads.linear).objective(site)
    >>> [name for name, p in objective.named_parameters() if not p.requires_grad]
    ['head.average.weight', 'head.average.bias']
    """

    name: ClassVar[str] = "man"
    family: ClassVar[Family] = Family.PROXY
    locality: ClassVar[Locality] = Locality(Reach.PORT)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "J. Su, C. Cai, F. Zhu, C. He, X. Xu, D. Guan, C. Si",
            "Momentum Auxiliary Network for Supervised Local Learning",
            "ECCV",
            2024,
            "https://arxiv.org/abs/2407.05623",
        ),
        Reference(
            "J. Su, F. Zhu, H. Shi, T. Han, Y. Qiu, J. Luo, X. Wei, J. Gao",
            "MAN++: Scaling Momentum Auxiliary Network for Supervised Local Learning in Vision Tasks",
            "IEEE TPAMI",
            2026,
            "https://arxiv.org/abs/2507.16279",
        ),
    )

    classes: int
    _: KW_ONLY
    momentum: float = 0.995
    learned_scale: bool = True
    head: heads.HeadFactory = heads.mlp_sr
    criterion: losses.Criterion = losses.classification
    dense: bool = False

    def __post_init__(self) -> None:
        at_least_one(classes=self.classes)
        if not 0 <= self.momentum <= 1:
            raise MethodError(f"momentum={self.momentum} was given, expected a number in [0, 1]; the paper's is 0.995")

    def objective(self, site: Site) -> Objective:
        """The head on two copies, or the task loss."""
        if site.last:
            return TaskLoss(site.loss)
        head = momentum_head(
            site.boundary,
            self.classes,
            blocks=site.blocks(),
            classifier=self.head,
            momentum=self.momentum,
            learned_scale=self.learned_scale,
            dense=self.dense,
        )
        return MomentumLoss(head, self.criterion)
