"""Small networks that the tests of the store share."""

from __future__ import annotations

import torch
from torch import nn

import modulewise as mw
from modulewise.workflow import ModelSpec

MLP = ModelSpec(name="mlp", shape=(1, 4, 4), classes=3)
LENET = ModelSpec(name="lenet5", shape=(1, 28, 28), classes=10)


def partition(spec: ModelSpec = MLP, *, cuts: list[str] | None = None, seed: int = 0) -> mw.Partition:
    """A model with initial weights of a seed, cut by name or into two parts."""
    torch.manual_seed(seed)
    model = mw.models.build(spec.name, shape=spec.shape, classes=spec.classes)
    example = torch.randn(3, *spec.shape)
    return mw.Partition(model, cuts=cuts, parts=None if cuts else 2, example=example)


class Normed(nn.Module):
    """Batch normalisation, dropout, a buffer outside the state, tied weights, a frozen table that both parts read."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU())
        self.second = nn.Linear(6, 6)
        self.again = self.second
        self.register_buffer("shift", torch.arange(6.0), persistent=False)
        self.scale = nn.Parameter(torch.full((6,), 2.0), requires_grad=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x * self.scale[:4])
        h = self.again(torch.relu(self.second(h))) * self.scale + self.shift
        out: torch.Tensor = self.head(h)
        return out


def normed() -> nn.Module:
    """A model of one's own, with weights that a forward in train mode would change."""
    return Normed()


class Constant(nn.Module):
    """Keeps a tensor that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.kept = torch.arange(3.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(x) + self.kept
        return out


def constant() -> nn.Module:
    """A model that cannot be rebuilt from its parameters and buffers."""
    return Constant()


def unsteady() -> nn.Module:
    """A model that is built differently every time: its layers have the same tensors and another order."""
    built.append(len(built))
    layers: list[nn.Module] = [nn.Linear(4, 4), nn.Tanh() if len(built) == 1 else nn.Sigmoid(), nn.Linear(4, 3)]
    return nn.Sequential(*layers)


built: list[int] = []
