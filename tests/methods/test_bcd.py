"""Block coordinate descent: every block at its minimum, an objective that never rises, and honest refusals."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor, nn

from modulewise.errors import CheckpointError, MethodError
from modulewise.method import Family, Locality, Reach, Solver
from modulewise.methods.auxiliary import BCD, bcd_objective
from modulewise.methods.auxiliary.bcd_updates import (
    Blocks,
    Penalties,
    affine_map,
    bcd_shares,
    bcd_sweep,
    hidden_activation,
    hidden_preactivation,
    initial_blocks,
    output_activation,
    output_preactivation,
)
from modulewise.methods.auxiliary.linear_chain import linear_chain

PENALTIES = Penalties(gamma=0.7, rho=1.3, alpha=0.9)


def perceptron(*, bias: bool = True, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [("flat", nn.Flatten()), ("one", nn.Linear(6, 5, bias=bias)), ("relu", nn.ReLU())]
    layers += [("two", nn.Linear(5, 4, bias=bias)), ("relu2", nn.ReLU(inplace=True)), ("three", nn.Linear(4, 3))]
    return nn.Sequential(OrderedDict(layers)).to(dtype)


def stand_in(model: nn.Module, *groups: tuple[str, ...]) -> SimpleNamespace:
    """What the solver reads of a partition."""
    names = [name for name, _ in model.named_parameters()]
    groups = groups or (tuple(names),)
    return SimpleNamespace(model=model, parts=[SimpleNamespace(parameter_names=group) for group in groups])


def bound(model: nn.Module, *groups: tuple[str, ...], method: BCD | None = None) -> Solver:
    return (method or BCD()).solver(stand_in(model, *groups), loss=F.cross_entropy, seed=0)


def batch(n: int = 12, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(n, 2, 3, dtype=dtype), torch.randint(0, 3, (n,))


def wandering_blocks(n: int = 5) -> tuple[Blocks, Tensor]:
    """Blocks off the forward pass, where every penalty is positive."""
    torch.manual_seed(2)
    sizes = (4, 3, 2)
    weights = tuple(torch.randn(o, i, dtype=torch.float64) for i, o in itertools.pairwise(sizes))
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
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(values))
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


@pytest.mark.parametrize("bias", [True, False])
def test_a_step_writes_one_sweep_into_the_models_own_parameters(bias):
    model, (x, y) = perceptron(bias=bias), batch()
    parameters = dict(model.named_parameters())
    layers = [layer for _, layer in linear_chain(model)]
    weights = tuple(layer.weight.detach().clone() for layer in layers)
    biases = tuple(None if layer.bias is None else layer.bias.detach().clone() for layer in layers)
    targets = F.one_hot(y, 3).double()
    blocks = initial_blocks(x.flatten(1), weights, biases)
    assert torch.equal(blocks.activations[-1], model(x))
    solver = bound(model)
    for step in range(3):
        losses = solver.step(x, y, step=step)
        blocks = bcd_sweep(blocks, targets, Penalties())
        assert losses[0] == bcd_objective(blocks, targets, Penalties())
        assert not losses[0].requires_grad
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert all(torch.equal(layer.weight, w) for layer, w in zip(layers, blocks.weights, strict=True))
    assert all(b is None or torch.equal(layer.bias, b) for layer, b in zip(layers, blocks.biases, strict=True))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_parts_share_the_objective():
    x, y = batch()
    whole = bound(perceptron()).step(x, y, step=0)[0]
    groups = (("one.weight", "one.bias"), ("two.weight", "two.bias", "three.weight", "three.bias"), ())
    shares = bound(perceptron(), *groups).step(x, y, step=0)
    assert list(shares) == [0, 1, 2]
    assert torch.allclose(shares[0] + shares[1], whole, rtol=1e-14)
    assert shares[0] > 0
    assert shares[2] == 0


def test_it_learns_to_classify():
    """Three Gaussian clusters, float32: from chance to nearly all right in forty sweeps."""
    torch.manual_seed(0)
    y = torch.arange(90) % 3
    x = torch.randn(90, 6) * 0.3 + torch.eye(6)[y] * 2
    model = perceptron(dtype=torch.float32)
    before = (model(x).argmax(1) == y).float().mean()
    solver = bound(model, method=BCD(alpha=1.0))
    for step in range(40):
        solver.step(x, y, step=step)
    assert before < 0.7
    assert (model(x).argmax(1) == y).float().mean() > 0.95


@pytest.mark.parametrize("change", ["other values", "shuffled", "fewer", "labels"])
def test_another_batch_is_refused(change):
    x, y = batch()
    solver = bound(perceptron())
    solver.step(x, y, step=0)
    solver.step(x.clone(), y.clone(), step=1)
    order = torch.arange(11, -1, -1)
    other = {
        "other values": (x + 1e-9, y),
        "shuffled": (x[order], y[order]),
        "fewer": (x[:6], y[:6]),
        "labels": (x, (y + 1) % 3),
    }[change]
    with pytest.raises(MethodError, match="give the whole training set as one batch, unshuffled"):
        solver.step(*other, step=2)


def test_a_checkpoint_continues_where_it_stopped():
    x, y = batch()
    model = perceptron()
    solver = bound(model)
    assert solver.state_dict() == {}
    for step in range(2):
        solver.step(x, y, step=step)
    other = perceptron()
    other.load_state_dict(model.state_dict())
    resumed = bound(other)
    resumed.load_state_dict({name: tensor.clone() for name, tensor in solver.state_dict().items()})
    assert resumed.step(x, y, step=2) == solver.step(x, y, step=2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    with pytest.raises(MethodError, match="another batch"):
        resumed.step(x[:3], y[:3], step=3)
    with pytest.raises(CheckpointError, match="a checkpoint with 1 tensors"):
        resumed.load_state_dict({"batch": torch.tensor(0)})


class Residual(nn.Module):
    """Linear, ReLU, Linear by its modules, but not by its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.relu, self.two = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(x + self.relu(self.one(x)))


def shared() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)), "module '1' is a Tanh where .* expects a ReLU"),
        (nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), "module '1' is a Linear where .* expects a ReLU"),
        (nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(4, 3)), "module '1' is a ReLU where .* expects a Linear"),
        (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU()), "module '1' is a BatchNorm1d"),
        (nn.Sequential(nn.MultiheadAttention(4, 2)), "module '0' is a MultiheadAttention"),
        (nn.Sequential(nn.Linear(6, 4), nn.ReLU()), "ends with the ReLU after '0'"),
        (nn.Flatten(), "has no linear layer"),
        (shared(), "share a parameter"),
    ],
)
def test_models_that_are_no_chain_are_refused_by_name(model, message):
    with pytest.raises(MethodError, match=message):
        bound(model)


def test_chains_are_found_through_containers():
    model = nn.Sequential(
        nn.Sequential(nn.Linear(6, 4), nn.Identity()), nn.ReLU(), nn.ModuleDict({"top": nn.Linear(4, 3)})
    )
    assert [name for name, _ in linear_chain(model)] == ["0.0", "2.top"]
    assert [name for name, _ in linear_chain(nn.Linear(6, 3))] == [""]


def test_a_forward_that_is_not_the_chain_is_refused():
    with pytest.raises(MethodError, match="not that of its linear layers"):
        bound(Residual()).step(torch.randn(8, 6), torch.zeros(8, dtype=torch.long), step=0)


def test_a_single_linear_layer_is_a_chain():
    model = nn.Linear(6, 3).double()
    x, y = batch()
    solver = bound(model)
    losses = [solver.step(x.flatten(1), y, step=step)[0].item() for step in range(5)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(12), r"labels \(12,\) of torch.float32"),
        (torch.zeros(12, 2, dtype=torch.long), r"labels \(12, 2\)"),
        (torch.full((12,), 3), "labels from 3 to 3 were given for 3 outputs"),
        (torch.full((12,), -1), "labels from -1 to -1"),
        (None, "labels NoneType"),
    ],
)
def test_labels_that_do_not_fit_are_refused(y, message):
    with pytest.raises(MethodError, match=message):
        bound(perceptron()).step(batch()[0], y, step=0)


def test_half_precision_and_other_inputs_are_refused():
    x, y = batch()
    with pytest.raises(MethodError, match=r"weights in torch.bfloat16"):
        bound(perceptron(dtype=torch.bfloat16)).step(x, y, step=0)
    with pytest.raises(MethodError, match="x of type dict"):
        bound(perceptron()).step({"x": x}, y, step=0)


@pytest.mark.parametrize("name", ["gamma", "rho", "alpha"])
def test_penalties_that_are_not_positive_are_refused(name):
    with pytest.raises(MethodError, match="give numbers above 0"):
        BCD(**{name: 0.0})


def test_family_and_locality():
    assert BCD().family is Family.AUXILIARY
    assert BCD().locality == Locality(Reach.TARGETS)
