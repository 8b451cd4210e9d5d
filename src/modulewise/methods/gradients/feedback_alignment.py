"""Feedback alignment: errors pass back through fixed random weights, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...errors import MethodError
from ...layer_rules import Feedback, FeedbackWeights
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from .layerwise import chain_rule_with

__all__ = ["FeedbackAlignment"]


@dataclass(frozen=True, kw_only=True)
class FeedbackAlignment(PartwiseMethod):
    """Feedback alignment: delta_below = B^T delta in every linear and convolutional layer, B fixed and random.

    Everything else is backpropagation: parts send the resulting error to the part below, and norms, recurrent
    layers and the packed projections of nn.MultiheadAttention keep the chain rule (`checks.converted` lists them;
    attention made of nn.Linear is converted). Entries of B are U(-a, a), a = scale / sqrt(fan_in). B tied to the
    weights is backpropagation, bit for bit.

    Args:
        scale: width of B's distribution, relative to torch's initial weights, > 0.
        feedback: gives B for (layer name, module) at every forward instead of a draw.

    Raises:
        MethodError: scale is not above 0, or a part has no linear layer or convolution.

    References:
        T. P. Lillicrap, D. Cownden, D. B. Tweed, C. J. Akerman, Random synaptic feedback weights support
        error backpropagation for deep learning, Nature Communications 2016,
        https://doi.org/10.1038/ncomms13276

    >>> from modulewise.partition.boundary import Boundary
    >>> site = Site(0, 2, None, Boundary("cut", (4, 3)), loss=lambda output, y: output.mean())
    >>> type(FeedbackAlignment().objective(site).rule).__name__
    'FeedbackWeights'
    """

    scale: float = 1.0
    feedback: Feedback | None = None

    family: ClassVar[Family] = Family.GRADIENTS
    locality: ClassVar[Locality] = Locality(Reach.GLOBAL)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "T. P. Lillicrap, D. Cownden, D. B. Tweed, C. J. Akerman",
            "Random synaptic feedback weights support error backpropagation for deep learning",
            "Nature Communications",
            2016,
            "https://doi.org/10.1038/ncomms13276",
        ),
    )

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise MethodError(f"scale={self.scale} was given for feedback weights; give a number above 0")

    def objective(self, site: Site) -> Objective:
        """The chain rule's share of the part, with feedback weights in its layers."""

        def rule(seed: int) -> FeedbackWeights:
            return FeedbackWeights(seed=seed, scale=self.scale, feedback=self.feedback)

        return chain_rule_with(site, rule, "FeedbackAlignment")
