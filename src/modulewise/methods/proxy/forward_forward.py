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
from ...partition import Partition

__all__ = ["ForwardForward", "class_goodness", "with_label"]


def with_label(x: Tensor, y: Tensor, *, classes: int) -> Tensor:
    """The input with its first `classes` elements replaced by the one-hot label, in x's least and largest value.

    Args:
        x: input (N, ...), of at least `classes` elements a sample.
        y: class indices (N,).
        classes: number of classes.

    >>> with_label(torch.tensor([[5.0, 7.0, 9.0]]), torch.tensor([1]), classes=2)
    tensor([[5., 9., 9.]])
    """
    marked = x.flatten(1).clone()
    marked[:, :classes] = x.min()
    marked[torch.arange(len(y), device=x.device), y] = x.max()
    return marked.view_as(x)


@torch.no_grad()
def class_goodness(partition: Partition, x: Tensor, *, classes: int) -> Tensor:
    """The goodness of every class, summed over parts 1 to K - 2 (part 0 alone where there is no other): its largest
    entry is the forward-forward prediction. One pass a class; eval mode is the caller's care.

    Args:
        partition: K >= 2 parts; the last, a classifier, is not run.
        x: input (N, ...).
        classes: number of classes.

    Returns:
        (N, classes).
    """
    totals = []
    for label in range(classes):
        h, found = with_label(x, torch.full((len(x),), label, device=x.device), classes=classes), []
        for part in partition.parts[:-1]:
            h = part(h, x=x)
            found.append(losses.goodness(h))
        totals.append(torch.stack(found[1:] or found).sum(0))
    return torch.stack(totals, 1)


class _Contrast(Objective):
    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, context: Context) -> Signal:
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
        MethodError: a number is out of range, or (in a step) x is not a tensor of enough elements.

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
            given = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise MethodError(f"x is {given}, ForwardForward writes {self.classes} label elements into a float tensor")
        other = (y + torch.randint(1, self.classes, y.shape, device=y.device)) % self.classes
        marked = [with_label(x, label, classes=self.classes) for label in (y, other)]
        return torch.cat([*marked, x]), 3

    def objective(self, site: Site) -> Objective:
        """The contrast of goodness, or the task loss on unlabelled samples."""
        return _Unlabelled(site.loss) if site.last else _Contrast(self.threshold)
