"""Local errors of fixed random classifiers: nothing is trained but the part."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ... import losses
from ...errors import MethodError
from ...heads.layers import at_least_one, finished, flat, sizes_within, working_layout
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Context, Objective, Signal, Site
from ...partition.boundary import Boundary
from ..objectives import TaskLoss

__all__ = ["LocalErrors", "RandomClassifier"]


class RandomClassifier(Objective):
    """criterion(M h, y) with M drawn once from U(-a, a), a = 1 / sqrt(features), and never trained.

    Args:
        boundary: where the objective sits.
        classes: number of classes.
        criterion: criterion(logits, y) -> scalar.
        pool: size that spatial axes are averaged to first (tokens to one), or None.
    """

    tuning: Tensor

    def __init__(self, boundary: Boundary, *, classes: int, criterion: losses.Criterion, pool: int | None) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten(1)]
        self.features = boundary.features
        if pool is not None:
            before, self.features = flat(boundary, boundary.channels, sizes_within(boundary.spatial, pool))
            layers = [*working_layout(boundary), *before]
        self.flat, self.criterion = finished(boundary, layers), criterion
        tuning = (torch.rand(classes, self.features) * 2 - 1) / self.features**0.5
        self.register_buffer("tuning", tuning.to(boundary.dtype) if boundary.dtype.is_floating_point else tuning)

    def forward(self, context: Context) -> Signal:
        """The criterion on M h."""
        h = self.flat(context.h_out)
        if h.shape[1] != self.features:
            raise MethodError(
                f"part {context.part} gave {h.shape[1]} features a sample, its fixed classifier takes "
                f"{self.features}; keep to the sizes of the partition's example, or set pool"
            )
        return Signal(loss=self.criterion(h @ self.tuning.T, context.labels))


@dataclass(frozen=True)
class LocalErrors(PartwiseMethod):
    """Each part minimises CE(M h_out, y), M fixed and random; the last part minimises the task loss.

    Every unit is tuned to the classes at random and for good (a row of M is a class, a column a unit), so the
    error that reaches it, M^T (softmax(M h) - onehot(y)), needs no learned weight. Nothing but the part is
    trained: there is no head to store or optimise, and M is a buffer.

    Args:
        classes: number of classes, >= 2.
        pool: average spatial axes to this size before M (tokens to one), >= 1; None (default) takes all positions.
        criterion: criterion(logits, y) -> scalar; cross-entropy by default, and
            `torch.nn.functional.multi_margin_loss` is the hinge.

    Raises:
        MethodError: a number is too small, or (in a step) a boundary has not the size of the example's.

    References:
        H. Mostafa, V. Ramesh, G. Cauwenberghs, Deep Supervised Learning Using Local Errors, Frontiers in
        Neuroscience 2018, https://arxiv.org/abs/1711.06756

    Departs from the paper: a classifier per part instead of one per layer. The error goes back through M
    itself. The scale of M is that of torch's linear layers.

    >>> site = Site(0, 2, None, Boundary("fc1", (4, 8)), loss=losses.classification)
    >>> objective = LocalErrors(classes=3).objective(site)
    >>> list(objective.parameters()), objective.tuning.shape
    ([], torch.Size([3, 8]))
    """

    family: ClassVar[Family] = Family.PROXY
    locality: ClassVar[Locality] = Locality(Reach.STRICT)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "H. Mostafa, V. Ramesh, G. Cauwenberghs",
            "Deep Supervised Learning Using Local Errors",
            "Frontiers in Neuroscience",
            2018,
            "https://arxiv.org/abs/1711.06756",
        ),
    )

    classes: int
    _: KW_ONLY
    pool: int | None = None
    criterion: losses.Criterion = losses.classification

    def __post_init__(self) -> None:
        at_least_one(pool=self.pool)
        if self.classes < 2:
            raise MethodError(f"classes={self.classes} was given, LocalErrors needs at least 2; check the number")

    def objective(self, site: Site) -> Objective:
        """The random classifier, or the task loss."""
        if site.last:
            return TaskLoss(site.loss)
        return RandomClassifier(site.boundary, classes=self.classes, criterion=self.criterion, pool=self.pool)
