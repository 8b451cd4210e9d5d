"""Synthetic gradients (decoupled neural interfaces): every part follows a learned guess of its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ...errors import MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from ..reference.backprop import ChainRule
from .gradient_predictors import GradientPredictor
from .synthetic_gradients_objective import Guessed, Mixed

__all__ = ["SyntheticGradients"]


@dataclass(frozen=True, kw_only=True)
class SyntheticGradients(PartwiseMethod):
    """Decoupled neural interfaces: part k follows s_k(h_k, y) / N, a predictor's guess of dL/dh_k.

    s_k minimises 1/N sum_n ||s_k(h_n, y_n) - N delta_n||^2, where delta is the gradient that part k + 1 found at its
    input, from its own guess or, in the last part, from the task loss (bootstrapped). A perfect predictor gives
    backpropagation. Parts learn at once, without waiting for later ones.

    With `mix` = lambda above 0, BP(lambda): the part waits for delta, follows lambda delta + (1 - lambda) s_k / N, and
    sends on the gradient that this mixture makes; lambda = 1 is backpropagation. With `true_targets` delta in the
    predictor's loss is dL/dh_k itself, which parts pass down beside what they follow, and so parts wait as well.

    Args:
        classes: number of classes of integer labels, >= 2; needed where `labelled`.
        labelled: condition predictors on labels (cDNI); plain DNI is known to be far worse.
        width: channels of the default predictor's hidden layers, >= 1; None for 128 on images and 1024 otherwise.
        mix: lambda, the share of the gradient from above in what a part follows, in [0, 1].
        true_targets: predictors learn dL/dh_k instead of the gradient that part k + 1 followed.
        predictor: site -> module with forward(h, y) -> guess of the shape of h, in units of one sample's gradient;
            the default is `GradientPredictor`.

    Raises:
        MethodError: labels are asked for without a number of classes, or a number is out of range.

    References:
        M. Jaderberg, W. M. Czarnecki, S. Osindero, O. Vinyals, A. Graves, D. Silver, K. Kavukcuoglu,
        Decoupled neural interfaces using synthetic gradients, ICML 2017, https://arxiv.org/abs/1608.05343 (BP(lambda)
        in the supplement).

    Departs from the paper: guesses are in units of one sample's gradient (theirs of the batch mean's), one scale for
    all batch sizes, and the default perceptron has no batch norm.

    >>> SyntheticGradients(classes=10).labelled
    True
    """

    classes: int | None = None
    labelled: bool = True
    width: int | None = None
    mix: float = 0.0
    true_targets: bool = False
    predictor: Callable[[Site], nn.Module] | None = None

    family: ClassVar[Family] = Family.GRADIENTS
    locality: ClassVar[Locality] = Locality(Reach.GRADIENTS)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "M. Jaderberg, W. M. Czarnecki, S. Osindero, O. Vinyals, A. Graves, D. Silver, K. Kavukcuoglu",
            "Decoupled neural interfaces using synthetic gradients",
            "ICML",
            2017,
            "https://arxiv.org/abs/1608.05343",
        ),
    )

    def __post_init__(self) -> None:
        if self.labelled and self.predictor is None and (self.classes is None or self.classes < 2):
            raise MethodError(f"labelled=True was given with classes={self.classes}; give classes=2 or more")
        if self.width is not None and not self.width >= 1:
            raise MethodError(f"width={self.width} was given; give 1 or more, or None for the paper's")
        if not 0 <= self.mix <= 1:
            raise MethodError(f"mix={self.mix} was given; give a number from 0 (guesses) to 1 (backpropagation)")

    def objective(self, site: Site) -> Objective:
        """A predictor for every part but the last, which minimises the task loss."""
        if site.last:
            return ChainRule(site)
        predictor = (self.predictor or self._default)(site)
        if self.mix > 0 or self.true_targets:
            return Mixed(site, predictor, mix=self.mix, true_targets=self.true_targets)
        return Guessed(site, predictor)

    def _default(self, site: Site) -> nn.Module:
        """The paper's predictor for the boundary above the part."""
        width = self.width or (128 if len(site.boundary.spatial) == 2 else 1024)
        return GradientPredictor(site.boundary, classes=self.classes if self.labelled else None, width=width)
