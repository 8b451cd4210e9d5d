"""Fenchel lifted networks: the bound, every block against scipy, sweeps that never rise, and the limit of stiffness."""

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
    output_loss,
    perceptron,
    total,
    trainer_of,
    wandering,
)
from torch import Tensor

from modulewise.errors import MethodError
from modulewise.method import Family, Locality, Reach
from modulewise.methods import FenchelLifted
from modulewise.methods.auxiliary.fenchel_lifted_updates import FenchelBlocks, fenchel_bound
from modulewise.methods.auxiliary.lifted_chain import OutputLoss, lifted_forward

numbers = st.floats(-1e3, 1e3)
BLOCKS = FenchelBlocks(penalty=0.7, proximal=0.4, sweeps=1, activation_steps=10, weight_steps=3)
EXACT = replace(BLOCKS, activation_steps=400, weight_steps=400)
LOSSES = pytest.mark.parametrize("cross_entropy", [False, True], ids=["squared", "cross entropy"])


def double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@settings(max_examples=200, deadline=None, database=None)
@given(st.floats(0, 1e3), numbers)
def test_the_bound_is_never_negative_is_the_formula_and_is_zero_at_relu_alone(v, u):
    bound = fenchel_bound(double(v), double(u)).item()
    literal = v * v / 2 + max(u, 0.0) ** 2 / 2 - u * v
    assert bound >= 0
    assert bound == pytest.approx(literal, rel=1e-12, abs=1e-9)
    assert fenchel_bound(double(max(u, 0.0)), double(u)) == 0
    if abs(v - max(u, 0.0)) > 1e-9:
        assert bound > 0


def test_the_bound_is_fenchels_inequality():
    """1/2 max(u, 0)^2 is the conjugate of 1/2 v^2 over v >= 0: the supremum of u v - 1/2 v^2, found on a grid."""
    v = torch.linspace(0, 20, 200001, dtype=torch.float64)
    for u in (-3.0, -0.1, 0.0, 0.5, 7.25):
        assert (u * v - v.square() / 2).max().item() == pytest.approx(max(u, 0.0) ** 2 / 2, abs=1e-8)


@LOSSES
def test_the_objective_is_the_loop(cross_entropy):
    lifted, loss = wandering(), output_loss(cross_entropy=cross_entropy)
    expected = [0.0, 0.0, 0.0]
    for n in range(6):
        for layer in range(3):
            below = lifted.activations[layer][n].tolist()
            z = [sum(a * b for a, b in zip([*below, 1.0], row, strict=True)) for row in lifted.maps[layer].tolist()]
            if layer < 2:
                x = lifted.activations[layer + 1][n].tolist()
                terms = [v * v / 2 + max(u, 0.0) ** 2 / 2 - u * v for u, v in zip(z, x, strict=True)]
                expected[layer] += 0.7 * sum(terms) / 6
            elif cross_entropy:
                expected[layer] += F.cross_entropy(torch.tensor([z]).double(), torch.tensor([n % 3])).item() / 6
            else:
                expected[layer] += sum((a - (c == n % 3)) ** 2 for c, a in enumerate(z)) / 12
    # F.cross_entropy was given numbers that have been rounded to float32 and back.
    assert BLOCKS.shares(lifted, loss).tolist() == pytest.approx(expected, rel=1e-6 if cross_entropy else 1e-12)


@LOSSES
@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_an_activation_block_is_scipys_minimum(layer, bias, cross_entropy):
    lifted, loss = wandering(bias=bias), output_loss(cross_entropy=cross_entropy)
    cost = lambda x: EXACT.shares(lifted.with_activation(layer, x), loss).sum()  # noqa: E731
    is_minimum(cost, EXACT.activation(layer, lifted, loss), lifted.activations[layer], nonnegative=True)


@LOSSES
@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("n", [3, 12])  # fewer and more samples than columns
def test_a_weight_block_is_scipys_minimum(layer, n, cross_entropy):
    lifted, loss = wandering(n), output_loss(n, cross_entropy=cross_entropy)
    present = lifted.maps[layer - 1]

    def cost(point: Tensor) -> Tensor:
        return EXACT.shares(lifted.with_map(layer, point), loss).sum() + 0.4 / 2 * (point - present).square().sum()

    is_minimum(cost, EXACT.map(layer, lifted, loss), present, nonnegative=False)


@LOSSES
@pytest.mark.parametrize("seed", [3, 4, 5])
def test_every_block_is_convex(seed, cross_entropy):
    lifted, loss = wandering(seed=seed), output_loss(cross_entropy=cross_entropy)
    other = wandering(seed=seed + 10)
    for layer in (1, 2, 3):
        along = other.maps[layer - 1]
        assert curves_up(
            lambda m, k=layer: BLOCKS.shares(lifted.with_map(k, m), loss).sum(), lifted.maps[layer - 1], along
        )
    for layer in (1, 2):
        # Over x >= 0 alone: the bound is one there.
        inside, along = lifted.activations[layer] + 4, other.activations[layer].clamp(max=2)
        assert curves_up(lambda x, k=layer: BLOCKS.shares(lifted.with_activation(k, x), loss).sum(), inside, along)


@LOSSES
@pytest.mark.parametrize("penalty", [0.01, 1.0, 100.0])
def test_the_objective_never_rises_over_a_sweep(penalty, cross_entropy):
    blocks = replace(BLOCKS, penalty=penalty, proximal=0.05)
    lifted, loss = wandering(20), output_loss(20, cross_entropy=cross_entropy)
    values = [total(blocks, lifted, loss)]
    for _ in range(25):
        lifted = blocks.learn(lifted, loss)
        values.append(total(blocks, lifted, loss))
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(values))
    assert values[-1] < 0.5 * values[0]


def test_sweeps_end_where_no_block_can_move():
    blocks = replace(BLOCKS, sweeps=150, activation_steps=5, weight_steps=2, proximal=1e-2, penalty=1.0)
    loss = output_loss(cross_entropy=False)
    lifted = blocks.learn(wandering(), loss)
    for layer in (1, 2):
        x = lifted.activations[layer].clone().requires_grad_()
        (slope,) = torch.autograd.grad(blocks.shares(lifted.with_activation(layer, x), loss).sum(), x)
        assert torch.minimum(x.detach(), slope).abs().max() < 1e-4
    for layer in (1, 2, 3):
        m = lifted.maps[layer - 1].clone().requires_grad_()
        (slope,) = torch.autograd.grad(blocks.shares(lifted.with_map(layer, m), loss).sum(), m)
        assert slope.abs().max() < 1e-4


def test_a_sweep_takes_activations_top_down_and_then_every_layers_weights():
    lifted, loss = wandering(), output_loss(cross_entropy=True)
    expected = lifted.with_activation(2, BLOCKS.activation(2, lifted, loss))
    expected = expected.with_activation(1, BLOCKS.activation(1, expected, loss))
    maps = tuple(BLOCKS.map(layer, expected, loss) for layer in (1, 2, 3))
    found = BLOCKS.learn(lifted, loss)
    assert all(torch.equal(a, b) for a, b in zip(found.activations, expected.activations, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(found.maps, maps, strict=True))
    twice = replace(BLOCKS, sweeps=2).learn(lifted, loss)
    again = BLOCKS.learn(found, loss)
    assert all(torch.equal(a, b) for a, b in zip(twice.maps, again.maps, strict=True))


def test_at_a_forward_pass_bounds_are_zero_and_without_an_error_nothing_moves():
    forward = lifted_forward(wandering())
    loss = OutputLoss(forward.preactivation(3), cross_entropy=False)
    assert BLOCKS.shares(forward, loss).tolist() == [0.0, 0.0, 0.0]
    after = BLOCKS.learn(forward, loss)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-15) for a, b in zip(after.maps, forward.maps, strict=True))
    assert all(
        torch.allclose(a, b, rtol=0, atol=1e-14) for a, b in zip(after.activations, forward.activations, strict=True)
    )


def test_a_sample_has_activations_of_its_own():
    lifted, loss = lifted_forward(wandering()), output_loss(cross_entropy=True)
    whole = BLOCKS.activation(2, lifted, loss)
    alone = replace(lifted, activations=tuple(x[2:3] for x in lifted.activations))
    single = BLOCKS.activation(2, alone, OutputLoss(loss.targets[2:3], cross_entropy=True))
    assert torch.allclose(whole[2:3], single, rtol=1e-10, atol=1e-12)
    assert (whole - lifted.activations[2]).abs().max() > 0.01


@LOSSES
def test_with_one_hidden_layer_a_stiff_penalty_gives_end_to_end_gradient_descent(cross_entropy):
    """proximal times the change of the weights tends to minus the gradient of the loss, as 1/penalty tends to 0.

    With more layers it does not: X_l gives way to X_{l+1} as much as to Z_l, their penalties being equal.
    """

    def gap(penalty: float, widths: tuple[int, ...]) -> float:
        method = FenchelLifted(
            penalty=penalty, proximal=1e5 * penalty, activation_steps=50, weight_steps=1, cross_entropy=cross_entropy
        )
        return gap_to_descent(method, rate=1e-5 / penalty, widths=widths, cross_entropy=cross_entropy)

    assert gap(1e2, (5,)) < 0.01
    assert gap(1e3, (5,)) < 0.12 * gap(1e2, (5,))
    assert gap(1e3, (5, 4)) > 0.01


@LOSSES
def test_a_step_writes_what_a_sweep_gives_into_the_model_and_parts_share_the_objective(cross_entropy):
    model, (x, y) = perceptron(), batch()
    lifted, loss = lifted_forward(lifted_of(model, x)), OutputLoss(F.one_hot(y, 3).double(), cross_entropy)
    trainer = trainer_of(model, FenchelLifted(penalty=0.7, proximal=0.4, cross_entropy=cross_entropy), x)
    shares = trainer.step(x, y)
    expected = BLOCKS.learn(lifted, loss)
    for index, map_ in zip((1, 3, 5), expected.maps, strict=True):
        assert torch.equal(model[index].weight, map_[:, :-1])
        assert torch.equal(model[index].bias, map_[:, -1])
    assert [shares[part] for part in range(3)] == BLOCKS.shares(expected, loss).tolist()
    assert min(shares.values()) > 0


@pytest.mark.parametrize("name", ["penalty", "proximal"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_that_are_not_above_zero_are_refused(name, value):
    with pytest.raises(MethodError, match=f"{name}=.* was given to FenchelLifted"):
        FenchelLifted(**{name: value})


@pytest.mark.parametrize("name", ["sweeps", "activation_steps", "weight_steps"])
def test_no_steps_are_refused(name):
    with pytest.raises(MethodError, match=f"{name}=0 was given to FenchelLifted"):
        FenchelLifted(**{name: 0})


def test_family_and_locality():
    assert FenchelLifted().family is Family.AUXILIARY
    assert FenchelLifted().locality == Locality(Reach.TARGETS)
