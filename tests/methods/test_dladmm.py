"""dlADMM: its augmented Lagrangian, every step under its bound, the order of a sweep, what never rises, refusals."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import exp, log
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import modulewise as mw
from modulewise.errors import CheckpointError, MethodError
from modulewise.method import Family, Locality, Reach
from modulewise.methods import DlADMM
from modulewise.methods.auxiliary import dladmm_updates
from modulewise.methods.auxiliary.blocks import Blocks, initial_blocks
from modulewise.methods.auxiliary.dladmm_updates import (
    Curvatures,
    activation_step,
    backtracked,
    dladmm_lagrangian,
    dladmm_shares,
    dladmm_sweep,
    weight_step,
)
from modulewise.methods.auxiliary.softmax_proximal import softmax_proximal

PENALTIES = Curvatures(rho=1.3, nu=0.7, theta=0.01, tau=0.02)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wandering_blocks(n: int = 6, sizes: tuple[int, ...] = (4, 3, 5, 2)) -> tuple[Blocks, Tensor]:
    """Blocks off the forward pass, where every term counts, and targets."""
    pairs = list(enumerate(pairwise(sizes)))
    weights = tuple(draw(o, i, seed=layer) for layer, (i, o) in pairs)
    biases = tuple(draw(o, seed=10 + layer) for layer, (_, o) in pairs)
    z = tuple(draw(n, o, seed=20 + layer) for layer, (_, o) in pairs)
    a = tuple(draw(n, i, seed=30 + layer) for layer, (i, _) in pairs)
    return Blocks(weights, biases, z, a, draw(n, sizes[-1], seed=40)), F.one_hot(torch.arange(n) % sizes[-1]).double()


def swapped(values: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    return (*values[:index], value, *values[index + 1 :])


def slope(cost: Any, point: Tensor) -> Tensor:
    point = point.clone().requires_grad_()
    return torch.autograd.grad(cost(point), point)[0]


def close(a: Tensor, b: Tensor, rtol: float = 1e-10) -> bool:
    return bool((a - b).abs().max() <= rtol * b.abs().max())


def test_the_augmented_lagrangian_is_the_loop_and_the_shares_are_its_layers():
    """Every term, sample by sample and unit by unit, with Python floats."""
    blocks, targets = wandering_blocks()
    totals = [0.0, 0.0, 0.0]
    for layer in range(3):
        w, b = blocks.weights[layer].tolist(), blocks.biases[layer].tolist()
        for n in range(6):
            z, below = blocks.preactivations[layer][n].tolist(), blocks.activations[layer][n].tolist()
            for o, value in enumerate(z):
                r = value - sum(p * q for p, q in zip(w[o], below, strict=True)) - b[o]
                if layer < 2:
                    a = blocks.activations[layer + 1][n, o].item()
                    totals[layer] += 0.7 / 2 * (r**2 + (a - max(value, 0.0)) ** 2)
                else:
                    totals[layer] += blocks.multiplier[n, o].item() * r + 1.3 / 2 * r**2
            if layer == 2:
                totals[layer] += log(sum(exp(v) for v in z)) - z[int(targets[n].argmax())]
    assert dladmm_shares(blocks, targets, PENALTIES).tolist() == pytest.approx(totals, rel=1e-12)
    assert dladmm_lagrangian(blocks, targets, PENALTIES).item() == pytest.approx(sum(totals), rel=1e-12)


def tried(cost: Any, point: Tensor, start: float) -> tuple[Tensor, float]:
    """Backtracking as the paper writes it: double until the quadratic lies above."""
    gradient, curvature = slope(cost, point), start
    while True:
        moved = point - gradient / curvature
        step = moved - point
        bound = cost(point) + (gradient * step).sum() + curvature / 2 * step.square().sum()
        if cost(moved) <= bound + 1e-12 * abs(bound):
            return moved, curvature
        curvature *= 2


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("start", [1e-4, 0.3, 1e3])
def test_a_step_of_the_weights_is_what_trying_accepts(layer, start):
    blocks, targets = wandering_blocks()

    def cost(point: Tensor) -> Tensor:
        moved = replace(blocks, weights=swapped(blocks.weights, layer, point))
        return dladmm_lagrangian(moved, targets, PENALTIES)

    affine = F.linear(blocks.activations[layer], blocks.weights[layer], blocks.biases[layer])
    residual = blocks.preactivations[layer] - affine + (blocks.multiplier / 1.3 if layer == 2 else 0)
    penalty = 1.3 if layer == 2 else 0.7
    a = blocks.activations[layer]
    found, left = weight_step(residual, a, blocks.weights[layer], penalty=penalty, start=start)
    expected, curvature = tried(cost, blocks.weights[layer], start)
    assert close(found, expected)
    assert close(left, residual - a @ (found - blocks.weights[layer]).T)
    assert cost(found) < cost(blocks.weights[layer])
    assert curvature > start or start == 1e3


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("start", [1e-4, 0.3, 1e3])
def test_a_step_of_the_activations_is_what_trying_accepts(layer, start):
    blocks, targets = wandering_blocks()

    def cost(point: Tensor) -> Tensor:
        moved = replace(blocks, activations=swapped(blocks.activations, layer + 1, point))
        return dladmm_lagrangian(moved, targets, PENALTIES)

    above = layer + 1
    affine = F.linear(blocks.activations[above], blocks.weights[above], blocks.biases[above])
    residual = blocks.preactivations[above] - affine + (blocks.multiplier / 1.3 if above == 2 else 0)
    found, left = activation_step(
        blocks.activations[above],
        blocks.preactivations[layer],
        residual,
        blocks.weights[above],
        nu=0.7,
        penalty=1.3 if above == 2 else 0.7,
        start=start,
    )
    expected, curvature = tried(cost, blocks.activations[above], start)
    assert close(found, expected)
    assert close(left, residual - (found - blocks.activations[above]) @ blocks.weights[above].T)
    assert cost(found) < cost(blocks.activations[above])
    assert curvature > start or start == 1e3


def test_curvatures_are_doubled_as_often_as_needed_and_no_more():
    start = 0.75
    for curvature, expected in [(0.0, 0.75), (0.7, 0.75), (0.75, 0.75), (0.76, 1.5), (1.5, 1.5), (1.6, 3.0), (97, 192)]:
        assert backtracked(torch.tensor(curvature, dtype=torch.float64), start) == expected


def test_a_block_without_gradient_stays():
    weight, a, z = draw(3, 4), draw(5, 4, seed=1).relu(), draw(5, 4, seed=1)
    nothing = torch.zeros(5, 3, dtype=torch.float64)
    assert torch.equal(weight_step(nothing, a, weight, penalty=1.0, start=1.0)[0], weight)
    assert torch.equal(activation_step(a, z, nothing, weight, nu=1.0, penalty=1.0, start=1.0)[0], a)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_bias_is_at_its_minimum(layer):
    """A parabola: no slope is left. A layer without a bias has none afterwards either."""
    blocks, targets = wandering_blocks()

    def cost(point: Tensor) -> Tensor:
        return dladmm_lagrangian(replace(blocks, biases=swapped(blocks.biases, layer, point)), targets, PENALTIES)

    sweep = dladmm_updates._Sweep(blocks, targets, PENALTIES)
    sweep.move_b(layer)
    assert slope(cost, blocks.biases[layer]).abs().max() > 0.1
    assert slope(cost, sweep.b[layer]).abs().max() < 1e-12
    without = dladmm_updates._Sweep(replace(blocks, biases=(None, None, None)), targets, PENALTIES)
    residual = without.r[layer]
    without.move_b(layer)
    assert without.b[layer] is None
    assert without.r[layer] is residual


def relu_minimum(a: float, affine: float) -> float:
    """argmin of (a - relu(z))^2 + (z - affine)^2, over both sides of zero."""
    sides = [min(affine, 0.0), max((a + affine) / 2, 0.0)]
    costs = [(a - max(z, 0.0)) ** 2 + (z - affine) ** 2 for z in sides]
    return sides[costs.index(min(costs))]


def test_a_sweep_goes_down_and_up_each_block_with_the_newest_others():
    """The paper's order, written out: a z b W from the last layer down, W b z a up, then u."""
    blocks, targets = wandering_blocks()
    w, b = list(blocks.weights), list(blocks.biases)
    z, a, u = list(blocks.preactivations), list(blocks.activations), blocks.multiplier

    def residual(layer: int) -> Tensor:
        r = z[layer] - (a[layer] @ w[layer].T + b[layer])
        return r + u / 1.3 if layer == 2 else r

    def step(kind: str, layer: int) -> None:
        penalty = 1.3 if layer == 2 else 0.7
        if kind == "w":
            w[layer], _ = weight_step(residual(layer), a[layer], w[layer], penalty=penalty, start=0.01)
        elif kind == "b":
            b[layer] = b[layer] + residual(layer).mean(0)
        elif kind == "a":  # the activation that this layer reads
            a[layer], _ = activation_step(
                a[layer], z[layer - 1], residual(layer), w[layer], nu=0.7, penalty=penalty, start=0.02
            )
        elif layer == 2:
            z[2] = softmax_proximal(a[2] @ w[2].T + b[2] - u / 1.3, targets, 1.3)
        else:
            affine = a[layer] @ w[layer].T + b[layer]
            pairs = zip(a[layer + 1].flatten().tolist(), affine.flatten().tolist(), strict=True)
            z[layer] = torch.tensor([relu_minimum(p, q) for p, q in pairs], dtype=torch.float64).reshape(affine.shape)

    down = ["z2", "b2", "w2", "a2", "z1", "b1", "w1", "a1", "z0", "b0", "w0"]
    up = ["w0", "b0", "z0", "a1", "w1", "b1", "z1", "a2", "w2", "b2", "z2"]
    for kind, layer in down + up:
        step(kind, int(layer))
    u = u + 1.3 * (z[2] - (a[2] @ w[2].T + b[2]))
    after = dladmm_sweep(blocks, targets, PENALTIES)
    found = (*after.weights, *after.biases, *after.preactivations, *after.activations, after.multiplier)
    assert all(close(p, q) for p, q in zip(found, (*w, *b, *z, *a, u), strict=True))


def test_after_every_sweep_the_multiplier_is_minus_the_slope_of_the_loss():
    """The lemma that the proof of convergence stands on: z_L is at its minimum when u moves."""
    blocks, targets = wandering_blocks()
    for _ in range(3):
        blocks = dladmm_sweep(blocks, targets, PENALTIES)
        assert close(blocks.multiplier, targets - blocks.preactivations[-1].softmax(1))


@pytest.mark.parametrize("nu", [0.01, 1.0, 20.0])
@pytest.mark.parametrize("rho", [1.0 + 1e-9, 5.0])
def test_the_augmented_lagrangian_never_rises_after_the_first_sweep(rho, nu):
    """Where the paper says so: rho above twice the Lipschitz constant of the loss's gradient, which is 1/2 here."""
    blocks, targets = wandering_blocks(n=30)
    penalties = Curvatures(rho=rho, nu=nu, theta=1e-3, tau=1e-3)
    values = []
    for _ in range(40):
        blocks = dladmm_sweep(blocks, targets, penalties)
        values.append(dladmm_lagrangian(blocks, targets, penalties).item())
    assert all(after <= before + 1e-12 * abs(before) for before, after in pairwise(values))
    assert values[-1] < 0.9 * values[0]


def test_no_block_raises_the_augmented_lagrangian(monkeypatch):
    """From any start and for any rho, before the multiplier moves: read after every single step of a sweep."""
    blocks, targets = wandering_blocks(n=20)
    penalties = Curvatures(rho=0.05, nu=0.3, theta=1e-3, tau=1e-3)
    values: list[float] = [dladmm_lagrangian(blocks, targets, penalties).item()]

    def watched(name: str) -> Any:
        move = getattr(dladmm_updates._Sweep, name)

        def moved(state: Any, layer: int) -> None:
            move(state, layer)
            now = Blocks(tuple(state.w), tuple(state.b), tuple(state.z), tuple(state.a), state.u)
            values.append(dladmm_lagrangian(now, targets, penalties).item())

        return moved

    for name in ("move_a", "move_b", "move_w", "move_z"):
        monkeypatch.setattr(dladmm_updates._Sweep, name, watched(name))
    dladmm_sweep(blocks, targets, penalties)
    assert len(values) == 1 + 22
    assert all(after <= before + 1e-12 * abs(before) for before, after in pairwise(values))
    assert sum(after < before for before, after in pairwise(values)) >= 20


def perceptron(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3, bias=False)
    ).to(dtype)


def batch(n: int = 24, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return draw(n, 2, 3).to(dtype), torch.arange(n) % 3


def trainer(model: nn.Module | None = None, *, method: DlADMM | None = None, cuts: tuple[str, ...] = ("2", "4")):
    partition = mw.Partition(model or perceptron(), cuts=cuts, example=batch()[0])
    return mw.Trainer(partition, method or DlADMM(), loss=F.cross_entropy)


def test_a_step_writes_one_sweep_into_the_models_own_parameters_and_shows_the_shares():
    model, (x, y) = perceptron(), batch()
    layers = [model[i] for i in (1, 3, 5)]
    weights = tuple(layer.weight.detach().clone() for layer in layers)
    biases = tuple(None if layer.bias is None else layer.bias.detach().clone() for layer in layers)
    targets = F.one_hot(y, 3).double()
    blocks = initial_blocks(x.flatten(1), weights, biases, multiplier=True)
    penalties = Curvatures(rho=2.0, nu=0.5, theta=0.1, tau=0.2)
    trained = trainer(model, method=DlADMM(rho=2.0, nu=0.5, theta=0.1, tau=0.2))
    for _ in range(3):
        losses = trained.step(x, y)
        blocks = dladmm_sweep(blocks, targets, penalties)
        assert list(losses.values()) == list(dladmm_shares(blocks, targets, penalties))
    assert all(torch.equal(layer.weight, w) for layer, w in zip(layers, blocks.weights, strict=True))
    assert all(b is None or torch.equal(layer.bias, b) for layer, b in zip(layers, blocks.biases, strict=True))


def test_a_part_shows_the_sum_of_its_layers():
    x, y = batch()
    fine = list(trainer().step(x, y).values())
    coarse = list(trainer(cuts=("2",)).step(x, y).values())
    assert torch.equal(coarse[0], fine[0])
    assert torch.allclose(coarse[1], fine[1] + fine[2], rtol=1e-14)


def test_saving_and_resuming_is_exact(tmp_path):
    x, y = batch()
    straight = trainer()
    for _ in range(2):
        straight.step(x, y)
    straight.save(tmp_path / "saved")
    resumed = trainer()
    resumed.load(tmp_path / "saved")
    for each in (straight, resumed):
        for _ in range(2):
            each.step(x, y)
    pairs = zip(straight.partition.model.parameters(), resumed.partition.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(CheckpointError, match="a checkpoint with 1 tensors was given for a perceptron of 3 layers"):
        resumed.solver.load_state_dict({"batch": torch.tensor(0)})


def test_mini_batches_are_refused():
    x, y = batch()
    trained = trainer()
    trained.step(x, y)
    for other in ((x[:12], y[:12]), (x[12:], y[12:]), (x.flip(0), y.flip(0))):
        with pytest.raises(MethodError, match="give the whole training set as one batch, unshuffled, in every step"):
            trained.step(*other)


@pytest.mark.parametrize("name", ["rho", "nu", "theta", "tau"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_arguments_out_of_range_are_refused(name, value):
    with pytest.raises(MethodError, match=f"{name}={value}.* give finite numbers above 0"):
        DlADMM(**{name: value})


def test_family_and_locality():
    assert DlADMM().family is Family.AUXILIARY
    assert DlADMM().locality == Locality(Reach.TARGETS)
