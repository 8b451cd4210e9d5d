"""Feedback weights with the signs of the weights and magnitudes of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import final

import torch
from torch import Tensor, nn

from ..errors import MethodError
from .layerwise import WeightRule, layers_of
from .weights import DrawnWeights, initial_bound, uniform, weight_of

__all__ = ["SignFeedback", "SignVariant"]


class SignVariant(StrEnum):
    """Magnitudes of sign-concordant feedback: all equal, redrawn every batch, or drawn once."""

    USF = "usf"
    BRSF = "brsf"
    FRSF = "frsf"


@final
class SignFeedback(WeightRule):
    """Errors pass back by B = |M| o sign(W): the weight's sign as it is now, a magnitude of its own.

    With a = scale / sqrt(fan_in), torch's initial weights being U(-a, a) at scale 1: uSF has |M| = a / sqrt(3)
    everywhere, the root mean square of U(-a, a); brSF and frSF have M from U(-a, a), brSF a new one after
    every update of W, frSF one for good. A weight that is exactly zero carries nothing back.

    Args:
        seed: seed of the first draws; a layer's M depends on the seed and its name alone. Later draws come from
            torch's default generator when `learn` is called.
        variant: how magnitudes are made.
        scale: their size relative to torch's initial weights, > 0.

    Raises:
        MethodError: scale is not above 0.

    References:
        Q. Liao, J. Z. Leibo, T. Poggio, How important is weight symmetry in backpropagation?, AAAI 2016,
        https://arxiv.org/abs/1510.05067

    >>> layer, rule = nn.Linear(3, 2), SignFeedback(seed=0)
    >>> torch.equal(rule.weight("layer", layer).sign(), layer.weight.sign())
    True
    """

    def __init__(self, *, seed: int, variant: SignVariant = SignVariant.USF, scale: float = 1.0) -> None:
        if not scale > 0:
            raise MethodError(f"scale={scale} was given for sign-concordant feedback; give a number above 0")
        self._variant, self._scale = variant, scale
        self._drawn = DrawnWeights(seed=seed, scale=scale)

    def weight(self, name: str, module: nn.Module) -> Tensor:
        """The layer's B."""
        live = weight_of(module)
        if self._variant is SignVariant.USF:
            return live.sign() * (self._scale * initial_bound(live) / 3**0.5)
        return self._drawn.get(name, module).abs() * live.sign()

    def learn(self, modules: Iterable[tuple[str, nn.Module]]) -> None:
        """With brSF, draw the magnitudes of the next batch."""
        if self._variant is SignVariant.BRSF:
            with torch.no_grad():
                for name, module in layers_of(modules).items():
                    self._drawn.set(name, uniform(weight_of(module), scale=self._scale))

    def state_dict(self) -> dict[str, Tensor]:
        """The magnitudes drawn so far, by layer name; none for uSF."""
        return self._drawn.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take magnitudes back; layers that the state does not name are drawn when first met."""
        self._drawn.load_state_dict(state)
