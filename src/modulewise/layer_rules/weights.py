"""Feedback weights by the names of their layers: how they are drawn, kept and taken back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..seeding import seed_of

__all__ = ["DrawnWeights", "Feedback", "initial_bound", "uniform", "weight_of"]

Feedback = Callable[[str, nn.Module], Tensor]
"""feedback(name, module) -> the weight that carries errors back, of the shape of module.weight."""


def weight_of(module: nn.Module) -> Tensor:
    """The layer's weight as it is now, without a graph."""
    live = module.weight
    assert isinstance(live, Tensor)
    return live.detach()


def initial_bound(weight: Tensor) -> float:
    """The bound a = 1 / sqrt(fan_in) of torch's initial weights, U(-a, a), whose root mean square is a / sqrt(3).

    >>> initial_bound(torch.zeros(2, 4, 2, 2))
    0.25
    """
    return float(weight[0].numel() ** -0.5)


def uniform(weight: Tensor, *, scale: float, generator: torch.Generator | None = None) -> Tensor:
    """A tensor like a weight with entries U(-a, a), a = scale / sqrt(fan_in).

    Args:
        weight: (out, in, ...); only shape, type and device count.
        scale: width relative to torch's initial weights, > 0.
        generator: of the processor; None for the default one of the weight's device.
    """
    device = weight.device if generator is None else generator.device
    drawn = torch.rand(weight.shape, generator=generator, device=device) * 2 - 1
    return (drawn * (scale * initial_bound(weight))).to(weight)


@final
class DrawnWeights:
    """One tensor a layer, of the shape of its weight, drawn when first asked for from (seed, name) alone.

    Args:
        seed: seed of the draws.
        scale: width of U(-a, a) relative to torch's initial weights, > 0.

    >>> kept, layer = DrawnWeights(seed=0, scale=1.0), nn.Linear(3, 2)
    >>> torch.equal(kept.get("layer", layer), DrawnWeights(seed=0, scale=1.0).get("layer", layer))
    True
    """

    def __init__(self, *, seed: int, scale: float) -> None:
        self._seed, self._scale = seed, scale
        self._kept: dict[str, Tensor] = {}

    def get(self, name: str, module: nn.Module) -> Tensor:
        """The layer's tensor, on the device and in the type of its weight.

        Raises:
            CheckpointError: one of another shape was loaded.
        """
        live = weight_of(module)
        if name not in self._kept:
            generator = torch.Generator().manual_seed(seed_of(self._seed, name))
            self._kept[name] = uniform(live, scale=self._scale, generator=generator)
        kept = self._kept[name]
        if kept.shape != live.shape:
            raise CheckpointError(
                f"the feedback weight of {name!r} is {tuple(kept.shape)}, its layer's {tuple(live.shape)}; "
                "load the checkpoint of this model"
            )
        self._kept[name] = kept.to(device=live.device, dtype=live.dtype)
        return self._kept[name]

    def set(self, name: str, weight: Tensor) -> None:
        """Replace a layer's tensor; the old one is left as it is, for a graph may hold it."""
        self._kept[name] = weight

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors drawn so far, by layer name."""
        return dict(self._kept)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take tensors back; layers that the state does not name are drawn when first met."""
        self._kept = {name: weight.detach().clone() for name, weight in state.items()}
