"""Kolen-Pollack: feedback weights that get the same increments as the weights, and both decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...errors import MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from .kolen_pollack_objective import Following
from .layerwise import layers_at, rule_seed

__all__ = ["KolenPollack"]


@dataclass(frozen=True, kw_only=True)
class KolenPollack(PartwiseMethod):
    """Kolen-Pollack: delta_below = B^T delta, with gradients g + decay W for W and g + decay B for B.

    g is the gradient of W that follows from the errors. With SGD of one rate for both, ||B - W|| shrinks by 1 - lr
    decay in every step, whatever g is; momentum and the norm of clipped gradients keep it shrinking. Everything else
    is backpropagation, as in feedback alignment; B starts as there. B are parameters of role `feedback`: give them the
    rate, momentum and weight decay of the weights. Adam and other optimisers that scale each gradient by itself make
    other increments for B than for W. `checks.feedback_angles` shows how far B is from W.

    Args:
        decay: of weights and feedback weights, > 0; without it B would never come closer.
        scale: width of B's first distribution, relative to torch's initial weights, > 0.

    Raises:
        MethodError: an argument is out of range, a part has no linear layer or convolution, or the weight of one is
            no parameter.

    References:
        M. Akrout, C. Wilson, P. C. Humphreys, T. Lillicrap, D. Tweed, Deep learning without weight transport,
        NeurIPS 2019, https://arxiv.org/abs/1904.05391 (equations 16 and 17);
        J. F. Kolen, J. B. Pollack, Backpropagation without weight transport, ICNN 1994,
        https://doi.org/10.1109/ICNN.1994.374486.
        Departs from the papers: decay is part of the gradient, so that its rate is the optimiser's.

    >>> KolenPollack(decay=0.001).decay
    0.001
    """

    decay: float = 0.01
    scale: float = 1.0

    family: ClassVar[Family] = Family.GRADIENTS
    locality: ClassVar[Locality] = Locality(Reach.GLOBAL)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "M. Akrout, C. Wilson, P. C. Humphreys, T. Lillicrap, D. Tweed",
            "Deep learning without weight transport",
            "NeurIPS",
            2019,
            "https://arxiv.org/abs/1904.05391",
        ),
        Reference(
            "J. F. Kolen, J. B. Pollack",
            "Backpropagation without weight transport",
            "ICNN",
            1994,
            "https://doi.org/10.1109/ICNN.1994.374486",
        ),
    )

    def __post_init__(self) -> None:
        if not (self.decay > 0 and self.scale > 0):
            raise MethodError(
                f"decay={self.decay}, scale={self.scale} were given; give both above 0 (without decay the feedback "
                "weights would never come closer to the weights)"
            )

    def objective(self, site: Site) -> Objective:
        """The chain rule's share of the part, with feedback weights that follow the weights of its layers."""
        layers = layers_at(site, "KolenPollack")
        return Following(site, layers, decay=self.decay, scale=self.scale, seed=rule_seed())
