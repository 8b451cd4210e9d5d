"""Variables of small lifted networks off the forward pass, and what scipy finds for one block."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor, nn

import modulewise as mw
from modulewise.methods.auxiliary.lifted_chain import Lifted, OutputLoss
from modulewise.methods.auxiliary.lifted_solver import LiftedBlocks

SIZES = (4, 5, 3, 3)
INFINITE = float("inf")


def wandering(n: int = 6, *, bias: bool = True, output: bool = False, seed: int = 2, sizes=SIZES) -> Lifted:
    """Blocks off the forward pass, X_l >= 0 with some zeros; with the output as a variable where asked for."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    maps = tuple(draw(o, i + bias) for i, o in pairwise(sizes))
    activations = (draw(n, sizes[0]), *(draw(n, width).relu() for width in sizes[1:-1]))
    if output:
        activations = (*activations, draw(n, sizes[-1]))
    return Lifted(maps, tuple(torch.ones(m.shape[1], dtype=torch.bool) for m in maps), activations)


def output_loss(n: int = 6, *, cross_entropy: bool, classes: int = SIZES[-1]) -> OutputLoss:
    return OutputLoss(F.one_hot(torch.arange(n) % classes, classes).double(), cross_entropy)


def total(blocks: LiftedBlocks, lifted: Lifted, loss: OutputLoss) -> float:
    return blocks.shares(lifted, loss).sum().item()


def slope(cost: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    leaf = point.clone().requires_grad_()
    (found,) = torch.autograd.grad(cost(leaf), leaf)
    return found


def off_optimum(cost: Callable[[Tensor], Tensor], point: Tensor, *, nonnegative: bool) -> float:
    """How far a point is from the conditions of a minimum of a convex cost, over x >= 0 or over all x."""
    gradient = slope(cost, point)
    if not nonnegative:
        return gradient.abs().max().item()
    assert (point >= 0).all()
    return torch.minimum(point, gradient).abs().max().item()


def minimiser(cost: Callable[[Tensor], Tensor], start: Tensor, *, nonnegative: bool = False) -> Tensor:
    """The minimum that scipy finds, with torch's gradient."""

    def value_and_slope(flat: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(flat.copy()).reshape(start.shape)
        return cost(point).item(), slope(cost, point).flatten().numpy()

    bounds = [(0, None)] * start.numel() if nonnegative else None
    options = {"ftol": 1e-16, "gtol": 1e-11, "maxiter": 3000, "maxfun": 6000}
    found = minimize(
        value_and_slope, start.flatten().numpy(), jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )
    return torch.from_numpy(found.x).reshape(start.shape)


def is_minimum(cost: Callable[[Tensor], Tensor], found: Tensor, start: Tensor, *, nonnegative: bool) -> None:
    """The found point meets the conditions of a minimum, is scipy's, and no worse."""
    expected = minimiser(cost, start, nonnegative=nonnegative)
    scale = slope(cost, start).abs().max().item()
    assert scale > 1e-3
    assert off_optimum(cost, found, nonnegative=nonnegative) <= 1e-10 * scale
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert cost(found).item() <= cost(expected).item() * (1 + 1e-12)


def curves_up(cost: Callable[[Tensor], Tensor], point: Tensor, along: Tensor) -> bool:
    """Second differences of a cost along a line are not negative."""
    values = [cost(point + t * along).item() for t in np.linspace(-2, 2, 21)]
    seconds = [a - 2 * b + c for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return min(seconds) >= -1e-12 * max(map(abs, values))


def perceptron(*, bias: bool = True, dtype: torch.dtype = torch.float64, widths=(5, 4)) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise((6, *widths)):
        layers += [nn.Linear(inputs, outputs, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 3, bias=bias)).to(dtype)


def gap_to_descent(method: mw.Method, *, rate: float, widths: tuple[int, ...], cross_entropy: bool) -> float:
    """How far a step is from one of end-to-end gradient descent, relative to the largest gradient."""
    model, (x, y) = perceptron(widths=widths), batch(12)
    output = model(x)
    error = (output - F.one_hot(y, 3)).square().sum() / 24
    (F.cross_entropy(output, y) if cross_entropy else error).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    before = [p.detach().clone() for p in model.parameters()]
    trainer_of(model, method, x, cuts=("2",)).step(x, y)
    moved = [(b - p.detach()) / rate for b, p in zip(before, model.parameters(), strict=True)]
    scale = max(e.abs().max().item() for e in expected)
    return max((m - e).abs().max().item() for m, e in zip(moved, expected, strict=True)) / scale


def batch(n: int = 8, dtype: torch.dtype = torch.float64, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, 3, dtype=dtype, generator=generator)
    return x, torch.randint(0, 3, (n,), generator=generator)


def trainer_of(model: nn.Module, method: mw.Method, x: Tensor, *, cuts=("2", "4")) -> mw.Trainer:
    partition = mw.Partition(model, cuts=cuts, example=x)
    return mw.Trainer(partition, method, loss=F.cross_entropy, optimizer=None)


def lifted_of(model: nn.Module, x: Tensor) -> Lifted:
    """The variables a step starts from, without activations but the input."""
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    maps = tuple(
        layer.weight.detach().clone()
        if layer.bias is None
        else torch.cat([layer.weight.detach(), layer.bias.detach()[:, None]], 1)
        for layer in layers
    )
    return Lifted(maps, tuple(torch.ones(m.shape[1], dtype=torch.bool) for m in maps), (x.flatten(1),))
