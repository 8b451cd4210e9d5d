"""Feedback weights that are parameters and get the same increments as the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import final

import torch
from torch import Tensor, nn

from .layerwise import WeightRule, layers_of

__all__ = ["FollowingWeights"]


@final
class FollowingWeights(WeightRule):
    """Errors pass back by parameters B, whose gradients are the gradients of the weights, added to their own.

    Args:
        feedback: B of every layer, trained by whoever made them; they are saved there, not here.

    >>> layer, b = nn.Linear(2, 1, bias=False), nn.Parameter(torch.zeros(1, 2))
    >>> rule, x = FollowingWeights({layer: b}), torch.ones(1, 2)
    >>> with rule.installed([("layer", layer)]):
    ...     layer(x).sum().backward()
    >>> rule.learn([("layer", layer)])
    >>> b.grad
    tensor([[1., 1.]])
    """

    def __init__(self, feedback: Mapping[nn.Module, nn.Parameter]) -> None:
        self._feedback = feedback

    def weight(self, name: str, module: nn.Module) -> Tensor:
        """The layer's B as it is now."""
        return self._feedback[module]

    def learn(self, modules: Iterable[tuple[str, nn.Module]]) -> None:
        """Add the gradient of every weight to that of its B."""
        with torch.no_grad():
            for module in layers_of(modules).values():
                live, b = module.weight, self._feedback[module]
                assert isinstance(live, Tensor)
                if live.grad is not None:
                    b.grad = live.grad.to(b, copy=True) if b.grad is None else b.grad + live.grad.to(b)

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing: B belongs to an objective."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take back."""
