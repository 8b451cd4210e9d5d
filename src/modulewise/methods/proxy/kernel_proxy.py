"""Pairwise learning with kernels that a network induces: no head at all."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import Tensor

from ... import losses
from ...heads.layers import at_least_one, pooled, sizes_within
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Context, Objective, Signal, Site
from ...partition.boundary import Boundary
from ..objectives import TaskLoss

__all__ = ["KernelProxy", "PairwiseProxy"]


class PairwiseProxy(Objective):
    """Minus a pairwise objective on the Gram matrix of the boundary.

    Args:
        boundary: where the objective sits.
        kernel: the kernel on flattened representations.
        maximise: the pairwise objective.
        pool: size that spatial axes are averaged to first, or None.
    """

    def __init__(
        self,
        boundary: Boundary,
        *,
        kernel: losses.Kernel,
        maximise: losses.PairwiseObjective,
        pool: int | None,
    ) -> None:
        super().__init__()
        self.boundary, self.kernel, self.maximise = boundary, kernel, maximise
        self.sizes = None if pool is None else sizes_within(boundary.spatial, pool)

    def forward(self, context: Context) -> Signal:
        """Minus the objective."""
        h: Tensor = context.h_out
        if self.sizes:
            h = pooled(self.boundary.channels_first(h), self.sizes)
        gram = self.kernel.gram(h)
        value = self.maximise(gram, context.y, minimum=self.kernel.minimum, maximum=self.kernel.maximum)
        return Signal(loss=-value)


@dataclass(frozen=True)
class KernelProxy(PartwiseMethod):
    """Each part maximises how well a kernel on h_out separates pairs by class; the last minimises the task loss.

    The kernel is the one that the next part computes with: k(u, v) = phi(u) . phi(v) with
    phi(u) = sigma(u) / ||sigma(u)||. The nonlinearity is thus counted to the next part, which sees the data
    only through phi, and labels are needed as pairs alone. Optimality (for losses such as the hinge, and
    one linear layer on phi as next part): a part that takes k to its maximum within classes and to its
    minimum across them is an optimal lower part.

    Args:
        kernel: `losses.RELU` (default), `losses.TANH`, `losses.SIGMOID`, `losses.gaussian(width)` or your own.
        maximise: `losses.alignment` (default), `losses.upper_triangle_alignment`, `losses.contrastive`,
            `losses.nmse` or `losses.raw`.
        pool: average spatial axes to this size before flattening, >= 1; None keeps all positions. The
            paper's "reapen" kernel pools to 4x4 after the ReLU; on a part that ends in ReLU, `losses.RELU`
            with pool=4 is that kernel.

    Raises:
        MethodError: pool is below 1, or (in a step) a batch holds one class only, or labels are not one per
            sample.

    References:
        S. Duan, S. Yu, J. C. Príncipe, Modularizing Deep Learning via Pairwise Learning With Kernels, IEEE
        TNNLS 2021, https://arxiv.org/abs/2005.05541

    Departs from the paper: the user's network is not rewritten, so its next part receives h_out itself. To
    keep to the theorem, cut before a nonlinearity and let the next part begin with sigma and the division by
    the norm. The default kernel is the ReLU's rather than the tanh of the authors' scripts, since most networks are
    cut after a ReLU, where the tanh kernel cannot reach its minimum.

    >>> import torch
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
    )

    _: KW_ONLY
    kernel: losses.Kernel = losses.RELU
    maximise: losses.PairwiseObjective = losses.alignment
    pool: int | None = None

    def __post_init__(self) -> None:
        at_least_one(pool=self.pool)

    def objective(self, site: Site) -> Objective:
        """The pairwise proxy, or the task loss."""
        if site.last:
            return TaskLoss(site.loss)
        return PairwiseProxy(site.boundary, kernel=self.kernel, maximise=self.maximise, pool=self.pool)
