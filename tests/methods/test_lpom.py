"""Lifted proximal operator machines: penalties, fixed points against scipy, stationarity of the forward pass."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lifted_cases import (
    batch,
    curves_up,
    gap_to_descent,
    is_minimum,
    lifted_of,
    off_optimum,
    output_loss,
    perceptron,
    total,
    trainer_of,
    wandering,
)
from scipy.integrate import quad
from torch import Tensor

from modulewise.errors import MethodError
from modulewise.method import Family, Locality, Reach
from modulewise.methods import LPOM
from modulewise.methods.auxiliary.fenchel_lifted_updates import FenchelBlocks, fenchel_bound
from modulewise.methods.auxiliary.lifted_chain import Lifted, OutputLoss, affine, lifted_forward
from modulewise.methods.auxiliary.lpom_updates import ProximalBlocks, damped_fixed_point, lpom_penalty

numbers = st.floats(-1e3, 1e3)
BLOCKS = ProximalBlocks(mu=3.0, ratio=0.6, proximal=0.4, sweeps=1, activation_steps=10, weight_steps=3)
EXACT = replace(BLOCKS, activation_steps=4000, weight_steps=400)
LOSSES = pytest.mark.parametrize("cross_entropy", [False, True], ids=["squared", "cross entropy"])


def double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("x", [0.0, 0.3, 2.5])
@pytest.mark.parametrize("z", [-3.0, -0.2, 0.0, 1.7])
def test_the_penalty_is_the_integrals_of_the_paper(x, z):
    """phi^{-1}(y) = y for y > 0, so that f(x) = 0 on x >= 0; g by numerical integration of relu(y) - y."""
    g, _ = quad(lambda y: max(y, 0.0) - y, 0, z)
    assert lpom_penalty(double(x), double(z)).item() == pytest.approx(g + (x - z) ** 2 / 2, rel=1e-12, abs=1e-14)


@settings(max_examples=200, deadline=None, database=None)
@given(st.floats(0, 1e3), numbers)
def test_the_penalty_of_relu_is_the_bound_of_fenchel_lifted_networks(x, z):
    """f + g + 1/2 (x - z)^2 = 1/2 x^2 + 1/2 max(z, 0)^2 - x z: never negative, and zero at relu(z) alone."""
    penalty, bound = lpom_penalty(double(x), double(z)).item(), fenchel_bound(double(x), double(z)).item()
    assert penalty == pytest.approx(bound, rel=1e-10, abs=1e-9)
    assert penalty >= -1e-9
    assert lpom_penalty(double(max(z, 0.0)), double(z)) == 0


@LOSSES
def test_with_the_output_at_its_pre_activation_the_objective_is_that_of_fenchel_lifted_networks(cross_entropy):
    lifted, loss = wandering(), output_loss(cross_entropy=cross_entropy)
    ours = replace(lifted, activations=(*lifted.activations, lifted.preactivation(3)))
    fenchel = FenchelBlocks(penalty=3.0, proximal=1.0, sweeps=1, activation_steps=1, weight_steps=1)
    first = replace(BLOCKS, ratio=1.0).shares(ours, loss)
    assert torch.allclose(first, fenchel.shares(lifted, loss), rtol=1e-12, atol=1e-14)


def test_the_fixed_point_below_a_hidden_layer_is_the_minimum_that_fenchel_lifted_networks_find():
    """Layer 1, where both see the same terms: two algorithms, one point."""
    lifted, loss = wandering(), output_loss(cross_entropy=False)
    ours = replace(lifted, activations=(*lifted.activations, lifted.preactivation(3)))
    fenchel = FenchelBlocks(penalty=3.0, proximal=1.0, sweeps=1, activation_steps=400, weight_steps=1)
    found = replace(EXACT, ratio=1.0).activation(1, ours, loss)
    assert torch.allclose(found, fenchel.activation(1, lifted, loss), rtol=1e-9, atol=1e-10)
    early = replace(BLOCKS, ratio=1.0).activation(1, ours, loss)
    assert not torch.allclose(early, replace(fenchel, activation_steps=10).activation(1, lifted, loss), rtol=1e-4)


@LOSSES
def test_the_objective_is_the_loop(cross_entropy):
    lifted, loss = wandering(output=True), output_loss(cross_entropy=cross_entropy)
    mus = [3.0 / 0.6**2, 3.0 / 0.6, 3.0]
    expected = [0.0, 0.0, 0.0]
    for n in range(6):
        for layer in range(3):
            below = [*lifted.activations[layer][n].tolist(), 1.0]
            above = lifted.activations[layer + 1][n].tolist()
            for x, row in zip(above, lifted.maps[layer].tolist(), strict=True):
                z = sum(a * b for a, b in zip(below, row, strict=True))
                g = -(min(z, 0.0) ** 2) / 2 if layer < 2 else 0.0
                expected[layer] += mus[layer] / 6 * (g + (x - z) ** 2 / 2)
        out = lifted.activations[3][n]
        if cross_entropy:
            expected[2] += (out.exp().sum().log() - out[n % 3]).item() / 6
        else:
            expected[2] += sum((a - (c == n % 3)) ** 2 for c, a in enumerate(out.tolist())) / 12
    assert BLOCKS.shares(lifted, loss).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("steps", [1, 4])
def test_where_the_iteration_contracts_it_is_the_one_of_the_paper(steps):
    """X_1 <- relu(Z_1 - mu_2/mu_1 (relu(Z_2) - X_2) W_2), sample by sample, from the present X_1."""
    lifted, loss = wandering(output=True), output_loss(cross_entropy=False)
    small = lifted.with_map(2, 0.2 * lifted.maps[1])
    weight, bias = small.maps[1][:, :-1], small.maps[1][:, -1]
    assert 0.6 * torch.linalg.matrix_norm(weight, 2) ** 2 < 0.8
    found = replace(BLOCKS, activation_steps=steps).activation(1, small, loss)
    z = small.preactivation(1)
    for n in range(6):
        x = small.activations[1][n]
        for _ in range(steps):
            x = (z[n] - 0.6 * weight.T @ ((weight @ x + bias).relu() - small.activations[2][n])).relu()
        assert torch.allclose(found[n], x, rtol=1e-12, atol=1e-13)


def test_below_the_output_phi_of_the_layer_above_is_the_identity():
    lifted, loss = wandering(output=True), output_loss(cross_entropy=False)
    small = lifted.with_map(3, 0.1 * lifted.maps[2])
    weight, bias = small.maps[2][:, :-1], small.maps[2][:, -1]
    expected = small.preactivation(2) - 0.6 * (small.activations[2] @ weight.T + bias - small.activations[3]) @ weight
    found = replace(BLOCKS, activation_steps=1).activation(2, small, loss)
    assert torch.allclose(found, expected.relu(), rtol=1e-12, atol=1e-14)


def test_the_output_of_squared_error_is_a_weighted_mean():
    """X_L = (Y + mu Z_L)/(1 + mu) is where X <- Z - (X - Y)/mu stays."""
    lifted, loss = wandering(output=True), output_loss(cross_entropy=False)
    expected = (loss.targets + 3 * lifted.preactivation(3)) / 4
    assert torch.allclose(EXACT.activation(3, lifted, loss), expected, rtol=1e-12)
    once = replace(BLOCKS, activation_steps=1).activation(3, lifted, loss)
    literal = lifted.preactivation(3) - (lifted.activations[3] - loss.targets) / 3
    assert torch.allclose(once, literal, rtol=1e-13)


@LOSSES
@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("mu", [0.2, 3.0])
def test_the_fixed_point_of_an_activation_block_is_scipys_minimum(layer, mu, cross_entropy):
    """Also where the undamped iteration does not contract."""
    blocks = replace(EXACT, mu=mu)
    lifted, loss = wandering(output=True), output_loss(cross_entropy=cross_entropy)
    cost = lambda x: blocks.shares(lifted.with_activation(layer, x), loss).sum()  # noqa: E731
    is_minimum(cost, blocks.activation(layer, lifted, loss), lifted.activations[layer], nonnegative=layer < 3)


@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("n", [3, 12])
def test_a_weight_block_is_scipys_minimum(layer, n):
    lifted, loss = wandering(n, output=True), output_loss(n, cross_entropy=False)
    present = lifted.maps[layer - 1]

    def cost(point: Tensor) -> Tensor:
        return EXACT.shares(lifted.with_map(layer, point), loss).sum() + 0.4 / 2 * (point - present).square().sum()

    is_minimum(cost, EXACT.map(layer, lifted), present, nonnegative=False)


def test_damping_is_what_keeps_the_iteration_from_running_away():
    """x = relu(z - 4 x), z = 1: the plain iteration jumps between 0 and 1 for ever, the damped one finds 1/5."""
    settings = {"pull": lambda p: 4 * p, "z": torch.ones(1, 1).double(), "phi": torch.relu}
    start = torch.zeros(1, 1).double()
    found = damped_fixed_point(start, slope=torch.tensor(4.0).double(), steps=60, **settings)
    assert found.item() == pytest.approx(0.2, rel=1e-12)
    plain = [damped_fixed_point(start, slope=torch.tensor(0.5), steps=k, **settings).item() for k in (59, 60)]
    assert plain == [1.0, 0.0]


@LOSSES
def test_every_block_is_convex(cross_entropy):
    lifted, loss = wandering(output=True), output_loss(cross_entropy=cross_entropy)
    other = wandering(output=True, seed=12)
    for layer in (1, 2, 3):
        along = other.maps[layer - 1]
        assert curves_up(
            lambda m, k=layer: BLOCKS.shares(lifted.with_map(k, m), loss).sum(), lifted.maps[layer - 1], along
        )
        inside, along = lifted.activations[layer] + 4, other.activations[layer].clamp(-2, 2)
        assert curves_up(lambda x, k=layer: BLOCKS.shares(lifted.with_activation(k, x), loss).sum(), inside, along)


@LOSSES
@pytest.mark.parametrize(("mu", "ratio"), [(0.05, 1.0), (3.0, 0.6), (3.0, 5.0), (100.0, 1.0)])
def test_the_objective_never_rises_over_a_sweep(mu, ratio, cross_entropy):
    blocks = replace(BLOCKS, mu=mu, ratio=ratio, proximal=0.05)
    lifted, loss = wandering(20), output_loss(20, cross_entropy=cross_entropy)
    lifted = lifted_forward(lifted, output=True)
    values = [total(blocks, lifted, loss)]
    for _ in range(20):
        lifted = sweep(blocks, lifted, loss)
        values.append(total(blocks, lifted, loss))
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(values))
    assert values[-1] < 0.98 * values[0]


def sweep(blocks: ProximalBlocks, lifted: Lifted, loss: OutputLoss) -> Lifted:
    """From the output down, then all weights."""
    for layer in (3, 2, 1):
        lifted = lifted.with_activation(layer, blocks.activation(layer, lifted, loss))
    for layer in (1, 2, 3):
        lifted = lifted.with_map(layer, blocks.map(layer, lifted))
    return lifted


@LOSSES
def test_learning_is_sweeps_from_a_forward_pass(cross_entropy):
    lifted, loss = wandering(), output_loss(cross_entropy=cross_entropy)
    expected = lifted_forward(lifted, output=True)
    assert torch.equal(expected.activations[3], affine(expected.activations[2], lifted.maps[2]))
    for _ in range(2):
        expected = sweep(BLOCKS, expected, loss)
    found = replace(BLOCKS, sweeps=2).learn(lifted, loss)
    assert all(torch.equal(a, b) for a, b in zip(found.activations, expected.activations, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(found.maps, expected.maps, strict=True))


def test_at_a_forward_pass_without_an_error_every_block_is_stationary():
    forward = lifted_forward(wandering(), output=True)
    loss = OutputLoss(forward.activations[3], cross_entropy=False)
    assert BLOCKS.shares(forward, loss).abs().max() < 1e-15
    for layer in (1, 2, 3):
        of_map = lambda m, k=layer: BLOCKS.shares(forward.with_map(k, m), loss).sum()  # noqa: E731
        of_x = lambda x, k=layer: BLOCKS.shares(forward.with_activation(k, x), loss).sum()  # noqa: E731
        assert off_optimum(of_map, forward.maps[layer - 1], nonnegative=False) < 1e-14
        assert off_optimum(of_x, forward.activations[layer], nonnegative=layer < 3) < 1e-14
        assert torch.allclose(BLOCKS.activation(layer, forward, loss), forward.activations[layer], rtol=0, atol=1e-14)
        assert torch.allclose(BLOCKS.map(layer, forward), forward.maps[layer - 1], rtol=0, atol=1e-14)
    # With an error the output is the only block that is not: the rest learns of it from above.
    wrong = OutputLoss(forward.activations[3] + 1, cross_entropy=False)
    assert (BLOCKS.activation(3, forward, wrong) - forward.activations[3]).abs().min() > 0.1
    assert torch.allclose(BLOCKS.activation(2, forward, wrong), forward.activations[2], rtol=0, atol=1e-14)


@LOSSES
def test_stiff_penalties_that_soften_upwards_give_end_to_end_gradient_descent(cross_entropy):
    """proximal times the change of the weights tends to minus the gradient, as 1/mu and mu_{l+1}/mu_l tend to 0."""

    def gap(mu: float, ratio: float) -> float:
        stiff = 1e5 * mu / ratio**2
        method = LPOM(
            mu=mu, ratio=ratio, proximal=stiff, activation_steps=30, weight_steps=1, cross_entropy=cross_entropy
        )
        return gap_to_descent(method, rate=1 / stiff, widths=(5, 4), cross_entropy=cross_entropy)

    assert gap(1e3, 1e-2) < 0.01
    assert gap(1e2, 1e-1) > 5 * gap(1e3, 1e-2)
    assert gap(1e3, 1.0) > 5 * gap(1e3, 1e-2)


@LOSSES
def test_a_step_writes_what_a_sweep_gives_into_the_model_and_parts_share_the_objective(cross_entropy):
    model, (x, y) = perceptron(), batch()
    lifted, loss = lifted_of(model, x), OutputLoss(F.one_hot(y, 3).double(), cross_entropy)
    trainer = trainer_of(model, LPOM(mu=3.0, ratio=0.6, proximal=0.4, cross_entropy=cross_entropy), x)
    shares = trainer.step(x, y)
    expected = BLOCKS.learn(lifted, loss)
    for index, map_ in zip((1, 3, 5), expected.maps, strict=True):
        assert torch.equal(model[index].weight, map_[:, :-1])
        assert torch.equal(model[index].bias, map_[:, -1])
    assert [shares[part].item() for part in range(3)] == BLOCKS.shares(expected, loss).tolist()
    assert min(shares.values()) > 0


@pytest.mark.parametrize("name", ["mu", "ratio", "proximal"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_that_are_not_above_zero_are_refused(name, value):
    with pytest.raises(MethodError, match=f"{name}=.* was given to LPOM"):
        LPOM(**{name: value})


@pytest.mark.parametrize("name", ["sweeps", "activation_steps", "weight_steps"])
def test_no_steps_are_refused(name):
    with pytest.raises(MethodError, match=f"{name}=0 was given to LPOM"):
        LPOM(**{name: 0})


def test_family_locality_and_name():
    assert LPOM().family is Family.AUXILIARY
    assert LPOM().locality == Locality(Reach.TARGETS)
