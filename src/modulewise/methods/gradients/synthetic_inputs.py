"""Synthetic inputs: parts that learn from guessed inputs and guessed gradients, unlocked in both directions."""

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
from .input_predictors import InputPredictor
from .synthetic_gradients_objective import Guessed
from .synthetic_inputs_objective import Unlocked

__all__ = ["SyntheticInputs"]


@dataclass(frozen=True, kw_only=True)
class SyntheticInputs(PartwiseMethod):
    """Synthetic inputs: part k > 0 learns on p_k(x) in place of h_{k-1}, with a synthetic gradient at f_k(p_k(x)).

    The part follows s_k(f_k(p_k(x)), y) / N, the last part the task loss on f(p(x)); nothing that earlier or later
    parts do in the step has a say in it. Part k sends dL/dp_k(x), made of its own guess, to the part below. When the
    true input and the gradient from above have arrived, predictors learn: p_k minimises
    1/N sum_n ||p_k(x_n) - h_{k-1,n}||^2, and s_k, as in `SyntheticGradients`, 1/N sum_n ||s_k(h_n, y_n) - N delta_n||^2
    at the true h_k. With perfect input predictors the method is `SyntheticGradients`. Evaluation uses true inputs.

    Args:
        classes: number of classes of integer labels, >= 2; needed where `labelled`.
        labelled: condition gradient predictors on labels.
        width: channels of the default predictors' hidden layers, >= 1; None for 128 on images and 1024 otherwise.
        predictor: site -> module with forward(h, y) -> guess of one sample's gradient at the boundary above the part;
            the default is `GradientPredictor`.
        input_predictor: site -> module with forward(x) -> guess of what enters the part; the default is
            `InputPredictor`, which takes one tensor of floating point as x.

    Raises:
        MethodError: labels are asked for without a number of classes, width is below 1, or (when bound to a partition)
            the default input predictor cannot take the model's input.

    References:
        M. Jaderberg, W. M. Czarnecki, S. Osindero, O. Vinyals, A. Graves, D. Silver, K. Kavukcuoglu,
        Decoupled neural interfaces using synthetic gradients, ICML 2017, https://arxiv.org/abs/1608.05343

    Departs from the paper: parts still run on their true inputs as well, in order, since the activations that
    predictors regress on come from there; what is unlocked is what an update depends on. Units of guesses and default
    networks are those of `SyntheticGradients`. A skip from an earlier boundary is read as it is.

    >>> SyntheticInputs(classes=10, width=64).labelled
    True
    """

    classes: int | None = None
    labelled: bool = True
    width: int | None = None
    predictor: Callable[[Site], nn.Module] | None = None
    input_predictor: Callable[[Site], nn.Module] | None = None

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

    def objective(self, site: Site) -> Objective:
        """Guesses of input and gradient; the first part has its true input, the last the task loss."""
        predictor = None if site.last else (self.predictor or self._gradients)(site)
        if site.input is not None:
            return Unlocked(site, (self.input_predictor or self._inputs)(site), predictor)
        return ChainRule(site) if predictor is None else Guessed(site, predictor)

    def _gradients(self, site: Site) -> nn.Module:
        width = self.width or (128 if len(site.boundary.spatial) == 2 else 1024)
        return GradientPredictor(site.boundary, classes=self.classes if self.labelled else None, width=width)

    def _inputs(self, site: Site) -> nn.Module:
        assert site.input is not None
        return InputPredictor(site.x, site.input, width=self.width or (128 if len(site.input.spatial) == 2 else 1024))
