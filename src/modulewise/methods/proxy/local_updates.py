"""Local parallelism: truncated backpropagation in units of parts, which may overlap."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from ... import heads, losses
from ...heads.layers import at_least_one
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from ..objectives import classified
from ..overlapping import Overlapping

__all__ = ["LocalUpdates"]


@dataclass(frozen=True)
class LocalUpdates(PartwiseMethod):
    """Each loss reaches its own part and the part below: units of two adjacent parts that share one.

    With h_{k-2} cut off below a unit, part k follows d(L_k + L_{k+1})/d(theta_k), L_k = CE(head_k(h_k), y) for k < K -
    1 and the task loss for the last. The paper's other schedules are settings of the partition: *greedy* is
    `overlap=False` with a cut after every layer, *chunked* the same with fewer cuts, *overlapping* is the
    default; with one part it is end-to-end backpropagation. Overlap costs a second backward of every part but the
    last, and keeps the graphs of two parts at a time.

    Args:
        classes: number of classes, >= 1.
        overlap: whether a loss reaches the part below; without it locality is strict, with it window(2).
        head: makes the head of a boundary, default `heads.linear`.
        criterion: criterion(logits, y) -> scalar.
        dense: one label per position (tokens, pixels) instead of one per sample.

    Raises:
        MethodError: classes is below 1, or a dense head is asked of a boundary without positions (when bound to a
            partition).

    References:
        M. Laskin, L. Metz, S. Nabarro, M. Saroufim, B. Noune, C. Luschi, J. Sohl-Dickstein, P. Abbeel, Parallel
        Training of Deep Networks with Local Updates, arXiv 2020, https://arxiv.org/abs/2012.03837

    Departs from the paper: heads are linear on pooled features for every layout; the paper's depend on the network.

    >>> str(LocalUpdates(classes=10).locality), str(LocalUpdates(classes=10, overlap=False).locality)
    ('window(2)', 'strict')
    """

    family: ClassVar[Family] = Family.PROXY
    locality: ClassVar[Locality] = Locality(Reach.WINDOW, window=2)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "M. Laskin, L. Metz, S. Nabarro, M. Saroufim, B. Noune, C. Luschi, J. Sohl-Dickstein, P. Abbeel",
            "Parallel Training of Deep Networks with Local Updates",
            "arXiv",
            2020,
            "https://arxiv.org/abs/2012.03837",
        ),
    )

    classes: int
    _: KW_ONLY
    overlap: bool = True
    head: heads.HeadFactory = heads.linear
    criterion: losses.Criterion = losses.classification
    dense: bool = False

    def __post_init__(self) -> None:
        at_least_one(classes=self.classes)
        if not self.overlap:
            object.__setattr__(self, "locality", Locality(Reach.STRICT))

    def objective(self, site: Site) -> Objective:
        """The classifier of the part or the task loss, felt by the part below as well."""
        own = classified(site, self.head, classes=self.classes, criterion=self.criterion, dense=self.dense)
        return Overlapping(own, site=site) if self.overlap else own
