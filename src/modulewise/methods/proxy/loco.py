"""LoCo: a contrastive loss per part that reaches one part down, so that neighbours share what they learn."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import nn

from ... import heads, losses
from ...errors import MethodError
from ...heads.layers import at_least_one
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Context, Objective, Signal, Site
from ..objectives import TaskLoss
from ..overlapping import Overlapping

__all__ = ["Contrast", "LoCo"]


class Contrast(Objective):
    """NT-Xent of two views on a head of h_out.

    Args:
        head: h_out (2N, ...) -> (2N, features).
        temperature: of NT-Xent, > 0.
    """

    def __init__(self, head: nn.Module, *, temperature: float) -> None:
        super().__init__()
        self.head, self.temperature = head, temperature

    def forward(self, context: Context) -> Signal:
        """The contrast of two views."""
        if context.views != 2:
            raise MethodError(
                f"views={context.views} was given, LoCo contrasts two views of every sample; give views=2 and x with "
                "both stacked, (2N, ...)"
            )
        return Signal(loss=losses.nt_xent(self.head(context.h_out), temperature=self.temperature))


@dataclass(frozen=True)
class LoCo(PartwiseMethod):
    """Part k learns from its own contrastive loss and from that of part k + 1; the last minimises the task loss.

    L_k = NT-Xent(head_k(h_k)) on two views of every sample, `losses.nt_xent`. Unit k is the pair of parts
    (k - 1, k) with h_{k-2} detached: the gradient of L_k goes through part k and through part k - 1 and stops. So every
    part but the first and the last two belongs to two units, and two parts' graphs are alive at a time. No label
    reaches a part below the last, which is a classifier trained on the fly on features it cannot change (its loss
    reaches no part below), on both views.

    Args:
        temperature: of the softmax over similarities, > 0, default 0.1.
        features: dimensions of the projection, >= 1, default 128.
        head: makes the decoder of a boundary: `heads.projection` (default), a deeper one such as `heads.conv` or
            `heads.mlp_sr`, or your own.

    Raises:
        MethodError: a number is out of range, or (in a step) views is not 2 or the batch has one sample.

    References:
        Y. Xiong, M. Ren, R. Urtasun, LoCo: Local Contrastive Representation Learning, NeurIPS 2020,
        https://arxiv.org/abs/2008.01342
        T. Chen, S. Kornblith, M. Norouzi, G. Hinton, A Simple Framework for Contrastive Learning of Visual
        Representations, ICML 2020, https://arxiv.org/abs/2002.05709

    Departs from the paper: the first part has a loss of its own as well, so that two parts (one and the
    classifier) train at all. Temperature, projection and its size are SimCLR's.

    >>> from modulewise.partition.boundary import Boundary
    >>> boundary = Boundary("layer1", (8, 4, 6, 6))
    >>> units = [LoCo().objective(Site(k, 4, boundary, boundary, loss=losses.classification)) for k in range(3)]
    >>> [(unit.reads_input_gradient, unit.overlaps) for unit in units]
    [(False, True), (True, True), (True, False)]
    """

    name: ClassVar[str] = "loco"
    views: ClassVar[int] = 2
    family: ClassVar[Family] = Family.PROXY
    locality: ClassVar[Locality] = Locality(Reach.WINDOW, window=2)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "Y. Xiong, M. Ren, R. Urtasun",
            "LoCo: Local Contrastive Representation Learning",
            "NeurIPS",
            2020,
            "https://arxiv.org/abs/2008.01342",
        ),
        Reference(
            "T. Chen, S. Kornblith, M. Norouzi, G. Hinton",
            "A Simple Framework for Contrastive Learning of Visual Representations",
            "ICML",
            2020,
            "https://arxiv.org/abs/2002.05709",
        ),
    )

    _: KW_ONLY
    temperature: float = 0.1
    features: int = 128
    head: heads.HeadFactory = heads.projection

    def __post_init__(self) -> None:
        at_least_one(features=self.features)
        if not self.temperature > 0:
            raise MethodError(f"temperature={self.temperature} was given, expected a positive number; try 0.1")

    def objective(self, site: Site) -> Objective:
        """The overlapping contrast, or the task loss."""
        if site.last:
            return TaskLoss(site.loss)
        contrast = Contrast(self.head(site.boundary, self.features), temperature=self.temperature)
        return Overlapping(contrast, site=site, closed=site.part == site.parts - 2)
