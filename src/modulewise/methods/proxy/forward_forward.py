"""The forward-forward algorithm: every part tells samples with their own label from samples with another one."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ... import losses
from ...errors import MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Context, Loss, Objective, Signal, Site
from .forward_forward_labels import with_label

__all__ = ["ForwardForward"]


class _Contrast(Objective):
    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, context: Context) -> Signal:
        if context.views != 3:
            raise MethodError(f"views={context.views}, ForwardForward learns from its three; let `prepare` make them")
        positive, negative, _ = context.h_out.chunk(3)
        return Signal(loss=losses.goodness_contrast(positive, negative, threshold=self.threshold))


class _Unlabelled(Objective):
    """The task loss on the samples as they came, without a label in them."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, context: Context) -> Signal:
        h = context.h_out if context.views == 1 else context.h_out.chunk(3)[2]
        return Signal(loss=self.loss(h, context.y))


@dataclass(frozen=True)
class ForwardForward(PartwiseMethod):
    """Each part raises its goodness on samples that carry their label and lowers it on samples with a wrong one.

    With g(h) = mean h^2, parts before the last minimise softplus(threshold - g(h+)) and softplus(g(h-) - threshold),
    h+ being made from x with its label written into the first elements, h- from x with another label, drawn
    uniformly. The last part minimises the task loss on what unlabelled samples give: the paper's quick way to
    classify. `class_goodness` is its other one. A method makes these three views itself, so that a batch costs three.

    A part must not learn from the length of what enters it, which is the goodness of the part below: let every part
    begin by normalising its input (`models.rms_mlp` does). Batch statistics would mix the three views.

    Args:
        classes: number of classes, >= 2, at most the elements of a sample.
        threshold: goodness at which positive and negative are equally likely, > 0, default 1.

    Raises:
        MethodError: a number is out of range, or (in a step) x is no tensor of enough elements, or y no class each.

    References:
        G. Hinton, The Forward-Forward Algorithm: Some Preliminary Investigations, arXiv 2022,
        https://arxiv.org/abs/2212.13345

    Departs from the paper: goodness is a mean, not a sum, so that the threshold does not depend on the width; the
    classifier reads the last hidden part instead of all but the first; unlabelled samples are x itself, not a label of
    0.1 everywhere.

    >>> views, count = ForwardForward(classes=2).prepare(torch.tensor([[5.0, 7.0, 9.0]]), torch.tensor([1]))
    >>> views.tolist(), count
    ([[5.0, 9.0, 9.0], [9.0, 5.0, 9.0], [5.0, 7.0, 9.0]], 3)
    """

    family: ClassVar[Family] = Family.PROXY
    locality: ClassVar[Locality] = Locality(Reach.STRICT)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "G. Hinton",
            "The Forward-Forward Algorithm: Some Preliminary Investigations",
            "arXiv",
            2022,
            "https://arxiv.org/abs/2212.13345",
        ),
    )
    makes_views: ClassVar[bool] = True

    classes: int
    _: KW_ONLY
    threshold: float = 1.0

    def __post_init__(self) -> None:
        if self.classes < 2 or not self.threshold > 0:
            raise MethodError(f"{self} was given, expected classes >= 2 and threshold > 0")

    def prepare(self, x: Any, y: Any) -> tuple[Any, int]:
        """Samples with their label, with another label, and as they are."""
        if not isinstance(x, Tensor) or x.is_complex() or x[0].numel() < self.classes or not x.is_floating_point():
            given = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise MethodError(f"x is {given}, ForwardForward writes {self.classes} label elements into a float tensor")
        # Reading labels on another device would make the host wait for it at every step.
        whole = isinstance(y, Tensor) and y.shape == x.shape[:1] and not y.is_floating_point()
        if not whole or (y.device.type == "cpu" and bool(((y < 0) | (y >= self.classes)).any())):
            raise MethodError(
                f"y holds no class in 0 to {self.classes - 1} for every sample, (N,), to be written into x"
            )
        other = (y + torch.randint(1, self.classes, y.shape, device=y.device)) % self.classes
        marked = [with_label(x, label, classes=self.classes) for label in (y, other)]
        return torch.cat([*marked, x]), 3

    def objective(self, site: Site) -> Objective:
        """The contrast of goodness, or the task loss on unlabelled samples."""
        return _Unlabelled(site.loss) if site.last else _Contrast(self.threshold)
