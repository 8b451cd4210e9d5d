"""What tests of target propagation share: a network of four parts, its targets, and the inverse in Python loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import modulewise as mw


class Exact(nn.Module):
    """The inverse of an invertible linear layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = [layer]

    def forward(self, h: Tensor) -> Tensor:
        layer = self.layer[0]
        return torch.linalg.solve(layer.weight, (h - layer.bias).T).T.detach()


def network(
    widths: Sequence[int] = (6, 7, 5, 4),
    activation: Callable[[], nn.Module] = nn.Tanh,
    outputs: int = 3,
    *,
    seed: int = 1,
) -> nn.Sequential:
    """Blocks 0, 1, 2, ... of Linear and activation, and a linear head; float64."""
    torch.manual_seed(seed)
    blocks = [nn.Sequential(nn.Linear(a, b), activation()) for a, b in pairwise(widths)]
    return nn.Sequential(*blocks, nn.Linear(widths[-1], outputs)).double()


def rows(n: int = 8, features: int = 6, classes: int = 3, *, seed: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(n, features, dtype=torch.float64), torch.arange(n) % classes


def half_squared_error(output: Tensor, y: Tensor) -> Tensor:
    return (output - y).square().flatten(1).sum(1).mean() / 2


def trained(
    method: Any,
    *,
    model: nn.Module | None = None,
    cuts: Sequence[str] | None = None,
    loss: Callable[..., Tensor] = F.cross_entropy,
    lr: float = 1.0,
    features: int = 6,
    optimizer: Callable[..., Any] | None = None,
) -> mw.Trainer:
    """A trainer by SGD over the four parts of `network`, its objectives in float64."""
    model = network() if model is None else model
    names = [str(k) for k in range(len(model) - 1)] if cuts is None else cuts
    example = torch.zeros(2, features, dtype=torch.float64)
    trainer = mw.Trainer(
        mw.Partition(model, cuts=list(names), example=example),
        method,
        loss=loss,
        optimizer=optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=lr)),
    )
    for objective in trainer.objectives:
        objective.double()
    return trainer


def captured(trainer: mw.Trainer, x: Tensor, y: Any) -> dict[int, Any]:
    """One step; what every part was told by the part above."""
    told: dict[int, Any] = {}

    def note(objective: nn.Module, args: tuple[mw.Context]) -> None:
        context = args[0]
        if context.part + 1 in context.feedback:
            told[context.part] = context.feedback[context.part + 1]

    handles = [objective.register_forward_pre_hook(note) for objective in trainer.objectives]
    trainer.step(x, y)
    for handle in handles:
        handle.remove()
    return told


def learn(trainer: mw.Trainer, x: Tensor, y: Any) -> list[Tensor]:
    """By how much one step moves every parameter of the model, divided by minus the learning rate 1."""
    parameters = list(trainer.partition.model.parameters())
    before = [p.detach().clone() for p in parameters]
    trainer.step(x, y)
    return [b - p.detach() for b, p in zip(before, parameters, strict=True)]


def updates(model: nn.Module, loss: Tensor) -> list[Tensor]:
    """What one step of length 1 down a loss takes off every parameter, rounded as the step rounds."""
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return [p.detach() - (p.detach() - g) for p, g in zip(model.parameters(), gradients, strict=True)]


def literal_map(layers: Sequence[nn.Module], h: Tensor) -> Tensor:
    """Linear layers and tanh on rows (N, D), number by number."""
    made = []
    for row in h.tolist():
        for layer in layers:
            if isinstance(layer, nn.Linear):
                weight, bias = layer.weight.tolist(), layer.bias.tolist() if layer.bias is not None else None
                row = [
                    sum(w * v for w, v in zip(ws, row, strict=True)) + (bias[i] if bias else 0.0)
                    for i, ws in enumerate(weight)
                ]
            else:
                assert isinstance(layer, nn.Tanh)
                row = [math.tanh(v) for v in row]
        made.append(row)
    return torch.tensor(made, dtype=torch.float64)
