"""Weight mirror: feedback weights learn the weights from noise, in a phase of their own after every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...errors import MethodError
from ...layer_rules import MirroredWeights
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from .layerwise import chain_rule_with

__all__ = ["WeightMirror"]


@dataclass(frozen=True, kw_only=True)
class WeightMirror(PartwiseMethod):
    """Weight mirror: delta_below = B^T delta, and B <- (1 - decay) B + rate 1/n sum_n y_n xi_n^T, y = W xi.

    After the backward of every step each linear or convolutional layer alone is fed with n samples of white noise
    xi of variance 1 and correlates it with its response, so that the mean of B tends to (rate / decay) W without
    any weight being read. A convolution sees noise of the size of its kernel. Everything else is backpropagation,
    as in feedback alignment; B starts as there. `checks.feedback_angles` shows how far B is from W.

    Args:
        rate: rate of the mirror, > 0.
        decay: of B in every step, from 0 to 1 (excluded); None for the rate, so that B tends to W. The angle between
            B and W settles at about the square root of fan_in rate / (2 n), in radians.
        samples: n, noise samples a step, >= 1.
        scale: width of B's first distribution, relative to torch's initial weights, > 0.

    Raises:
        MethodError: an argument is out of range, or a part has no linear layer or convolution.

    References:
        M. Akrout, C. Wilson, P. C. Humphreys, T. Lillicrap, D. Tweed, Deep learning without weight transport,
        NeurIPS 2019, https://arxiv.org/abs/1904.05391.
        Departs from the paper: the response is taken without bias and nonlinearity, B decays where the authors' code
        rescales it after every step, there is no mirror phase before training, and convolutions see noise of the size
        of one kernel.

    >>> WeightMirror(rate=0.05).decay is None
    True
    """

    rate: float = 0.01
    decay: float | None = None
    samples: int = 128
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
    )

    def __post_init__(self) -> None:
        decay = self.rate if self.decay is None else self.decay
        if not (self.rate > 0 and 0 <= decay < 1 and self.samples >= 1 and self.scale > 0):
            raise MethodError(
                f"rate={self.rate}, decay={self.decay}, samples={self.samples}, scale={self.scale} were given; give "
                "rate and scale above 0, decay from 0 to below 1 (None: the rate, then below 1), samples from 1"
            )

    def objective(self, site: Site) -> Objective:
        """The chain rule's share of the part, with mirrored feedback weights in its layers."""
        decay = self.rate if self.decay is None else self.decay

        def rule(seed: int) -> MirroredWeights:
            return MirroredWeights(seed=seed, rate=self.rate, decay=decay, samples=self.samples, scale=self.scale)

        return chain_rule_with(site, rule, "WeightMirror")
