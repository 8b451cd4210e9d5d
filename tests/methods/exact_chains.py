"""Chains of small float64 parts, trainers on them, and copies of what lies above or below a part."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import modulewise as mw
from modulewise.objective import Role

CLASSES = 3


def chain(sizes: Sequence[int] = (6, 7, 5, CLASSES), *, linear: bool = False, seed: int = 1) -> nn.Sequential:
    """Parts (Linear, Tanh), or (Linear, Identity), and a Linear at the end."""
    torch.manual_seed(seed)
    inner = [nn.Sequential(nn.Linear(a, b), nn.Identity() if linear else nn.Tanh()) for a, b in pairwise(sizes)]
    inner[-1] = nn.Linear(sizes[-2], sizes[-1])
    return nn.Sequential(*inner).double()


def batch(n: int = 8, features: int = 6, seed: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, features, dtype=torch.float64, generator=generator), torch.arange(n) % CLASSES


def trainer(
    model: nn.Sequential,
    method: Any,
    x: Tensor,
    *,
    rate: float = 0.5,
    own: float = 0.5,
    momentum: float = 0.0,
    loss: Callable[..., Tensor] = F.cross_entropy,
) -> mw.Trainer:
    """SGD with one rate for parts and one for what objectives own."""

    def sgd(parameters: Any, *, part: int, role: Role) -> torch.optim.Optimizer:
        del part
        return torch.optim.SGD(parameters, lr=rate if role is Role.PART else own, momentum=momentum)

    partition = mw.Partition(model, cuts=[str(k) for k in range(len(model) - 1)], example=x)
    return mw.Trainer(partition, method, loss=loss, optimizer=sgd)


def moves(model: nn.Module, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """By how much every parameter moved."""
    return {name: p.detach() - before[name] for name, p in model.named_parameters()}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def close(a: Tensor, b: Tensor, *, relative: float = 1e-10) -> bool:
    """Equal to a share of the largest entry, which is not zero."""
    assert a.shape == b.shape
    assert b.abs().max() > 0
    return bool((a - b).abs().max() <= relative * b.abs().max())


class Others(nn.Module):
    """Copies of some parts of a model, without gradients of their own, brought up to date by `follow`."""

    def __init__(self, model: nn.Sequential, parts: Sequence[int]) -> None:
        super().__init__()
        self.model, self.parts = [model], parts
        self.copies = copy.deepcopy(nn.Sequential(*[model[k] for k in parts])).requires_grad_(False)

    def follow(self) -> None:
        for own, k in zip(self.copies, self.parts, strict=True):
            own.load_state_dict(self.model[0][k].state_dict())

    def forward(self, h: Tensor) -> Tensor:
        return self.copies(h)


def train_alike(
    method: Callable[[nn.Sequential, list[Others]], Any], control: Any, *, steps: int = 3, n: int = 8, **settings: Any
) -> tuple[nn.Sequential, nn.Sequential, mw.Trainer, mw.Trainer]:
    """Two equal models, one trained by a method made of copies of the model, which follow it step by step."""
    models = chain(), chain()
    followers: list[Others] = []
    x, _ = batch(n)
    first = trainer(models[0], method(models[0], followers), x, **settings)
    second = trainer(models[1], control, x, **settings)
    for step in range(steps):
        for other in followers:
            other.follow()
        x, y = batch(n, seed=step)
        first.step(x, y)
        second.step(x, y)
    return *models, first, second
