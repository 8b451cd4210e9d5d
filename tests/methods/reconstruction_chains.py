"""Chains of float64 parts in a trainer whose parts and feedback have rates of their own, and what a step looks at."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import modulewise as mw
from modulewise.objective import Context, Role


def chain(*sizes: int, activation: Callable[[], nn.Module] = nn.Identity, seed: int = 1) -> nn.Sequential:
    """Linear parts with an activation after all but the last; every entry is drawn from N(0, 1 / inputs)."""
    torch.manual_seed(seed)
    parts = []
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        linear = nn.Linear(inputs, outputs).double()
        nn.init.normal_(linear.weight, std=inputs**-0.5)
        last = index == len(sizes) - 2
        parts.append(linear if last else nn.Sequential(linear, activation()))
    return nn.Sequential(*parts)


def batch(inputs: int = 8, n: int = 12, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, inputs, generator=generator, dtype=torch.float64), torch.arange(n) % classes


def trainer_of(
    model: nn.Sequential, method: Any, x: Tensor, *, lr: float = 0.0, feedback_lr: float = 0.0, **settings: Any
) -> mw.Trainer:
    """Every child a part; plain SGD."""

    def optimizer(parameters: Any, *, part: int, role: Role) -> torch.optim.SGD:
        return torch.optim.SGD(parameters, lr=feedback_lr if role is Role.FEEDBACK else lr)

    partition = mw.Partition(model, cuts=[str(k) for k in range(len(model) - 1)], example=x)
    return mw.Trainer(partition, method, loss=F.cross_entropy, optimizer=optimizer, **settings)


def step(trainer: mw.Trainer, x: Tensor, y: Tensor) -> dict[int, Context]:
    """One step; what every objective's forward was given."""
    seen: dict[int, Context] = {}
    handles = [
        objective.register_forward_pre_hook(lambda _, args: seen.update({args[0].part: args[0]}))
        for objective in trainer.objectives
    ]
    trainer.step(x, y)
    for handle in handles:
        handle.remove()
    return seen


def activations(model: nn.Sequential, x: Tensor) -> list[Tensor]:
    """What leaves every part."""
    hs = []
    with torch.no_grad():
        for part in model:
            x = part(x)
            hs.append(x)
    return hs


def output_move(a: Tensor, y: Tensor, step_size: float) -> Tensor:
    """a_target - a for the cross-entropy, in closed form."""
    return -step_size * (a.softmax(1) - F.one_hot(y, a.shape[1]))


def weight(part: nn.Module) -> Tensor:
    """W of a part."""
    return next(p for p in part.parameters() if p.dim() == 2).detach()


def jacobian_above(model: nn.Sequential, part: int) -> Tensor:
    """da / d(h_out of a part) of linear parts: the product of the weights above."""
    product = torch.eye(weight(model[part]).shape[0], dtype=torch.float64)
    for later in list(model)[part + 1 :]:
        product = weight(later) @ product
    return product


def damped_inverse(jacobian: Tensor, damping: float) -> Tensor:
    """J^T (J J^T + damping I)^-1, or the pseudo-inverse."""
    if damping == 0:
        return torch.linalg.pinv(jacobian)
    eye = torch.eye(len(jacobian), dtype=torch.float64)
    return jacobian.T @ torch.linalg.inv(jacobian @ jacobian.T + damping * eye)


def whitened(h: Tensor) -> Tensor:
    """Noise (N, F) whose second moment is the identity exactly; N >= F."""
    drawn = torch.randn(h.shape, dtype=h.dtype)
    orthonormal, _ = torch.linalg.qr(drawn)
    assert orthonormal.shape == h.shape
    return orthonormal * len(h) ** 0.5


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> bool:
    """Equal to a tolerance relative to the largest entry, which is not zero."""
    return a.shape == b.shape and bool(b.abs().max() > 0) and bool((a - b).abs().max() <= tolerance * b.abs().max())
