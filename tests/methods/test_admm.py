"""ADMM: every block at its minimum, the multiplier's step, the least-squares solution, refusals, checkpoints."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor, nn

import modulewise as mw
from modulewise.errors import CheckpointError, MethodError
from modulewise.method import Family, Locality, Reach
from modulewise.methods import ADMM
from modulewise.methods.auxiliary.admm_updates import (
    Weights,
    admm_objective,
    admm_output,
    admm_shares,
    admm_sweep,
    least_squares_map,
    regularised_inverse,
)
from modulewise.methods.auxiliary.bcd_updates import Penalties, hidden_activation, hidden_preactivation
from modulewise.methods.auxiliary.blocks import Blocks, initial_blocks, with_ones

WEIGHTS = Weights(beta=1.3, gamma=0.7, ridge=0.4)


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


def scipy_minimum(cost: Any, start: Tensor) -> Tensor:
    def value_and_slope(flat: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(flat.copy()).reshape(start.shape).requires_grad_()
        value = cost(point)
        (slope,) = torch.autograd.grad(value, point)
        return value.item(), slope.flatten().numpy()

    options = {"ftol": 1e-16, "gtol": 1e-11}
    found = minimize(value_and_slope, start.flatten().numpy(), jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x).reshape(start.shape)


def close(a: Tensor, b: Tensor, rtol: float = 1e-10) -> bool:
    return bool((a - b).abs().max() <= rtol * b.abs().max())


def test_the_objective_is_the_loop_and_the_shares_are_its_layers():
    """Every term of F, sample by sample and unit by unit, with Python floats."""
    blocks, targets = wandering_blocks()
    totals = [0.0, 0.0, 0.0]
    for layer in range(3):
        w, b = blocks.weights[layer].tolist(), blocks.biases[layer].tolist()
        totals[layer] += WEIGHTS.beta / 2 * WEIGHTS.ridge * (sum(x * x for r in w for x in r) + sum(x * x for x in b))
        for n in range(6):
            z, below = blocks.preactivations[layer][n].tolist(), blocks.activations[layer][n].tolist()
            for o, value in enumerate(z):
                affine = sum(p * q for p, q in zip(w[o], below, strict=True)) + b[o]
                totals[layer] += WEIGHTS.beta / 2 * (value - affine) ** 2
                if layer < 2:
                    a = blocks.activations[layer + 1][n, o].item()
                    totals[layer] += WEIGHTS.gamma / 2 * (a - max(value, 0.0)) ** 2
                else:
                    totals[layer] += (value - targets[n, o].item()) ** 2 / 2 + value * blocks.multiplier[n, o].item()
    assert admm_shares(blocks, targets, WEIGHTS).tolist() == pytest.approx(totals, rel=1e-12)
    assert admm_objective(blocks, targets, WEIGHTS).item() == pytest.approx(sum(totals), rel=1e-12)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("ridge", [0.0, 0.4])
@pytest.mark.parametrize("bias", [True, False])
def test_weights_and_biases_are_scipys_minimum(layer, ridge, bias):
    blocks, targets = wandering_blocks(n=12)
    b = blocks.biases[layer] if bias else None
    weights = replace(WEIGHTS, ridge=ridge)

    def cost(point: Tensor) -> Tensor:
        width = blocks.weights[layer].shape[1]
        w = swapped(blocks.weights, layer, point[:, :width])
        biases = swapped(blocks.biases, layer, point[:, -1] if bias else None)
        return admm_objective(replace(blocks, weights=w, biases=biases), targets, weights)

    start = blocks.weights[layer] if b is None else torch.cat([blocks.weights[layer], b[:, None]], 1)
    z, a = blocks.preactivations[layer], blocks.activations[layer]
    w, found = least_squares_map(z, a, blocks.weights[layer], b, ridge=ridge)
    assert (found is None) == (b is None)
    together = w if found is None else torch.cat([w, found[:, None]], 1)
    assert torch.allclose(together, scipy_minimum(cost, start), rtol=1e-6, atol=1e-7)


def test_without_ridge_the_weights_are_z_times_the_pseudo_inverse():
    z, a = draw(20, 3), draw(20, 5, seed=1)
    w, b = least_squares_map(z, a, draw(3, 5, seed=2), draw(3, seed=3), ridge=0.0)
    expected = torch.from_numpy(z.T.numpy() @ np.linalg.pinv(with_ones(a).T.numpy()))
    assert close(torch.cat([w, b[:, None]], 1), expected)


def test_directions_without_samples_keep_their_weights():
    """A constant pixel beside the ones, a dead unit, fewer samples than units: fitted as well as by the pseudo-inverse,
    and nothing moves where no sample tells."""
    z, a = draw(7, 3), draw(7, 5, seed=1)
    a[:, 1], a[:, 3] = -0.4, 0.0
    present, bias = draw(3, 5, seed=2), draw(3, seed=3)
    rows = with_ones(a)
    w, b = least_squares_map(z, a, present, bias, ridge=0.0)
    change = torch.cat([w - present, (b - bias)[:, None]], 1)
    projector = torch.from_numpy(np.linalg.pinv(rows.numpy()) @ rows.numpy())
    assert close(F.linear(a, w, b), torch.from_numpy(rows.numpy() @ np.linalg.pinv(rows.numpy()) @ z.numpy()))
    assert close(change @ projector, change)
    assert torch.equal(w[:, 3], present[:, 3])


def test_the_inverse_of_inner_products_is_numpys():
    rows = draw(9, 4)
    gram = (rows.T @ rows).numpy()
    for ridge in (0.0, 0.3):
        expected = torch.from_numpy(np.linalg.inv(gram + ridge * np.eye(4)))
        assert close(regularised_inverse(rows, ridge), expected)


@pytest.mark.parametrize("layer", [0, 1])
def test_hidden_activations_are_scipys_minimum(layer):
    blocks, targets = wandering_blocks()

    def cost(point: Tensor) -> Tensor:
        moved = replace(blocks, activations=swapped(blocks.activations, layer + 1, point))
        return admm_objective(moved, targets, WEIGHTS)

    penalties = Penalties(gamma=WEIGHTS.gamma, rho=WEIGHTS.beta, alpha=0.0)
    found = hidden_activation(
        *blocks.preactivations[layer : layer + 2], blocks.weights[layer + 1], blocks.biases[layer + 1], penalties
    )
    assert torch.allclose(found, scipy_minimum(cost, blocks.activations[layer + 1]), rtol=1e-6, atol=1e-7)


def test_hidden_preactivations_are_the_global_minimum_entry_by_entry():
    """Not convex: the better of what scipy finds below and above zero, all four cases of signs among them."""
    a, affine = 2 * draw(60), 2 * draw(60, seed=1)
    found = hidden_preactivation(a, affine, affine, Penalties(gamma=0.7, rho=1.3, alpha=0.0))
    signs = set()
    for target, middle, z in zip(a.tolist(), affine.tolist(), found.tolist(), strict=True):

        def cost(z: float, target: float = target, middle: float = middle) -> float:
            return 0.7 * (target - max(z, 0.0)) ** 2 + 1.3 * (z - middle) ** 2

        sides = [minimize_scalar(cost, bounds=side, method="bounded", options={"xatol": 1e-12}) for side in SIDES]
        best = min(sides, key=lambda side: side.fun)
        assert cost(z) <= best.fun + 1e-12
        assert z == pytest.approx(best.x, abs=1e-5)
        signs.add((target > 0, middle > 0, z > 0))
    impossible = {(True, True, False), (False, False, True)}
    assert len(signs) == 6
    assert not signs & impossible


SIDES = [(-20.0, 0.0), (0.0, 20.0)]


def test_the_output_is_scipys_minimum():
    blocks, targets = wandering_blocks()

    def cost(point: Tensor) -> Tensor:
        moved = replace(blocks, preactivations=swapped(blocks.preactivations, 2, point))
        return admm_objective(moved, targets, WEIGHTS)

    affine = F.linear(blocks.activations[2], blocks.weights[2], blocks.biases[2])
    found = admm_output(targets, affine, blocks.multiplier, WEIGHTS.beta)
    assert torch.allclose(found, scipy_minimum(cost, blocks.preactivations[2]), rtol=1e-6, atol=1e-7)


def test_an_iteration_goes_up_each_block_with_the_newest_others():
    """W_1 a_1 z_1 W_2 a_2 z_2 W_3 z_3, then the multiplier, written out."""
    blocks, targets = wandering_blocks()
    w, b = list(blocks.weights), list(blocks.biases)
    z, a = list(blocks.preactivations), list(blocks.activations)
    penalties = Penalties(gamma=WEIGHTS.gamma, rho=WEIGHTS.beta, alpha=0.0)
    for layer in (0, 1):
        w[layer], b[layer] = least_squares_map(z[layer], a[layer], w[layer], b[layer], ridge=WEIGHTS.ridge)
        a[layer + 1] = hidden_activation(z[layer], z[layer + 1], w[layer + 1], b[layer + 1], penalties)
        z[layer] = hidden_preactivation(a[layer + 1], F.linear(a[layer], w[layer], b[layer]), z[layer], penalties)
    w[2], b[2] = least_squares_map(z[2], a[2], w[2], b[2], ridge=WEIGHTS.ridge)
    affine = F.linear(a[2], w[2], b[2])
    z[2] = admm_output(targets, affine, blocks.multiplier, WEIGHTS.beta)
    multiplier = blocks.multiplier + WEIGHTS.beta * (z[2] - affine)
    after = admm_sweep(blocks, targets, WEIGHTS)
    found = (*after.weights, *after.biases, *after.preactivations, *after.activations, after.multiplier)
    expected = (*w, *b, *z, *a, multiplier)
    assert all(torch.equal(p, q) for p, q in zip(found, expected, strict=True))
    warm = admm_sweep(blocks, targets, WEIGHTS, warm=True)
    assert torch.equal(warm.multiplier, blocks.multiplier)
    assert torch.equal(warm.preactivations[2], after.preactivations[2])


@pytest.mark.parametrize("weights", [Weights(), WEIGHTS, Weights(beta=0.01, gamma=5.0)])
def test_the_objective_never_rises_while_the_multiplier_rests(weights):
    blocks, targets = wandering_blocks(n=30)
    values = [admm_objective(blocks, targets, weights).item()]
    for _ in range(25):
        blocks = admm_sweep(blocks, targets, weights, warm=True)
        values.append(admm_objective(blocks, targets, weights).item())
    assert all(after <= before + 1e-12 * abs(before) for before, after in pairwise(values))
    assert values[-1] < 0.5 * values[0]


class TestOneLayer:
    """Convex: z = W x + b to one-hot targets, more samples than inputs."""

    x, targets = draw(20, 4), F.one_hot(torch.arange(20) % 3).double()
    rows = with_ones(x)
    start = initial_blocks(x, (draw(3, 4, seed=1),), (draw(3, seed=2),), multiplier=True)

    def run(self, *, warm: int, steps: int) -> list[Blocks]:
        blocks = [self.start]
        for step in range(steps):
            blocks.append(admm_sweep(blocks[-1], self.targets, Weights(beta=1.5), warm=step < warm))
        return blocks

    def test_after_a_warm_start_it_ends_in_least_squares_and_its_residuals_fall(self):
        blocks = self.run(warm=120, steps=240)
        fitted = [F.linear(self.x, b.weights[0], b.biases[0]) for b in blocks]
        residuals = [(b.preactivations[0] - f).norm().item() for b, f in zip(blocks, fitted, strict=True)]
        solution = torch.from_numpy(np.linalg.lstsq(self.rows.numpy(), self.targets.numpy(), rcond=None)[0])
        found = torch.cat([blocks[-1].weights[0], blocks[-1].biases[0][:, None]], 1)
        assert close(found, solution.T)
        falling = residuals[121:141]
        assert falling[0] > 0.1
        assert [after / before for before, after in pairwise(falling)] == pytest.approx([1 / 2.5] * 19, rel=1e-6)
        assert residuals[-1] < 1e-12
        # At the end lambda is what the loss pulls with: -dloss/dz.
        assert close(blocks[-1].multiplier, self.targets - blocks[-1].preactivations[0])

    def test_the_warm_start_alone_reaches_the_same_weights_by_the_factor_beta_over_one_plus_beta(self):
        blocks = self.run(warm=60, steps=60)
        solution = torch.from_numpy(np.linalg.lstsq(self.rows.numpy(), self.targets.numpy(), rcond=None)[0]).T
        errors = [(torch.cat([b.weights[0], b.biases[0][:, None]], 1) - solution).norm().item() for b in blocks]
        ratios = [after / before for before, after in pairwise(errors[1:20])]
        assert ratios == pytest.approx([1.5 / 2.5] * len(ratios), rel=1e-9)

    def test_without_it_the_multiplier_keeps_a_part_of_the_start(self):
        """In the span of the inputs lambda sums to beta (z - z_0), so that z ends at (y + beta z_0) / (1 + beta)."""
        blocks = self.run(warm=0, steps=200)
        projector = torch.from_numpy(self.rows.numpy() @ np.linalg.pinv(self.rows.numpy()))
        expected = projector @ (self.targets + 1.5 * self.start.preactivations[0]) / 2.5
        assert close(blocks[-1].preactivations[0], expected)


def perceptron(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3, bias=False)
    ).to(dtype)


def batch(n: int = 24, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return draw(n, 2, 3).to(dtype), torch.arange(n) % 3


def trainer(model: nn.Module | None = None, *, method: ADMM | None = None, cuts: tuple[str, ...] = ("2", "4")):
    partition = mw.Partition(model or perceptron(), cuts=cuts, example=batch()[0])
    return mw.Trainer(partition, method or ADMM(warm_start=2), loss=F.cross_entropy)


def test_a_step_writes_one_iteration_into_the_models_own_parameters_and_shows_the_shares():
    """The trainer's steps are the pure function's, and the multiplier rests for the warm start."""
    model, (x, y) = perceptron(), batch()
    layers = [model[i] for i in (1, 3, 5)]
    weights = tuple(layer.weight.detach().clone() for layer in layers)
    biases = tuple(None if layer.bias is None else layer.bias.detach().clone() for layer in layers)
    targets = F.one_hot(y, 3).double()
    blocks = initial_blocks(x.flatten(1), weights, biases, multiplier=True)
    trained = trainer(model)
    for step in range(4):
        losses = trained.step(x, y)
        blocks = admm_sweep(blocks, targets, Weights(), warm=step < 2)
        assert list(losses.values()) == list(admm_shares(blocks, targets, Weights()))
        assert bool(blocks.multiplier.any()) == (step >= 2)
    assert all(torch.equal(layer.weight, w) for layer, w in zip(layers, blocks.weights, strict=True))
    assert all(b is None or torch.equal(layer.bias, b) for layer, b in zip(layers, blocks.biases, strict=True))


def test_a_part_shows_the_sum_of_its_layers():
    x, y = batch()
    fine = list(trainer().step(x, y).values())
    coarse = list(trainer(cuts=("2",)).step(x, y).values())
    assert torch.equal(coarse[0], fine[0])
    assert torch.allclose(coarse[1], fine[1] + fine[2], rtol=1e-14)


def test_saving_and_resuming_is_exact_across_the_end_of_the_warm_start(tmp_path):
    x, y = batch()
    straight = trainer()
    straight.step(x, y)
    straight.save(tmp_path / "saved")
    for _ in range(3):
        straight.step(x, y)
    resumed = trainer()
    resumed.step(*(t.clone() for t in batch(12)))  # what it kept of another batch must not survive the load
    resumed.load(tmp_path / "saved")
    for _ in range(3):
        resumed.step(x, y)
    pairs = zip(straight.partition.model.parameters(), resumed.partition.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert straight.solver.state_dict()["multiplier"].any()
    with pytest.raises(CheckpointError, match="a checkpoint with 1 tensors was given for a perceptron of 3 layers"):
        resumed.solver.load_state_dict({"batch": torch.tensor(0)})


def test_mini_batches_are_refused():
    x, y = batch()
    trained = trainer()
    trained.step(x, y)
    for other in ((x[:12], y[:12]), (x[12:], y[12:]), (x.flip(0), y.flip(0))):
        with pytest.raises(MethodError, match="give the whole training set as one batch, unshuffled, in every step"):
            trained.step(*other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 0.0}, "beta=0.0"),
        ({"beta": float("nan")}, "beta=nan"),
        ({"gamma": -1.0}, "gamma=-1.0"),
        ({"gamma": float("inf")}, "gamma=inf"),
        ({"ridge": -1e-9}, "ridge=-1e-09"),
        ({"ridge": float("nan")}, "ridge=nan"),
        ({"warm_start": -1}, "warm_start=-1"),
        ({"warm_start": float("nan")}, "warm_start=nan"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(MethodError, match=message):
        ADMM(**arguments)


def test_family_and_locality():
    assert ADMM().family is Family.AUXILIARY
    assert ADMM().locality == Locality(Reach.TARGETS)
