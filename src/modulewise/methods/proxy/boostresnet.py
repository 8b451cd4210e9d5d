"""BoostResNet: every part adds a module to a boosted sum that telescopes to the network."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ... import heads, losses
from ...errors import MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Context, Objective, Signal, Site
from ..objectives import TaskLoss

__all__ = ["BoostResNet", "BoostedModule"]


class BoostedModule(Objective):
    """The exponential loss of alpha o, o = softmax(head(h_out)).

    Args:
        head: h_out -> logits (N, C).
        alpha: initial weight of the module, > 0.
    """

    def __init__(self, head: nn.Module, *, alpha: float) -> None:
        super().__init__()
        self.head = head
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))

    @property
    def classifier(self) -> nn.Module | None:
        """The head."""
        return self.head

    def hypothesis(self, h: Tensor) -> Tensor:
        """The module's bounded output o (N, C), in float32 or wider; what `losses.edge` takes."""
        logits: Tensor = self.head(h)
        return logits.softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))

    def forward(self, context: Context) -> Signal:
        """The exponential loss of the module's scores."""
        return Signal(loss=losses.exponential_loss(self.alpha * self.hypothesis(context.h_out), context.labels))


@dataclass(frozen=True)
class BoostResNet(PartwiseMethod):
    """Each part minimises the exponential loss of its own module; the last the task loss.

    Module t scores s_t = alpha_t o_t, o_t = softmax(W_t g_t), g_t the (pooled) output of part t, alpha_t one trained
    number. What boosting adds is h_t = s_t - s_{t-1}; the sum of the h telescopes to s_t, so that the boosted
    weights exp(-sum h) cancel and part t minimises mean_n sum_{c != y} exp(s_t(n, c) - s_t(n, y)) over its own weights,
    W_t and alpha_t. Published one block after another (the sequential schedule). `losses.edge` of the objectives'
    `hypothesis`, and `losses.weak_learning_edge`, tell whether the theory's condition holds for a block.

    Args:
        classes: number of classes, >= 2.
        head: makes the logits W g of a boundary, `heads.linear` (published) or another factory.
        alpha: alpha_t at the start, > 0, default 1.

    Raises:
        MethodError: a number is out of range, or (in a step) labels are not one integer per sample.

    References:
        F. Huang, J. T. Ash, J. Langford, R. E. Schapire, Learning Deep ResNet Blocks Sequentially using Boosting
        Theory, ICML 2018, https://arxiv.org/abs/1706.04964

    Departs from the paper: the output is bounded by a softmax over classes, and not by a bound on ||W||_1 (the authors'
    script has a softmax over the batch, and starts from an edge of 0.5); the published code descends exp(cross-
    entropy) and sets alpha_t from the edge, here both follow the paper's minimisation (6). The number of parts is
    given, no part is added or stopped by its edge. Any network is taken; the theory is for residual blocks.

    >>> from modulewise.partition.boundary import Boundary
    >>> site = Site(0, 2, None, Boundary("layer1", (2, 8, 4, 4)), loss=losses.classification)
    >>> sum(p.numel() for p in BoostResNet(classes=10).objective(site).parameters())  # 32 x 10, biases, alpha
    331
    """

    name: ClassVar[str] = "boostresnet"
    family: ClassVar[Family] = Family.PROXY
    locality: ClassVar[Locality] = Locality(Reach.STRICT)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "F. Huang, J. T. Ash, J. Langford, R. E. Schapire",
            "Learning Deep ResNet Blocks Sequentially using Boosting Theory",
            "ICML",
            2018,
            "https://arxiv.org/abs/1706.04964",
        ),
    )

    classes: int
    _: KW_ONLY
    head: heads.HeadFactory = heads.linear
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise MethodError(f"classes={self.classes} was given, BoostResNet needs at least 2")
        if not self.alpha > 0:
            raise MethodError(f"alpha={self.alpha} was given, expected a number above 0; the usual start is 1")

    def objective(self, site: Site) -> Objective:
        """The boosted module, or the task loss."""
        if site.last:
            return TaskLoss(site.loss)
        return BoostedModule(self.head(site.boundary, self.classes), alpha=self.alpha)
