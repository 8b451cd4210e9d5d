"""Greedy InfoMax: every part predicts its own encoding of later positions, without labels."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from ...errors import MethodError
from ...heads.layers import at_least_one
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from ..objectives import TaskLoss
from .infomax_objective import PositionPrediction

__all__ = ["GreedyInfoMax"]


@dataclass(frozen=True)
class GreedyInfoMax(PartwiseMethod):
    """Each part tells which encoding comes k positions later, InfoNCE; the last minimises the task loss.

    L = -mean_k mean_t log(f_k(z_{t+k}, c_t) / sum_j f_k(z_j, c_t)), f_k(z, c) = exp(z . W_k c), where j runs over
    t+k and `negatives` positions drawn from all images or sequences of the batch. On images t counts rows, and
    every column predicts downwards; on sequences t counts steps. z is h_out at a position (channels of (N, C, T),
    (N, T, D), (N, C, H, W) or (N, H, W, C)), or its mean over a patch, for P patches encoded on their own
    (N, C, P, h, w), as `models.patches` does; c_t = z_t, or a recurrent network's summary of z_1 .. z_t. W_k are
    dropped after training. No label reaches a part below the last, which is a classifier trained on the
    fly on features it cannot change. In a plain convolutional network neighbouring positions see the same pixels,
    which makes the prediction easy; patches keep them apart.

    Args:
        steps: number of predictions k, >= 1, default 5 (published for images; 12 for speech). Where fewer rows are
            left, those that fit are made.
        skip: rows left out before the first prediction, >= 0, so that k runs from skip + 1 to skip + steps; None for
            1 on images and patches, half of which overlap, and 0 on sequences (both published).
        negatives: drawn for every prediction, >= 1, default 16 (published for images; 10 for speech). One that is
            the true position by chance is kept, as published.
        grid: (rows, columns) of patches (N, C, P, h, w); None where they form a square.
        context: units of the recurrent network on sequences, >= 1; None (default) for c_t = z_t. Images have none.

    Raises:
        MethodError: a number is too small, or (when bound to a partition) a boundary has no positions or too few
            for one prediction.

    References:
        S. Löwe, P. O'Connor, B. S. Veeling, Putting An End to End-to-End: Gradient-Isolated Learning of
        Representations, NeurIPS 2019, https://arxiv.org/abs/1905.11786

    Departs from the paper: the loss is the mean over k instead of the sum, as in the authors' code, so that
    boundaries with fewer rows count the same. The recurrent network belongs to a part's head; the paper's is a
    part of its own on top, which a network that ends in one and is cut before and after it has as well.

    >>> import torch
    >>> from modulewise import losses
    >>> from modulewise.objective import Context
    >>> from modulewise.partition.boundary import Boundary
    >>> site = Site(0, 2, None, Boundary("conv1", (2, 8, 4, 4)), loss=losses.classification)
    >>> h = torch.zeros(2, 8, 4, 4)  # all positions alike: one in 17
    >>> context = Context(h_in=None, h_out=h, x=None, y=None, views=1, part=0, step=0)
    >>> round(GreedyInfoMax().objective(site)(context).loss.exp().item(), 3)
    17.0
    """

    name: ClassVar[str] = "greedy-infomax"
    family: ClassVar[Family] = Family.PROXY
    locality: ClassVar[Locality] = Locality(Reach.STRICT)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "S. Löwe, P. O'Connor, B. S. Veeling",
            "Putting An End to End-to-End: Gradient-Isolated Learning of Representations",
            "NeurIPS",
            2019,
            "https://arxiv.org/abs/1905.11786",
        ),
    )

    _: KW_ONLY
    steps: int = 5
    skip: int | None = None
    negatives: int = 16
    grid: tuple[int, int] | None = None
    context: int | None = None

    def __post_init__(self) -> None:
        at_least_one(steps=self.steps, negatives=self.negatives, context=self.context)
        if self.skip is not None and self.skip < 0:
            raise MethodError(f"skip={self.skip} was given, expected a number of rows >= 0; 1 is published for images")
        if self.grid is not None and (len(self.grid) != 2 or min(self.grid) < 1):
            raise MethodError(f"grid={self.grid} was given, expected (rows, columns) of at least 1 each")

    def objective(self, site: Site) -> Objective:
        """The predictions, or the task loss."""
        if site.last:
            return TaskLoss(site.loss)
        return PositionPrediction(
            site.boundary,
            steps=self.steps,
            skip=self.skip,
            negatives=self.negatives,
            grid=self.grid,
            context=self.context,
        )
