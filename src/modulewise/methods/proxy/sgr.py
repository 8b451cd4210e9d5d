"""Successive gradient reconciliation: neighbouring parts agree on the gradient at the boundary they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ... import heads, losses
from ...errors import MethodError
from ...heads.layers import at_least_one
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Context, Objective, Signal, Site
from ..objectives import Around, classified

__all__ = ["SGR", "Reconciled"]


class Reconciled(Around):
    """A loss, and the distance of its gradient at h_in to the one that the part below has at the same boundary.

    Args:
        inner: the loss of the part.
        part: index of the part.
        last: whether it is the last part, which has nobody to tell.
        weight: of the distance.
    """

    def __init__(self, inner: Objective, *, part: int, last: bool, weight: float) -> None:
        super().__init__(inner)
        self.last, self.weight = last, weight
        self.reads_input_gradient = self.differentiates = part > 0
        self._sent: Tensor | None = None

    def forward(self, context: Context) -> Signal:
        """L_k, and weight times the distance once the part below has sent its gradient."""
        own = self.inner(context).loss
        assert isinstance(own, Tensor)
        if not self.last and context.h_out.requires_grad:
            # Of L_k alone: after the backward the gradient at h_out would hold the distance's as well.
            (self._sent,) = torch.autograd.grad(own, context.h_out, retain_graph=True)
        if not context.feedback:
            return Signal(loss=own)
        (gradient,) = torch.autograd.grad(own, context.h_in, create_graph=True)
        distance = losses.gradient_distance(gradient, context.feedback[context.part - 1].to(gradient.dtype))
        return Signal(loss=own + self.weight * distance, report=own)

    def messages(self, context: Context) -> Mapping[int, Tensor]:
        """dL_k/dh_k to the part above."""
        sent, self._sent = self._sent, None
        return {} if sent is None else {context.part + 1: sent}


@dataclass(frozen=True)
class SGR(PartwiseMethod):
    """Each part minimises its loss and the disagreement with the part below about the gradient between them.

    Part k > 0 minimises

        L_k + weight * N ||dL_k/dh_{k-1} - stop(dL_{k-1}/dh_{k-1})||^2,

    L_k = CE(head(h_k), y), for the last part the task loss; N the batch size, see `losses.gradient_distance`. If
    neighbours agree everywhere, local steps are the steps of end-to-end backpropagation. The gradient goes up with the
    batch, nothing comes down: no part waits for a later one. It costs a second backward through every part but the
    first, and layers that can be differentiated twice (not every fused attention can).

    Args:
        classes: number of classes, >= 1.
        weight: of the disagreement, > 0, default 1.
        head: makes the head of a boundary, default `heads.mlp_sr`.
        criterion: criterion(logits, y) -> scalar.
        dense: one label per position (tokens, pixels) instead of one per sample.

    Raises:
        MethodError: classes is below 1 or weight not positive; (when fitted) the schedule runs one part at a time.

    References:
        Y. Yang, X. Li, M. Alfarra, H. Hammoud, A. Bibi, P. Torr, B. Ghanem, Towards Interpretable Deep Local Learning
        with Successive Gradient Reconciliation, ICML 2024, https://arxiv.org/abs/2406.05222

    Departs from the paper: the distance is counted per sample, so that `weight` does not depend on the batch size; the
    paper's weights could not be read. Its variant without any backpropagation inside parts is left out.

    >>> SGR(classes=10).locality.sends_feedback, str(SGR(classes=10).locality)
    (True, 'port')
    """

    family: ClassVar[Family] = Family.PROXY
    locality: ClassVar[Locality] = Locality(Reach.PORT, messages=True)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "Y. Yang, X. Li, M. Alfarra, H. Hammoud, A. Bibi, P. Torr, B. Ghanem",
            "Towards Interpretable Deep Local Learning with Successive Gradient Reconciliation",
            "ICML",
            2024,
            "https://arxiv.org/abs/2406.05222",
        ),
    )

    classes: int
    _: KW_ONLY
    weight: float = 1.0
    head: heads.HeadFactory = heads.mlp_sr
    criterion: losses.Criterion = losses.classification
    dense: bool = False

    def __post_init__(self) -> None:
        at_least_one(classes=self.classes)
        if not self.weight > 0:
            raise MethodError(f"weight={self.weight} was given, expected a positive one; without it the method is DGL")

    def objective(self, site: Site) -> Objective:
        """The reconciled loss of the part."""
        own = classified(site, self.head, classes=self.classes, criterion=self.criterion, dense=self.dense)
        return Reconciled(own, part=site.part, last=site.last, weight=self.weight)
