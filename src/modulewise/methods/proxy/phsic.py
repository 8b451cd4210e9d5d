"""pHSIC: a kernelised information bottleneck whose updates are three-factor Hebbian."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ... import losses
from ...errors import MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Context, Objective, Signal, Site
from ...partition.boundary import Boundary
from ..objectives import TaskLoss

__all__ = ["PHSIC", "KernelizedBottleneck"]


class KernelizedBottleneck(Objective):
    """measure(K_Z, K_Z) - gamma measure(K_Z, K_Y).

    Args:
        boundary: where the objective sits.
        method: the hyper-parameters.
    """

    def __init__(self, boundary: Boundary, method: PHSIC) -> None:
        super().__init__()
        self.boundary, self.method = boundary, method
        if method.groups is not None:  # refuse a boundary that cannot be grouped now, not in the first step
            self._grouped(torch.zeros(boundary.shape, device="meta"), method.groups)

    def forward(self, context: Context) -> Signal:
        """The kernelised bottleneck of one batch."""
        method, h = self.method, context.h_out
        if method.groups is not None:
            h = self._grouped(h, method.groups)
        z = method.kernel.gram(h)
        y = losses.one_hot_similarity(context.labels, classes=method.classes, dtype=z.dtype)
        return Signal(loss=method.dependence(z, z) - method.gamma * method.dependence(z, y))

    def _grouped(self, h: Tensor, groups: int) -> Tensor:
        h = self.boundary.channels_first(h)
        return losses.group_deviations(h, groups=groups, power=self.method.power, smoothing=self.method.smoothing)


@dataclass(frozen=True)
class PHSIC(PartwiseMethod):
    """Each part minimises pHSIC(Z, Z) - gamma pHSIC(Z, Y), Z = h_out, no head; the last part the task loss.

    pHSIC(A, B) = mean((A - mean A) * B) over pairs of samples; labels have the cosine kernel of centred one-hot
    vectors: 1 in a class, -1 / (classes - 1) across. Made for blocks of one layer each, of which
    every update is pre x post x a number per pair of samples. Z may be grouped first, a kernel on
    `losses.group_deviations`; dividing the activations that go on is a matter of the network:
    `models.phsic_mlp` and `models.phsic_cnn`, to be cut into their blocks.

    Args:
        classes: number of classes, >= 2.
        kernel: `losses.COSINE` (default), `losses.gaussian(5.0)` (published width) or `losses.LINEAR`.
        dependence: `losses.plausible_hsic` (default) or `losses.biased_hsic`, which is HSIC itself.
        gamma: weight of the labels' term, >= 0, default 2, published.
        groups: groups of neighbouring channels, >= 2, or None (default) for the kernel on all elements; published
            16 or 32, which the Gaussian kernel needs.
        power: exponent of a group's variance, > 0, default 0.5; published 0.8 behind divisive normalisation, whose
            power is 0.2.
        smoothing: added to a group's sum of squares, > 0, default 1, published.

    Raises:
        MethodError: a number is out of range, the channels cannot be divided into the groups, or (in a
            step) labels are not one per sample.

    References:
        R. Pogodin, P. E. Latham, Kernelized information bottleneck leads to biologically plausible 3-factor
        Hebbian learning in deep networks, NeurIPS 2020, https://arxiv.org/abs/2006.07123

    Departs from the paper: the kernel's mean is that of the batch, without the paper's update by two samples at a time.

    >>> site = Site(0, 2, None, Boundary("fc1", (3, 2)), loss=losses.classification)
    >>> h, y = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 1])
    >>> context = Context(h_in=None, h_out=h, x=None, y=y, views=1, part=0, step=0)
    >>> PHSIC(classes=2).objective(site)(context).loss.item()  # both kernels are +-1: 1 - 2 * 1
    -1.0
    """

    name: ClassVar[str] = "phsic"
    family: ClassVar[Family] = Family.PROXY
    locality: ClassVar[Locality] = Locality(Reach.STRICT)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "R. Pogodin, P. E. Latham",
            "Kernelized information bottleneck leads to biologically plausible 3-factor Hebbian learning in deep "
            "networks",
            "NeurIPS",
            2020,
            "https://arxiv.org/abs/2006.07123",
        ),
    )

    classes: int
    _: KW_ONLY
    kernel: losses.Kernel = losses.COSINE
    dependence: losses.DependenceMeasure = losses.plausible_hsic
    gamma: float = 2.0
    groups: int | None = None
    power: float = 0.5
    smoothing: float = 1.0

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise MethodError(f"classes={self.classes} was given, PHSIC needs at least 2")
        if not self.gamma >= 0:
            raise MethodError(f"gamma={self.gamma} was given, expected a weight >= 0; the paper's is 2")
        if self.groups is not None and self.groups < 2:
            raise MethodError(f"groups={self.groups} was given, expected at least 2, or None for no grouping")
        if not (self.power > 0 and self.smoothing > 0):
            raise MethodError(
                f"power={self.power} and smoothing={self.smoothing} were given, expected positive numbers; the paper's "
                "are 0.5 and 1"
            )

    def objective(self, site: Site) -> Objective:
        """The kernelised bottleneck, or the task loss."""
        return TaskLoss(site.loss) if site.last else KernelizedBottleneck(site.boundary, self)
