"""The HSIC bottleneck: forget the input, keep the label, as measured by kernels."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ... import losses
from ...errors import MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Context, Objective, Signal, Site
from ..objectives import TaskLoss

__all__ = ["HSICBottleneck", "InputAndLabelDependence"]


class InputAndLabelDependence(Objective):
    """measure(K_Z, K_X) - lambda_y measure(K_Z, K_Y), with Gaussian kernels.

    Args:
        classes: number of classes.
        sigma: width of the kernels per dimension.
        lambda_y: weight of the labels' term.
        dependence: the measure.
    """

    def __init__(self, *, classes: int, sigma: float, lambda_y: float, dependence: losses.DependenceMeasure) -> None:
        super().__init__()
        self.classes, self.sigma, self.lambda_y, self.dependence = classes, sigma, lambda_y, dependence

    def forward(self, context: Context) -> Signal:
        """The objective; the kernels of input and labels have no graph, since no parameter moves them."""
        z = losses.scaled_gaussian(_floating(context.h_out, "output"), sigma=self.sigma)
        with torch.no_grad():
            x = losses.scaled_gaussian(_floating(context.x, "input"), sigma=self.sigma)
            y = losses.one_hot_gaussian(context.labels, classes=self.classes, sigma=self.sigma, dtype=z.dtype)
        return Signal(loss=self.dependence(z, x.to(z.dtype)) - self.lambda_y * self.dependence(z, y))


def _floating(value: Any, what: str) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() < 2:
        given = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise MethodError(
            f"the {what} is {given}, HSICBottleneck compares samples by a Gaussian kernel and needs one floating-point "
            "tensor (N, ...); choose another method for this model"
        )
    return value


@dataclass(frozen=True)
class HSICBottleneck(PartwiseMethod):
    """Each part minimises HSIC(h_out, x) - lambda_y HSIC(h_out, y), no head; the last part the task loss.

    x is the model's input, whichever part learns. Kernels are exp(-||u - v||^2 / (2 sigma^2 d)) on flattened samples
    of d elements; y is one-hot. A step costs O(m^2 d + m^3) for m samples. Large batches give better
    estimates; with one sample, or all of one class, the labels' term is 0.

    Args:
        classes: number of classes, >= 2.
        sigma: width of the kernels per dimension, > 0, default 5, published.
        lambda_y: weight of the labels' term, >= 0, default 50, published.
        dependence: `losses.cca_hsic` (default, published), `losses.normalized_hsic` or `losses.hsic`; the same
            lambda_y means different things to them.
        formatted: whether the last part minimises the task loss (default), "format training" in the paper. With
            False it minimises the HSIC objective too; nothing then says which output stands for which class, and
            `class_map` and `remapped` of `modulewise.methods.proxy.hsic_remapping` find out. The model should end in a
            softmax then: kernels separate classes in directions that argmax need not tell apart.

    Raises:
        MethodError: a number is out of range, or (in a step) input or output is not one floating-point tensor,
            or labels are not one per sample.

    References:
        W.-D. K. Ma, J. P. Lewis, W. B. Kleijn, The HSIC Bottleneck: Deep Learning without Back-Propagation,
        AAAI 2020, https://arxiv.org/abs/1908.01580

    Departs from the paper's code: the optimiser lives on, so its momentum acts (there it is made anew at every step,
    which leaves plain SGD); no gradient goes through the layers below (there they are differentiated too, for
    nothing); all parts learn from one forward of the batch; the last part learns along with the
    others, not after them. Values and gradients grow with lambda_y and with the rank of the
    kernels, to hundreds with the defaults: learning rates of SGD are a tenth to a hundredth of the usual.

    >>> site = Site(0, 2, None, None, loss=losses.classification)
    >>> h, y = torch.tensor([[0.0, 0.0], [9.0, 9.0], [0.0, 0.0]]), torch.tensor([0, 1, 0])
    >>> context = Context(h_in=None, h_out=h, x=h, y=y, views=1, part=0, step=0)
    >>> method = HSICBottleneck(classes=2, dependence=losses.normalized_hsic)
    >>> round(method.objective(site)(context).loss.item(), 3)  # as dependent as can be on both: 1 - 50
    -49.0
    """

    name: ClassVar[str] = "hsic-bottleneck"
    family: ClassVar[Family] = Family.PROXY
    locality: ClassVar[Locality] = Locality(Reach.STRICT)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "W.-D. K. Ma, J. P. Lewis, W. B. Kleijn",
            "The HSIC Bottleneck: Deep Learning without Back-Propagation",
            "AAAI",
            2020,
            "https://arxiv.org/abs/1908.01580",
        ),
    )

    classes: int
    _: KW_ONLY
    sigma: float = 5.0
    lambda_y: float = 50.0
    dependence: losses.DependenceMeasure = losses.cca_hsic
    formatted: bool = True

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise MethodError(f"classes={self.classes} was given, HSICBottleneck needs at least 2")
        if not self.sigma > 0:
            raise MethodError(f"sigma={self.sigma} was given, expected a positive width; the paper's is 5")
        if not self.lambda_y >= 0:
            raise MethodError(f"lambda_y={self.lambda_y} was given, expected a weight >= 0; the paper's is 50")

    def objective(self, site: Site) -> Objective:
        """The HSIC objective, or the task loss."""
        if site.last and self.formatted:
            return TaskLoss(site.loss)
        return InputAndLabelDependence(
            classes=self.classes, sigma=self.sigma, lambda_y=self.lambda_y, dependence=self.dependence
        )
