"""Pairwise learning with kernels that a network induces: no head unless a projection is asked for."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import ClassVar

import torch

from ... import losses
from ...errors import MethodError
from ...heads.layers import at_least_one
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from ..objectives import TaskLoss
from .kernel_proxy_objective import PairwiseProxy

__all__ = ["KernelProxy"]


@dataclass(frozen=True)
class KernelProxy(PartwiseMethod):
    """Each part maximises how well a kernel on h_out separates pairs by class; the last minimises the task loss.

    The kernel is the one that the next part computes with: k(u, v) = phi(u) . phi(v), phi(u) = sigma(u) / ||sigma(u)||.
    The nonlinearity is thus counted to the next part, which sees the data only through phi, and labels are needed as
    pairs alone. Optimality, for two classes and one linear layer on phi as next part: where k is at its maximum within
    classes and at its minimum across them, no other part below allows a smaller mean hinge loss + tau ||w||, and the
    hinge loss is zero if tau < sqrt(2 (max k - min k)) min(share of each class). With more classes the loss
    `losses.multi_margin` can be zero there too; given as the trainer's loss, it makes the last part the hinge output.

    Args:
        kernel: `losses.RELU` (default), `losses.TANH`, `losses.SIGMOID`, `losses.gaussian(width)` or your own.
        maximise: of `losses`: `alignment` (default), `upper_triangle_alignment` (the authors' scripts), `contrastive`,
            `log_contrastive`, `raw`, `nmse`, `srs_1` and `srs_2` (minus the proxies of the first paper).
        negatives_only: pairs of two classes alone, default False.
        pool: average spatial axes to this size before flattening, >= 1; None keeps all positions. The paper's
            "reapen" kernel averages windows of 4x4 after the ReLU: on the 4x4 maps of its ResNet-18 that is pool=1.
        projection: outputs, >= 1, of a head of two layers that the kernel then reads (hidden width: the mean of what
            goes in and out; tokens are averaged first), trained with the part; None for no head.

    Raises:
        MethodError: a number is below 1, alignment is asked of negative pairs alone with a kernel whose minimum is 0,
            or (in a step) a batch holds one class only, or labels are not one per sample.

    References:
        S. Duan, S. Yu, J. C. Príncipe, Modularizing Deep Learning via Pairwise Learning With Kernels, IEEE TNNLS
        2021, https://arxiv.org/abs/2005.05541
        S. Duan, S. Yu, Y. Chen, J. C. Príncipe, On Kernel Method-Based Connectionist Models and Supervised Deep
        Learning Without Backpropagation, Neural Computation 2020, https://arxiv.org/abs/1802.03774

    Departs from the papers: the user's network is not rewritten, its next part receives h_out itself. To keep to the
    theorem, cut before a nonlinearity and let the next part begin with sigma and the division by the norm. Most
    networks are cut after a ReLU, where tanh cannot reach its minimum: the default is the ReLU's kernel, not tanh. The
    first paper adds tau times the norms of the part's weights; an objective does not see them, use weight decay.

    >>> from modulewise.objective import Context
    >>> from modulewise.partition.boundary import Boundary
    >>> site = Site(0, 2, None, Boundary("fc1", (4, 8)), loss=losses.classification)
    >>> h, y = torch.tensor([[5.0], [-5.0], [5.0]]), torch.tensor([0, 1, 0])
    >>> context = Context(h_in=None, h_out=h, x=None, y=y, views=1, part=0, step=0)
    >>> round(KernelProxy(kernel=losses.TANH).objective(site)(context).loss.item(), 5)  # two perfect clusters
    -1.0
    """

    family: ClassVar[Family] = Family.PROXY
    locality: ClassVar[Locality] = Locality(Reach.STRICT)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "S. Duan, S. Yu, J. C. Príncipe",
            "Modularizing Deep Learning via Pairwise Learning With Kernels",
            "IEEE Transactions on Neural Networks and Learning Systems",
            2021,
            "https://arxiv.org/abs/2005.05541",
        ),
        Reference(
            "S. Duan, S. Yu, Y. Chen, J. C. Príncipe",
            "On Kernel Method-Based Connectionist Models and Supervised Deep Learning Without Backpropagation",
            "Neural Computation",
            2020,
            "https://arxiv.org/abs/1802.03774",
        ),
    )

    _: KW_ONLY
    kernel: losses.Kernel = losses.RELU
    maximise: losses.PairwiseObjective = losses.alignment
    negatives_only: bool = False
    pool: int | None = None
    projection: int | None = None

    def __post_init__(self) -> None:
        at_least_one(pool=self.pool, projection=self.projection)
        if not math.isfinite(self.kernel.maximum - self.kernel.minimum):
            raise MethodError(
                f"kernel={self.kernel.name} is unbounded, expected one with a range such as losses.COSINE"
            )
        if self.negatives_only:  # whether that is defined for its range, an objective says itself when called
            self._proxy()(torch.eye(2), torch.tensor([0, 1]), minimum=self.kernel.minimum, maximum=self.kernel.maximum)

    def _proxy(self) -> losses.PairwiseObjective:
        return partial(self.maximise, negatives_only=True) if self.negatives_only else self.maximise

    def objective(self, site: Site) -> Objective:
        """The pairwise proxy, or the task loss."""
        if site.last:
            return TaskLoss(site.loss)
        return PairwiseProxy(
            site.boundary, kernel=self.kernel, maximise=self._proxy(), pool=self.pool, projection=self.projection
        )
