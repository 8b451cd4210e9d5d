"""Small networks of several parts, their batches, and comparison bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import modulewise as mw

CLASSES = 4
CUTS = ("stem", "one", "two")


def seeded(make: Callable[[], nn.Module], seed: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm(outputs)
        self.b, self.nb = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), norm(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        return F.relu(self.skip(h) + self.nb(self.b(F.relu(self.na(self.a(h))))))


class Residual(nn.Module):
    """A small ResNet: stem, two stages, pooling and a classifier, with functional operations in between."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), norm(6), nn.ReLU())
        self.one = nn.Sequential(Block(6, 8, 1, norm), Block(8, 8, 1, norm), nn.Dropout(dropout))
        self.two = nn.Sequential(Block(8, 12, 2, norm), nn.Dropout(dropout))
        self.head = nn.Linear(12, CLASSES)

    def last(self, h: Tensor) -> Tensor:
        return self.head(h.mean((2, 3)))

    def stages(self) -> list[Callable[[Tensor], Tensor]]:
        return [self.stem, self.one, self.two, self.last]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.two(self.one(self.stem(x))))


class Skipping(nn.Module):
    """Every later part reads the first boundary as well as the one below it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.c, self.d = nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        early = self.a(x)
        middle = self.b(early)
        late = self.c(middle + early)
        return self.d(late * early + middle)


def perceptron(dropout: float = 0.0) -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(dropout)),
        nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Dropout(dropout)),
        nn.Linear(12, CLASSES),
    )


def images(n: int = 8, seed: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 8, 8, generator=generator), torch.arange(n) % CLASSES


def rows(n: int = 8, seed: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=generator), torch.arange(n) % CLASSES


def sgd(parameters: Iterable[Tensor]) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)


def trainer_of(model: nn.Module, method: Any, cuts: Iterable[str], x: Any, **settings: Any) -> mw.Trainer:
    partition = mw.Partition(model, cuts=list(cuts), example=x)
    return mw.Trainer(partition, method, **{"loss": F.cross_entropy, "optimizer": sgd, **settings})


def state(*modules: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers."""
    return {f"{i}.{name}": t.detach().clone() for i, m in enumerate(modules) for name, t in m.state_dict().items()}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """The names whose tensors are not the same bit for bit."""
    assert list(a) == list(b)
    assert a
    return [name for name in a if not torch.equal(a[name], b[name])]
