"""Direct feedback alignment: the output error reaches every layer through a fixed random matrix of its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from ...errors import MethodError
from ...layer_rules import DirectFeedback
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Context, Objective, Site
from .direct_objective import OutputError, Projected
from .layerwise import layers_at, rule_seed

__all__ = ["DirectFeedbackAlignment"]


def _sent(context: Context, *, sender: int) -> Tensor:
    """The output error that the last part has sent."""
    error: Tensor = context.feedback[sender]
    return error


@dataclass(frozen=True, kw_only=True)
class DirectFeedbackAlignment(PartwiseMethod):
    """Direct feedback alignment: the error at the input of layer l is e B_l, e = dL/d(output), B_l fixed and random.

    Every linear layer and convolution has a matrix of its own, and so has every boundary between parts. What stands
    between two layers (biases, norms, activations, pooling) follows the chain rule from the nearest projected error
    above it; where several layers and skips read one activation, their errors add up. Entries of B_l are drawn once
    from N(0, scale^2 / F), F the number of elements of one sample there, so that with scale 1 the error's length is
    kept on average; matrices are made when a layer is first met.

    Args:
        outputs: number of elements of one sample's output (the classes, in classification), >= 1.
        scale: length of the projected error relative to the output error, > 0.
        layerwise: False for matrices at the boundaries alone, errors passing back by the chain rule within a part.

    Raises:
        MethodError: an argument is out of range, or a part has no linear layer or convolution.

    References:
        A. Nøkland, Direct feedback alignment provides learning in deep neural networks, NeurIPS 2016,
        https://arxiv.org/abs/1609.01596

    >>> from modulewise.partition.boundary import Boundary
    >>> site = Site(0, 2, None, Boundary("cut", (4, 3)), loss=lambda output, y: output.mean())
    >>> DirectFeedbackAlignment(outputs=10).objective(site).feedback.shape
    torch.Size([10, 3])
    """

    outputs: int
    scale: float = 1.0
    layerwise: bool = True

    family: ClassVar[Family] = Family.GRADIENTS
    locality: ClassVar[Locality] = Locality(Reach.GRADIENTS)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "A. Nøkland",
            "Direct feedback alignment provides learning in deep neural networks",
            "NeurIPS",
            2016,
            "https://arxiv.org/abs/1609.01596",
        ),
    )

    def __post_init__(self) -> None:
        if not (self.outputs >= 1 and self.scale > 0):
            raise MethodError(
                f"outputs={self.outputs}, scale={self.scale} were given; give outputs >= 1 and scale above 0"
            )

    def objective(self, site: Site) -> Objective:
        """The error's source in the last part, its projection in the others."""
        rule = None
        if self.layerwise:
            layers_at(site, "DirectFeedbackAlignment", instead="cut elsewhere, or give layerwise=False")
            rule = DirectFeedback(seed=rule_seed(), elements=self.outputs, scale=self.scale)
        if site.last:
            return OutputError(site, rule)
        sent = partial(_sent, sender=site.parts - 1)
        return Projected(site, rule, sent, elements=self.outputs, scale=self.scale, waits=True)
