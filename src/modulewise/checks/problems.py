"""Small tasks to hold a method to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..models.recurrent import RecurrentNetwork
from ..partition import AnyPartition, Partition, TimePartition

__all__ = ["Problem", "example_problem", "linear_problem", "recurrent_problem"]


@dataclass(frozen=True)
class Problem:
    """A small task to hold a method to.

    Args:
        model: makes the model anew, the same each time.
        cuts: where it is cut.
        x: input (N, ...).
        y: labels (N,).
        views: views of every sample stacked along the batch of x.
        windows: for a recurrent model, into how many windows of time it is cut instead; 0 for parts in depth.
    """

    model: Callable[[], nn.Module]
    cuts: tuple[str, ...]
    x: Tensor
    y: Tensor
    views: int = 1
    windows: int = 0

    def partition(self, model: nn.Module | None = None, *, whole: bool = False) -> AnyPartition:
        """The model in parts.

        Args:
            model: one that `model` made; None for a new one.
            whole: in one part.
        """
        model = self.model() if model is None else model
        if self.windows:
            return TimePartition(model, windows=1 if whole else self.windows, example=self.x)
        return Partition(model, cuts=() if whole else self.cuts, example=self.x)

    def seen(self, views: int) -> Problem:
        """The same task with so many views of every sample: x itself, and x with small differences."""
        if views == self.views:
            return self
        generator = torch.Generator().manual_seed(13)
        others = [self.x + 0.1 * torch.randn(self.x.shape, generator=generator) for _ in range(views - 1)]
        return replace(self, x=torch.cat([self.x, *others]), views=views)


def _seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return make()

    return build


def example_problem() -> Problem:
    """A convolutional network of three parts with batch normalisation and dropout; 3 classes."""

    def make() -> nn.Module:
        def stage(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.LeakyReLU(0.1),
                nn.Dropout(0.1),
            )

        return nn.Sequential(stage(2, 6), stage(6, 8), nn.Sequential(nn.Flatten(), nn.Linear(8 * 36, 3)))

    generator = torch.Generator().manual_seed(11)
    x = torch.randn(12, 2, 6, 6, generator=generator)
    return Problem(_seeded(make), ("0", "1"), x, torch.arange(12) % 3)


def linear_problem() -> Problem:
    """A three-layer perceptron, for methods that take Linear and ReLU alone; 3 classes."""

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    generator = torch.Generator().manual_seed(11)
    return Problem(_seeded(make), ("1", "3"), torch.randn(12, 5, generator=generator), torch.arange(12) % 3)


def recurrent_problem() -> Problem:
    """A tanh recurrent network over six moments in three windows, for methods over time; 3 classes."""

    def make() -> nn.Module:
        return RecurrentNetwork(nn.RNN(4, 6, batch_first=True), outputs=3, every=False)

    generator = torch.Generator().manual_seed(11)
    x = torch.randn(12, 6, 4, generator=generator)
    return Problem(_seeded(make), (), x, torch.arange(12) % 3, windows=3)
