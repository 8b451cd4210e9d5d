"""Sign-symmetry: errors pass back through the signs of the weights, with magnitudes of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...errors import MethodError
from ...layer_rules import SignFeedback, SignVariant
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from .layerwise import chain_rule_with

__all__ = ["SignSymmetry"]


@dataclass(frozen=True, kw_only=True)
class SignSymmetry(PartwiseMethod):
    """Sign-symmetry: delta_below = (|M| o sign(W))^T delta in every linear and convolutional layer.

    `usf`: |M| the same everywhere; `brsf`: M redrawn after every update of W; `frsf`: M drawn once. Everything
    else is backpropagation, as in feedback alignment. With a = scale / sqrt(fan_in), M is a / sqrt(3) everywhere
    or drawn from U(-a, a): at scale 1 feedback has the root mean square of torch's initial weights. Where all
    weights of every layer have one magnitude, `usf` gives the direction of backpropagation exactly.

    Args:
        variant: how magnitudes are made.
        scale: their size relative to torch's initial weights, > 0.

    Raises:
        MethodError: an argument is out of range, or a part has no linear layer or convolution.

    References:
        Q. Liao, J. Z. Leibo, T. Poggio, How important is weight symmetry in backpropagation?, AAAI 2016,
        https://arxiv.org/abs/1510.05067;
        W. Xiao, H. Chen, Q. Liao, T. Poggio, Biologically-plausible learning algorithms can scale to large datasets,
        ICLR 2019, https://arxiv.org/abs/1811.03567;
        T. H. Moskovitz, A. Litwin-Kumar, L. F. Abbott, Feedback alignment in deep convolutional networks, 2018,
        https://arxiv.org/abs/1812.06488.
        Departs from the papers: magnitudes are in units of torch's initial weights (theirs are 1, or in units of
        Glorot's), since the size of an error otherwise grows from layer to layer.

    >>> SignSymmetry(variant=SignVariant.BRSF).variant.value
    'brsf'
    """

    variant: SignVariant = SignVariant.USF
    scale: float = 1.0

    family: ClassVar[Family] = Family.GRADIENTS
    locality: ClassVar[Locality] = Locality(Reach.GLOBAL)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "Q. Liao, J. Z. Leibo, T. Poggio",
            "How important is weight symmetry in backpropagation?",
            "AAAI",
            2016,
            "https://arxiv.org/abs/1510.05067",
        ),
        Reference(
            "W. Xiao, H. Chen, Q. Liao, T. Poggio",
            "Biologically-plausible learning algorithms can scale to large datasets",
            "ICLR",
            2019,
            "https://arxiv.org/abs/1811.03567",
        ),
        Reference(
            "T. H. Moskovitz, A. Litwin-Kumar, L. F. Abbott",
            "Feedback alignment in deep convolutional networks",
            "arXiv",
            2018,
            "https://arxiv.org/abs/1812.06488",
        ),
    )

    def __post_init__(self) -> None:
        if not isinstance(self.variant, SignVariant):
            words = ", ".join(f"SignVariant.{variant.name}" for variant in SignVariant)
            raise MethodError(f"variant={self.variant!r} was given; give one of {words} of modulewise.layer_rules")
        if not self.scale > 0:
            raise MethodError(f"scale={self.scale} was given for sign-symmetry; give a number above 0")

    def objective(self, site: Site) -> Objective:
        """The chain rule's share of the part, with sign-concordant feedback in its layers."""

        def rule(seed: int) -> SignFeedback:
            return SignFeedback(seed=seed, variant=self.variant, scale=self.scale)

        return chain_rule_with(site, rule, "SignSymmetry")
