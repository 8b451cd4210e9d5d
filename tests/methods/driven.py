"""Small networks through the trainer, in float64 with plain SGD, for methods with rules for single layers."""

from __future__ import annotations

from typing import Any

import torch
from literal_oracles import draw
from small_networks import seeded
from torch import Tensor, nn
from torch.nn import functional

import modulewise as mw

RATE = 0.1
Y = torch.tensor([0, 1, 2, 0, 1, 2, 1, 0])


def rows(seed: int = 0) -> Tensor:
    return draw(8, 6, seed=seed)


def images(seed: int = 0) -> Tensor:
    return draw(8, 2, 6, 6, seed=seed)


def perceptron() -> nn.Sequential:
    """Four layers in three parts when cut at "0" and "1": the middle part has two."""
    return seeded(
        lambda: nn.Sequential(
            nn.Sequential(nn.Linear(6, 7), nn.Tanh()),
            nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh()),
            nn.Linear(5, 3),
        )
    ).double()


def convolutional() -> nn.Sequential:
    """Convolutions with stride, padding and groups, a group norm, and a linear layer, cut at "0"."""
    return seeded(
        lambda: nn.Sequential(
            nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.GroupNorm(2, 4), nn.Tanh()),
            nn.Sequential(nn.Conv2d(4, 6, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(24, 5), nn.Tanh()),
            nn.Linear(5, 3),
        )
    ).double()


def trainer(
    method: Any, model: nn.Module | None = None, *, cuts: tuple[str, ...] = ("0", "1"), **more: Any
) -> mw.Trainer:
    """A trainer with SGD of one rate for all roles."""
    model = perceptron() if model is None else model
    first = next(model.parameters())
    example = (images() if first.dim() == 4 else rows()).to(first.dtype)
    partition = mw.Partition(model, cuts=cuts, example=example)
    settings = {"optimizer": lambda p: torch.optim.SGD(p, lr=RATE), "loss": functional.cross_entropy, **more}
    return mw.Trainer(partition, method, **settings)


def moves(trained: mw.Trainer, x: Tensor, y: Tensor = Y) -> dict[str, Tensor]:
    """The gradients that one step followed, by parameter: what it moved, over the rate."""
    before = {name: p.detach().clone() for name, p in trained.partition.model.named_parameters()}
    trained.step(x, y)
    return {name: (before[name] - p.detach()) / RATE for name, p in trained.partition.model.named_parameters()}


def state(trained: mw.Trainer) -> list[Tensor]:
    """Copies of all parameters and buffers, those of objectives and rules too."""
    own = [t for o in trained.objectives for t in o.state_dict().values()]
    rules = [t for o in trained.objectives if o.rule is not None for t in o.rule.state_dict().values()]
    return [t.detach().clone() for t in (*trained.partition.model.state_dict().values(), *own, *rules)]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) > 0 and all(torch.equal(u, v) for u, v in zip(a, b, strict=True))


def close(a: dict[str, Tensor], b: dict[str, Tensor], rtol: float = 1e-10) -> None:
    """Assert that two sets of gradients agree to a fraction of the largest entry of each, but for round-off."""
    assert a.keys() == b.keys()
    for name, expected in b.items():
        assert expected.abs().max() > 0, name
        assert (a[name] - expected).abs().max() <= rtol * expected.abs().max() + 1e-14, name


def backward_by(model: nn.Sequential, x: Tensor, y: Tensor, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The perceptron's gradients, sample by sample and unit by unit, errors going down by the given matrices.

    delta_{l-1} = (B_l^T delta_l) * (1 - h_{l-1}^2) below every layer, dW_l = sum_n delta_l h_{l-1}^T.
    """
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    found = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for sample, label in zip(x, y, strict=True):
        h = [sample.tolist()]
        for index, (_, layer) in enumerate(layers):
            w, b = layer.weight.tolist(), layer.bias.tolist()
            a = [sum(u * v for u, v in zip(row, h[-1], strict=True)) + c for row, c in zip(w, b, strict=True)]
            h.append(a if index == len(layers) - 1 else torch.tensor(a, dtype=torch.float64).tanh().tolist())
        delta = (torch.tensor(h[-1], dtype=torch.float64).softmax(0) / len(x)).tolist()
        delta[int(label)] -= 1 / len(x)
        for index in reversed(range(len(layers))):
            name = layers[index][0]
            for o, error in enumerate(delta):
                found[f"{name}.bias"][o] += error
                for i, value in enumerate(h[index]):
                    found[f"{name}.weight"][o, i] += error * value
            carried = weights[name].tolist()
            delta = [
                sum(error * carried[o][i] for o, error in enumerate(delta)) * (1 - value**2)
                for i, value in enumerate(h[index])
            ]
    return found
