"""Lifted networks: non-negative least squares against scipy, ridge regression against numpy, sweeps that descend."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lifted_cases import (
    batch,
    curves_up,
    is_minimum,
    lifted_of,
    off_optimum,
    output_loss,
    perceptron,
    total,
    trainer_of,
    wandering,
)
from scipy.optimize import nnls
from torch import Tensor

from modulewise.errors import MethodError
from modulewise.method import Family, Locality, Reach
from modulewise.methods import LiftedNetwork
from modulewise.methods.auxiliary.fenchel_lifted_updates import fenchel_bound
from modulewise.methods.auxiliary.lifted_chain import OutputLoss, lifted_forward
from modulewise.methods.auxiliary.lifted_network_updates import (
    LeastSquaresBlocks,
    lifted_penalty,
    nonnegative_least_squares,
)

numbers = st.floats(-1e3, 1e3)
BLOCKS = LeastSquaresBlocks(penalty=0.7, decay=0.05, proximal=0.4, sweeps=1, passes=3)
EXACT = replace(BLOCKS, passes=300)
LOSSES = pytest.mark.parametrize("cross_entropy", [False, True], ids=["squared", "cross entropy"])


def double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@settings(max_examples=200, deadline=None, database=None)
@given(st.floats(0, 1e3), numbers)
def test_the_penalty_is_the_fenchel_bound_and_what_no_activation_can_change(x, z):
    """1/2 (x - z)^2 = B(x, z) + 1/2 min(z, 0)^2: least at relu(z) over x >= 0, but not zero there."""
    floor = min(z, 0.0) ** 2 / 2
    penalty = lifted_penalty(double(x), double(z)).item()
    assert penalty == pytest.approx(fenchel_bound(double(x), double(z)).item() + floor, rel=1e-12, abs=1e-12)
    assert penalty >= floor * (1 - 1e-12)
    assert lifted_penalty(double(max(z, 0.0)), double(z)).item() == pytest.approx(floor, rel=1e-15)


@pytest.mark.parametrize(("rows", "columns"), [(9, 5), (5, 5), (5, 12)])
def test_coordinate_descent_is_scipys_nnls(rows, columns):
    """argmin_{x >= 0} ||A x - b||^2 + 0.3 ||x||^2, sample by sample; some coordinates at 0, some above."""
    generator = torch.Generator().manual_seed(rows + columns)
    a = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    b = torch.randn(7, rows, generator=generator, dtype=torch.float64)
    start = torch.randn(7, columns, generator=generator, dtype=torch.float64).relu()
    quadratic = a.T @ a + 0.3 * torch.eye(columns, dtype=torch.float64)
    found = nonnegative_least_squares(quadratic, b @ a, start=start, passes=2000)
    stacked = np.vstack([a.numpy(), 0.3**0.5 * np.eye(columns)])
    for sample in range(7):
        expected, _ = nnls(stacked, np.concatenate([b[sample].numpy(), np.zeros(columns)]))
        assert np.abs(found[sample].numpy() - expected).max() <= 1e-10 * expected.max()
    assert (found == 0).any()
    assert (found > 0).any()


def test_a_pass_is_the_minimum_over_one_coordinate_after_another():
    quadratic, linear = torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([[1.0, -4.0], [4.0, 4.0]])
    found = nonnegative_least_squares(quadratic, linear, start=torch.ones(2, 2), passes=1)
    # x_1 = max(0, (c_1 - x_2)/2) with x_2 = 1, then x_2 = max(0, (c_2 - x_1)/3).
    assert torch.allclose(found, torch.tensor([[0.0, 0.0], [1.5, 2.5 / 3]]))


def test_a_pass_never_raises_the_objective():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    quadratic = a.T @ a + 0.01 * torch.eye(8, dtype=torch.float64)
    c, x = (torch.randn(5, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    x = x.relu()
    costs = []
    for _ in range(30):
        costs.append(((x @ quadratic * x).sum() / 2 - (c * x).sum()).item())
        x = nonnegative_least_squares(quadratic, c, start=x, passes=1)
    assert all(after <= before + 1e-12 * abs(before) for before, after in pairwise(costs))


@LOSSES
def test_the_objective_is_the_loop(cross_entropy):
    lifted, loss = wandering(), output_loss(cross_entropy=cross_entropy)
    expected = [0.05 / 2 * sum(w * w for row in m[:, :-1].tolist() for w in row) for m in lifted.maps]
    for n in range(6):
        for layer in range(3):
            below = [*lifted.activations[layer][n].tolist(), 1.0]
            z = [sum(a * b for a, b in zip(below, row, strict=True)) for row in lifted.maps[layer].tolist()]
            if layer < 2:
                above = lifted.activations[layer + 1][n].tolist()
                expected[layer] += 0.7 / 12 * sum((x - u) ** 2 for x, u in zip(above, z, strict=True))
            elif cross_entropy:
                expected[layer] += (np.log(sum(np.exp(z))) - z[n % 3]) / 6
            else:
                expected[layer] += sum((a - (c == n % 3)) ** 2 for c, a in enumerate(z)) / 12
    assert BLOCKS.shares(lifted, loss).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_an_activation_block_of_squared_error_is_scipys_minimum(layer, bias):
    lifted, loss = wandering(bias=bias), output_loss(cross_entropy=False)
    cost = lambda x: EXACT.shares(lifted.with_activation(layer, x), loss).sum()  # noqa: E731
    is_minimum(cost, EXACT.activation(layer, lifted, loss), lifted.activations[layer], nonnegative=True)


@pytest.mark.parametrize("layer", [1, 2])
def test_an_activation_block_is_scipys_nnls_of_both_residuals(layer):
    """One sample at a time: the rows sqrt(penalty) I and sqrt(curvature) W, and their right-hand sides."""
    lifted, loss = wandering(), output_loss(cross_entropy=False)
    found = EXACT.activation(layer, lifted, loss)
    above, strength = (lifted.activations[2], 0.7) if layer == 1 else (loss.targets, 1.0)
    weight, bias = lifted.maps[layer][:, :-1].numpy(), lifted.maps[layer][:, -1].numpy()
    z = lifted.preactivation(layer).numpy()
    for n in range(6):
        rows = np.vstack([0.7**0.5 * np.eye(weight.shape[1]), strength**0.5 * weight])
        right = np.concatenate([0.7**0.5 * z[n], strength**0.5 * (above[n].numpy() - bias)])
        expected, _ = nnls(rows, right)
        assert np.abs(found[n].numpy() - expected).max() <= 1e-10 * max(expected.max(), 1.0)


@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("n", [3, 12])  # fewer and more samples than columns
@pytest.mark.parametrize("bias", [True, False])
def test_a_weight_block_of_squared_error_is_numpys_least_squares(layer, n, bias):
    """The rows of the samples, of the decay (not of the bias) and of the distance to the present weights."""
    lifted, loss = wandering(n, bias=bias), output_loss(n, cross_entropy=False)
    x, present = lifted.activations[layer - 1].numpy(), lifted.maps[layer - 1].numpy()
    target, strength = (lifted.activations[layer], 0.7) if layer < 3 else (loss.targets, 1.0)
    rows = np.hstack([x, np.ones((n, 1))]) if bias else x
    decay = np.diag([0.05**0.5] * x.shape[1] + [0.0] * bias)
    near = 0.4**0.5 * np.eye(rows.shape[1])
    stacked = np.vstack([(strength / n) ** 0.5 * rows, decay, near])
    right = np.vstack([(strength / n) ** 0.5 * target.numpy(), np.zeros_like(present).T, 0.4**0.5 * present.T])
    expected = np.linalg.lstsq(stacked, right, rcond=None)[0].T
    assert np.abs(EXACT.map(layer, lifted, loss).numpy() - expected).max() <= 1e-10 * np.abs(expected).max()


def test_blocks_at_the_cross_entropy_go_down_a_parabola_above_it_to_its_minimum():
    """Repeated, they end at scipy's minimum of the cross entropy itself."""
    lifted, loss = wandering(), output_loss(cross_entropy=True)
    cost = lambda x: EXACT.shares(lifted.with_activation(2, x), loss).sum()  # noqa: E731
    now, values = lifted, []
    for _ in range(300):
        values.append(cost(now.activations[2]).item())
        now = now.with_activation(2, BLOCKS.activation(2, now, loss))
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(values))
    is_minimum(cost, now.activations[2], lifted.activations[2], nonnegative=True)
    plain = lambda m: EXACT.shares(lifted.with_map(3, m), loss).sum()  # noqa: E731
    now, values = lifted, []
    for _ in range(400):
        values.append(plain(now.maps[2]).item())
        now = now.with_map(3, replace(BLOCKS, proximal=1e-6).map(3, now, loss))
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(values))
    assert off_optimum(plain, now.maps[2], nonnegative=False) < 1e-9


def test_the_cross_entropy_lies_below_its_parabola_and_touches_it():
    generator = torch.Generator().manual_seed(0)
    loss = output_loss(200, cross_entropy=True)
    z, other = (3 * torch.randn(200, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    target = loss.working_target(z)
    parabola = loss.value(z) + loss.curvature / 2 * ((other - target).square() - (z - target).square()).sum(1)
    assert (loss.value(other) <= parabola + 1e-12).all()
    leaf = z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss.value(leaf).sum(), leaf)
    assert torch.allclose(loss.curvature * (z - target), slope, rtol=1e-12, atol=1e-14)
    assert torch.equal(output_loss(200, cross_entropy=False).working_target(z), z - (z - loss.targets))


@LOSSES
def test_every_block_is_convex(cross_entropy):
    lifted, other, loss = wandering(), wandering(seed=12), output_loss(cross_entropy=cross_entropy)
    for layer in (1, 2, 3):
        along = other.maps[layer - 1]
        assert curves_up(
            lambda m, k=layer: BLOCKS.shares(lifted.with_map(k, m), loss).sum(), lifted.maps[layer - 1], along
        )
    for layer in (1, 2):
        x, along = lifted.activations[layer], other.activations[layer]
        assert curves_up(lambda v, k=layer: BLOCKS.shares(lifted.with_activation(k, v), loss).sum(), x, along)


@LOSSES
@pytest.mark.parametrize("penalty", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_objective_never_rises_over_a_sweep(penalty, decay, cross_entropy):
    blocks = replace(BLOCKS, penalty=penalty, decay=decay, proximal=0.05)
    lifted, loss = wandering(20), output_loss(20, cross_entropy=cross_entropy)
    values = [total(blocks, lifted, loss)]
    for _ in range(25):
        lifted = blocks.learn(lifted, loss)
        values.append(total(blocks, lifted, loss))
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(values))
    assert values[-1] < 0.7 * values[0]


def test_a_sweep_takes_activations_top_down_and_then_every_layers_weights():
    lifted, loss = wandering(), output_loss(cross_entropy=False)
    expected = lifted.with_activation(2, BLOCKS.activation(2, lifted, loss))
    expected = expected.with_activation(1, BLOCKS.activation(1, expected, loss))
    maps = tuple(BLOCKS.map(layer, expected, loss) for layer in (1, 2, 3))
    found = BLOCKS.learn(lifted, loss)
    assert all(torch.equal(a, b) for a, b in zip(found.activations, expected.activations, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(found.maps, maps, strict=True))
    twice, again = replace(BLOCKS, sweeps=2).learn(lifted, loss), BLOCKS.learn(found, loss)
    assert all(torch.equal(a, b) for a, b in zip(twice.maps, again.maps, strict=True))


def test_a_forward_pass_without_an_error_is_no_fixed_point():
    """What the Fenchel bound was made for: units that are off still pull, here their weights."""
    forward = lifted_forward(wandering())
    loss = OutputLoss(forward.preactivation(3), cross_entropy=False)
    still = replace(BLOCKS, decay=0.0)
    z = forward.preactivation(1)
    assert still.shares(forward, loss)[0].item() == pytest.approx(0.7 / 12 * z.clamp(max=0).square().sum().item())
    assert (still.map(1, forward, loss) - forward.maps[0]).abs().max() > 0.01
    assert torch.allclose(still.map(3, forward, loss), forward.maps[2], rtol=0, atol=1e-14)


@LOSSES
def test_a_step_writes_what_a_sweep_gives_into_the_model_and_parts_share_the_objective(cross_entropy):
    model, (x, y) = perceptron(), batch()
    lifted, loss = lifted_forward(lifted_of(model, x)), OutputLoss(F.one_hot(y, 3).double(), cross_entropy)
    method = LiftedNetwork(penalty=0.7, decay=0.05, proximal=0.4, cross_entropy=cross_entropy)
    shares = trainer_of(model, method, x).step(x, y)
    expected = BLOCKS.learn(lifted, loss)
    for index, map_ in zip((1, 3, 5), expected.maps, strict=True):
        assert torch.equal(model[index].weight, map_[:, :-1])
        assert torch.equal(model[index].bias, map_[:, -1])
    assert [shares[part].item() for part in range(3)] == BLOCKS.shares(expected, loss).tolist()


@pytest.mark.parametrize("name", ["penalty", "proximal"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_that_are_not_above_zero_are_refused(name, value):
    with pytest.raises(MethodError, match=f"{name}=.* was given to LiftedNetwork"):
        LiftedNetwork(**{name: value})


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_decay_below_zero_is_refused(value):
    with pytest.raises(MethodError, match=r"decay=.* was given to LiftedNetwork"):
        LiftedNetwork(decay=value)


@pytest.mark.parametrize("name", ["sweeps", "passes"])
def test_no_steps_are_refused(name):
    with pytest.raises(MethodError, match=f"{name}=0 was given to LiftedNetwork"):
        LiftedNetwork(**{name: 0})


def test_family_and_locality():
    assert LiftedNetwork().family is Family.AUXILIARY
    assert LiftedNetwork().locality == Locality(Reach.TARGETS)
