"""The closed forms of block coordinate descent: every block at its minimum, an objective that never rises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

from modulewise.methods.auxiliary import bcd_objective
from modulewise.methods.auxiliary.bcd_updates import (
    Penalties,
    affine_map,
    bcd_shares,
    bcd_sweep,
    hidden_activation,
    hidden_preactivation,
    output_activation,
    output_preactivation,
)
from modulewise.methods.auxiliary.blocks import Blocks, input_products

PENALTIES = Penalties(gamma=0.7, rho=1.3, alpha=0.9)


def wandering_blocks(n: int = 5) -> tuple[Blocks, Tensor]:
    """Blocks off the forward pass, where every penalty is positive."""
    torch.manual_seed(2)
    sizes = (4, 3, 2)
    weights = tuple(torch.randn(o, i, dtype=torch.float64) for i, o in pairwise(sizes))
    biases = tuple(torch.randn(o, dtype=torch.float64) for o in sizes[1:])
    u = tuple(torch.randn(n, o, dtype=torch.float64) for o in sizes[1:])
    v = tuple(torch.randn(n, o, dtype=torch.float64) for o in sizes)
    return Blocks(weights, biases, u, v), torch.randn(n, 2, dtype=torch.float64)


def minimiser(cost: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The minimum that scipy finds, with torch's gradient."""

    def value_and_slope(flat: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(flat.copy()).reshape(start.shape).requires_grad_()
        value = cost(point)
        (slope,) = torch.autograd.grad(value, point)
        return value.item(), slope.flatten().numpy()

    found = minimize(
        value_and_slope, start.flatten().numpy(), jac=True, method="L-BFGS-B", options={"ftol": 1e-16, "gtol": 1e-11}
    )
    return torch.from_numpy(found.x).reshape(start.shape)


def swapped(values: tuple[Tensor, ...], index: int, value: Tensor) -> tuple[Tensor, ...]:
    return (*values[:index], value, *values[index + 1 :])


def proximal(point: Tensor, present: Tensor) -> Tensor:
    return PENALTIES.alpha / 2 * (point - present).square().sum()


def test_the_objective_is_the_loop():
    """Every term of F element by element, with Python floats."""
    blocks, targets = wandering_blocks()
    n, total = 5, 0.0
    for sample in range(n):
        for layer in range(2):
            w, b = blocks.weights[layer].tolist(), blocks.biases[layer].tolist()
            u, v = blocks.preactivations[layer][sample].tolist(), blocks.activations[layer + 1][sample].tolist()
            below = blocks.activations[layer][sample].tolist()
            for o in range(len(u)):
                affine = sum(w[o][i] * below[i] for i in range(len(below))) + b[o]
                activated = max(u[o], 0.0) if layer == 0 else u[o]
                total += PENALTIES.gamma / 2 * (v[o] - activated) ** 2 + PENALTIES.rho / 2 * (u[o] - affine) ** 2
        total += sum((a - b) ** 2 for a, b in zip(v, targets[sample].tolist(), strict=True)) / 2
    assert bcd_objective(blocks, targets, PENALTIES).item() == pytest.approx(total, rel=1e-12)
    assert bcd_shares(blocks, targets, PENALTIES).sum() == bcd_objective(blocks, targets, PENALTIES)


def test_output_blocks_are_minimisers():
    blocks, targets = wandering_blocks()
    u, v = blocks.preactivations, blocks.activations

    def of_v(point: Tensor) -> Tensor:
        moved = replace(blocks, activations=swapped(v, 2, point))
        return bcd_objective(moved, targets, PENALTIES) + proximal(point, v[2])

    def of_u(point: Tensor) -> Tensor:
        return bcd_objective(replace(blocks, preactivations=swapped(u, 1, point)), targets, PENALTIES)

    affine = F.linear(v[1], blocks.weights[1], blocks.biases[1])
    found_v, found_u = output_activation(targets, u[1], v[2], PENALTIES), output_preactivation(v[2], affine, PENALTIES)
    assert torch.allclose(found_v, minimiser(of_v, v[2]), rtol=1e-6, atol=1e-7)
    assert torch.allclose(found_u, minimiser(of_u, u[1]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bias", [True, False])
def test_hidden_activation_is_a_minimiser(bias):
    blocks, targets = wandering_blocks()
    if not bias:
        blocks = replace(blocks, biases=(None, None))
    v = blocks.activations

    def cost(point: Tensor) -> Tensor:
        return bcd_objective(replace(blocks, activations=swapped(v, 1, point)), targets, PENALTIES)

    found = hidden_activation(*blocks.preactivations, blocks.weights[1], blocks.biases[1], PENALTIES)
    assert torch.allclose(found, minimiser(cost, v[1]), rtol=1e-6, atol=1e-7)


def test_hidden_preactivation_is_the_better_of_both_sides():
    """Not convex, but entry by entry one-dimensional: no point of a fine grid is better, and both sides are met."""
    torch.manual_seed(0)
    v, affine, present = (2 * torch.randn(40, dtype=torch.float64) for _ in range(3))
    found = hidden_preactivation(v, affine, present, PENALTIES)

    def cost(u: Tensor) -> Tensor:
        near = PENALTIES.rho * (u - affine) ** 2 + PENALTIES.alpha * (u - present) ** 2
        return PENALTIES.gamma * (v - u.relu()) ** 2 + near

    grid = torch.linspace(-10, 10, 20001, dtype=torch.float64)[:, None]
    best, where = cost(grid).min(0)
    assert (cost(found) <= best + 1e-12).all()
    assert torch.allclose(found, grid[where, 0], atol=1e-3)
    assert (found < 0).any()
    assert (found > 0).any()


@pytest.mark.parametrize("bias", [True, False])
def test_weights_and_biases_are_joint_minimisers(bias):
    blocks, targets = wandering_blocks()
    w, b = blocks.weights[0], blocks.biases[0]
    if not bias:
        blocks, b = replace(blocks, biases=(None, blocks.biases[1])), None
    start = w if b is None else torch.cat([w, b[:, None]], 1)

    def cost(point: Tensor) -> Tensor:
        biases = (None if b is None else point[:, -1], blocks.biases[1])
        moved = replace(blocks, weights=(point[:, :4], blocks.weights[1]), biases=biases)
        return bcd_objective(moved, targets, PENALTIES) + proximal(point, start)

    weight, found_bias = affine_map(blocks.preactivations[0], blocks.activations[0], w, b, PENALTIES)
    expected = minimiser(cost, start)
    assert torch.allclose(weight, expected[:, :4], rtol=1e-6, atol=1e-7)
    assert found_bias is None if b is None else torch.allclose(found_bias, expected[:, -1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("penalties", [Penalties(), PENALTIES, Penalties(gamma=10.0, rho=0.01, alpha=1e-3)])
def test_the_objective_never_rises_over_a_sweep(penalties):
    blocks, targets = wandering_blocks(n=30)
    values = [bcd_objective(blocks, targets, penalties).item()]
    for _ in range(25):
        blocks = bcd_sweep(blocks, targets, penalties)
        values.append(bcd_objective(blocks, targets, penalties).item())
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(values))
    assert values[-1] < 0.5 * values[0]


def test_a_sweep_visits_the_blocks_top_down_each_with_the_newest_others():
    blocks, targets = wandering_blocks()
    (w1, w2), (b1, b2), (u1, u2), (v0, v1, v2) = (
        blocks.weights,
        blocks.biases,
        blocks.preactivations,
        blocks.activations,
    )
    v2 = output_activation(targets, u2, v2, PENALTIES)
    u2 = output_preactivation(v2, F.linear(v1, w2, b2), PENALTIES)
    w2, b2 = affine_map(u2, v1, w2, b2, PENALTIES)
    v1 = hidden_activation(u1, u2, w2, b2, PENALTIES)
    u1 = hidden_preactivation(v1, F.linear(v0, w1, b1), u1, PENALTIES)
    w1, b1 = affine_map(u1, v0, w1, b1, PENALTIES)
    after = bcd_sweep(blocks, targets, PENALTIES)
    expected = (w1, w2, b1, b2, u1, u2, v0, v1, v2)
    found = (*after.weights, *after.biases, *after.preactivations, *after.activations)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_is_known_already_changes_no_update():
    """The present V W^T + b, and the inner products of the input, given or computed."""
    blocks, targets = wandering_blocks()
    w, b, u, v = blocks.weights[0], blocks.biases[0], blocks.preactivations[0], blocks.activations[0]
    known = affine_map(u, v, w, b, PENALTIES, affine=F.linear(v, w, b), products=input_products(blocks))
    assert all(torch.equal(p, q) for p, q in zip(known, affine_map(u, v, w, b, PENALTIES), strict=True))
    swept = bcd_sweep(blocks, targets, PENALTIES, products=input_products(blocks))
    assert all(
        torch.equal(p, q) for p, q in zip(swept.weights, bcd_sweep(blocks, targets, PENALTIES).weights, strict=True)
    )
