"""Synthetic gradients (decoupled neural interfaces): every part follows a learned guess of its gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...errors import MethodError
from ...losses import sum_squared_error
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Context, Objective, Role, Signal, Site
from ..reference.backprop import ChainRule, input_gradients, received_gradient
from .gradient_predictors import GradientPredictor

__all__ = ["SyntheticGradients", "predictor_loss"]


def predictor_loss(guess: Tensor, gradient: Tensor) -> Tensor:
    """Squared error of a guess (N, ...) of N times the gradient: 1/N sum_n ||guess_n - N gradient_n||^2.

    N times the gradient of a batch mean is the gradient of one sample's loss, which no batch size changes.

    >>> predictor_loss(torch.zeros(2, 3), torch.ones(2, 3))
    tensor(12.)
    """
    return sum_squared_error(guess, len(gradient) * gradient)


class _Guessed(Objective):
    """A part that follows its predictor's guess, and a predictor that learns from the gradient sent later."""

    role: ClassVar[Role] = Role.FEEDBACK

    hears = True

    def __init__(self, site: Site, predictor: nn.Module) -> None:
        super().__init__()
        self.predictor = predictor
        self.reads_input_gradient = site.part > 0

    def forward(self, context: Context) -> Signal:
        """The guessed gradient."""
        with torch.no_grad():
            guess = self.predictor(context.h_out.detach(), context.labels) / len(context.h_out)
        return Signal(gradient=guess.to(context.h_out.dtype))

    def messages(self, context: Context) -> Mapping[int, Tensor]:
        """The gradient at the part's inputs, made of its own guess (bootstrapped)."""
        return input_gradients(context)

    def hear(self, context: Context) -> Signal:
        """The predictor's squared error against the gradient that arrived."""
        guess = self.predictor(context.h_out.detach(), context.labels)
        return Signal(loss=predictor_loss(guess, received_gradient(context)))


@dataclass(frozen=True, kw_only=True)
class SyntheticGradients(PartwiseMethod):
    """Decoupled neural interfaces: part k follows s_k(h_k, y) / N, a predictor's guess of dL/dh_k.

    s_k minimises 1/N sum_n ||s_k(h_n, y_n) - N delta_n||^2, where delta is the gradient that part k + 1 found
    at its input, from its own guess or, in the last part, from the task loss. A perfect predictor gives
    backpropagation.

    Args:
        classes: number of classes of integer labels, >= 2; needed where `labelled`.
        labelled: condition predictors on labels (cDNI); plain DNI is known to be far worse.
        width: channels of the default predictor's hidden layers, >= 1; None for 128 on images and 1024
            otherwise.
        predictor: site -> module with forward(h, y) -> guess of the shape of h, in units of one sample's
            gradient; the default is `GradientPredictor`.

    Raises:
        MethodError: labels are asked for without a number of classes.

    References:
        M. Jaderberg, W. M. Czarnecki, S. Osindero, O. Vinyals, A. Graves, D. Silver, K. Kavukcuoglu,
        Decoupled neural interfaces using synthetic gradients, ICML 2017, https://arxiv.org/abs/1608.05343.
        Here guesses are in units of one sample's gradient (theirs of the batch mean's), one scale for all
        batch sizes, and the default perceptron has no batch norm.

    >>> SyntheticGradients(classes=10).labelled
    True
    """

    classes: int | None = None
    labelled: bool = True
    width: int | None = None
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
        if self.width is not None and self.width < 1:
            raise MethodError(f"width={self.width} was given; give 1 or more, or None for the paper's")

    def objective(self, site: Site) -> Objective:
        """A predictor for every part but the last, which minimises the task loss."""
        if site.last:
            return ChainRule(site)
        return _Guessed(site, (self.predictor or self._default)(site))

    def _default(self, site: Site) -> nn.Module:
        """The paper's predictor for the boundary above the part."""
        width = self.width or (128 if len(site.boundary.spatial) == 2 else 1024)
        return GradientPredictor(site.boundary, classes=self.classes if self.labelled else None, width=width)
