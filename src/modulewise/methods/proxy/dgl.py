"""Decoupled greedy learning: every part with a cheap classifier, all on the same batch."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from ... import heads, losses
from ...heads.layers import at_least_one
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from ..objectives import classified

__all__ = ["DGL"]


@dataclass(frozen=True)
class DGL(PartwiseMethod):
    """Each part minimises the classification loss of its own head, CE(head(h_out), y); the last the task loss.

    Published with all parts on the same batch (the simultaneous schedule) and with a replay buffer between
    them (the asynchronous one). With one part it is end-to-end backpropagation.

    Args:
        classes: number of classes, >= 1.
        head: makes the head of a boundary: `heads.mlp_sr` (published), `heads.conv`, `heads.mlp`,
            `heads.linear`, one of them with `functools.partial`, or your own.
        criterion: criterion(logits, y) -> scalar.
        dense: one label per position (tokens, pixels) instead of one per sample.

    Raises:
        MethodError: classes is below 1, or a dense head is asked of a boundary without positions (when
            bound to a partition).

    References:
        E. Belilovsky, M. Eickenberg, E. Oyallon, Decoupled Greedy Learning of CNNs, ICML 2020,
        https://arxiv.org/abs/1901.08164

    The paper's other heads: "cnn", two 3x3 convolutions, is `partial(heads.conv, depth=3)`; "mlp" is
    `partial(heads.mlp, width=4 * C)` for a network of C channels throughout.

    Departs from the paper: see `heads.mlp_sr`. The perceptrons have three linear layers without batch norm;
    the authors' scripts have three hidden ones with batch norm and a linear one after them, and where H is no
    multiple of 4 they pool to H/4 rounded up, here down.

    >>> from modulewise.partition.boundary import Boundary
    >>> site = Site(0, 2, None, Boundary("layer1", (2, 8, 4, 4)), loss=losses.classification)
    >>> sum(p.numel() for p in DGL(classes=10, head=heads.linear).objective(site).parameters())
    330
    """

    family: ClassVar[Family] = Family.PROXY
    locality: ClassVar[Locality] = Locality(Reach.STRICT)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "E. Belilovsky, M. Eickenberg, E. Oyallon",
            "Decoupled Greedy Learning of CNNs",
            "ICML",
            2020,
            "https://arxiv.org/abs/1901.08164",
        ),
    )

    classes: int
    _: KW_ONLY
    head: heads.HeadFactory = heads.mlp_sr
    criterion: losses.Criterion = losses.classification
    dense: bool = False

    def __post_init__(self) -> None:
        at_least_one(classes=self.classes)

    def objective(self, site: Site) -> Objective:
        """The classifier of the part, or the task loss."""
        return classified(site, self.head, classes=self.classes, criterion=self.criterion, dense=self.dense)
