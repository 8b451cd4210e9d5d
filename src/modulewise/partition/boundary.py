"""What crosses a cut: one tensor, its shape and its layout."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["Block", "Boundary"]


@dataclass(frozen=True)
class Boundary:
    """The one tensor, depending on upstream parameters, that crosses a cut.

    Args:
        name: the cut's module name; "" for the model's own output.
        shape: (N, ...) at the batch size of the example.
        dtype: element type.
        channel_axis: where channels are: 1 for (N, C), (N, C, L), (N, C, H, W); -1 for (N, T, D), (N, H, W, C).

    >>> Boundary("layer1", (2, 64, 8, 8), torch.float32, 1).channels
    64
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    channel_axis: int = 1

    @property
    def channels(self) -> int:
        """Number of channels (or features)."""
        return self.shape[self.channel_axis]

    @property
    def spatial(self) -> tuple[int, ...]:
        """Sizes between batch and channels: () for (N, D), (T,) for tokens, (H, W) for images."""
        return self.shape[2:] if self.channel_axis == 1 else self.shape[1:-1]

    @property
    def features(self) -> int:
        """Number of elements of one sample."""
        return int(torch.Size(self.shape[1:]).numel())

    def channels_first(self, h: torch.Tensor) -> torch.Tensor:
        """View h (N, ...) as (N, C, *spatial)."""
        return h if self.channel_axis == 1 else h.movedim(-1, 1)


@dataclass(frozen=True)
class Block:
    """A later module of the user's network with one tensor in and one out, for heads made of fresh copies."""

    name: str
    module: nn.Module
    input: Boundary
    output: Boundary
