"""Fixed random feedback weights in place of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from torch import Tensor, nn

from ..errors import MethodError
from .layerwise import WeightRule
from .weights import DrawnWeights, Feedback

__all__ = ["FeedbackWeights"]


@final
class FeedbackWeights(WeightRule):
    """Errors pass back through every linear layer and convolution by a fixed B instead of the weight W.

    delta_below = B^T delta instead of W^T delta; the weight's own gradient is the chain rule's. B is drawn
    once per layer name, from the distribution of torch's initial weights, U(-a, a) with a = scale /
    sqrt(fan_in). Only layers of exactly torch's classes are changed; `report` names the modules that keep the
    chain rule (norms, recurrent layers, attention's packed projections, subclasses with a forward of their
    own), with the reason.

    Args:
        seed: seed of the draws; a layer's B depends on the seed and its name alone.
        scale: width of the distribution, relative to torch's initial weights, > 0.
        feedback: gives B for (name, module) at every forward instead of a draw; `lambda name, module:
            module.weight` is the chain rule.

    Raises:
        MethodError: scale is not above 0.

    References:
        T. P. Lillicrap, D. Cownden, D. B. Tweed, C. J. Akerman, Random synaptic feedback weights support
        error backpropagation for deep learning, Nature Communications 2016,
        https://doi.org/10.1038/ncomms13276

    >>> import torch
    >>> layer, rule = nn.Linear(3, 2), FeedbackWeights(seed=0)
    >>> x = torch.ones(1, 3, requires_grad=True)
    >>> with rule.installed([("layer", layer)]):
    ...     layer(x).sum().backward()
    >>> torch.equal(x.grad, torch.ones(1, 2) @ rule.state_dict()["layer"])
    True
    """

    def __init__(self, *, seed: int, scale: float = 1.0, feedback: Feedback | None = None) -> None:
        if not scale > 0:
            raise MethodError(f"scale={scale} was given for feedback weights; give a number above 0")
        self._feedback = feedback
        self._drawn = DrawnWeights(seed=seed, scale=scale)

    def prepare(self, name: str, module: nn.Module) -> None:
        """Draw the layer's B, unless it is given."""
        if self._feedback is None:
            self._drawn.get(name, module)

    def weight(self, name: str, module: nn.Module) -> Tensor:
        """The layer's B, drawn or given."""
        return self._drawn.get(name, module) if self._feedback is None else self._feedback(name, module)

    def state_dict(self) -> dict[str, Tensor]:
        """The feedback weights drawn so far, by layer name."""
        return self._drawn.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take feedback weights back; layers that the state does not name are drawn when first met."""
        self._drawn.load_state_dict(state)
