"""What lifted networks share: ridge regression, accelerated steps, batches, checkpoints and refusals."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lifted_cases import INFINITE, batch, perceptron, trainer_of
from torch import Tensor, nn

import modulewise as mw
from modulewise.errors import CheckpointError, MethodError, NonFiniteLossError
from modulewise.methods import LPOM, FenchelLifted, LiftedNetwork
from modulewise.methods.auxiliary.lifted_chain import squared_norm_bound
from modulewise.methods.auxiliary.lifted_ridge import accelerated, ridge

METHODS = [LiftedNetwork(decay=0.01), LiftedNetwork(cross_entropy=True), FenchelLifted(), LPOM(mu=2.0)]
methods = pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{type(m).__name__}-{m.cross_entropy}")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("n", [3, 5, 9])
def test_ridge_is_numpys_least_squares_from_either_side(n):
    rows, target, stiff = draw(n, 5), draw(n, 2, seed=1), draw(5, seed=2).abs() + 0.1
    stacked = np.vstack([1.7**0.5 * rows.numpy(), np.diag(stiff.sqrt().numpy())])
    right = np.vstack([1.7**0.5 * target.numpy(), np.zeros((5, 2))])
    expected = np.linalg.lstsq(stacked, right, rcond=None)[0].T
    found = ridge(rows, weight=1.7, stiff=stiff)(target).numpy()
    assert np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max()


@pytest.mark.parametrize("n", [3, 9])
def test_an_infinitely_stiff_column_stays_at_zero_and_the_others_solve_without_it(n):
    rows, target, stiff = draw(n, 5), draw(n, 2, seed=1), torch.full((5,), 0.3).double()
    stiff[2] = INFINITE
    others = torch.tensor([0, 1, 3, 4])
    found = ridge(rows, weight=1.0, stiff=stiff)(target)
    assert torch.equal(found[:, 2], torch.zeros(2).double())
    assert torch.allclose(found[:, others], ridge(rows[:, others], weight=1.0, stiff=stiff[others])(target), rtol=1e-10)


@settings(max_examples=40, deadline=None, database=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_the_norm_bound_is_never_below_the_norm_and_hardly_above(rows, columns, seed, scale):
    weight = scale * draw(rows, columns, seed=seed)
    exact = torch.linalg.matrix_norm(weight, 2).item() ** 2
    bound = squared_norm_bound(weight).item()
    assert exact * (1 - 1e-12) <= bound <= exact * min(rows, columns) ** (1 / 32) * (1 + 1e-12)


def test_the_norm_bound_of_zeros_is_nearly_zero():
    assert 0 <= squared_norm_bound(torch.zeros(3, 4)) < 1e-30


def test_accelerated_steps_never_rise_beat_plain_ones_and_rows_are_on_their_own():
    """1/2 x^T diag(1, 0.001) x from (1, 1): a badly scaled valley."""
    valley = torch.tensor([1.0, 1e-3]).double()
    value = lambda x: (x.square() * valley).sum(1) / 2  # noqa: E731
    step = lambda y: y - y * valley  # noqa: E731
    start = torch.tensor([[1.0, 1.0], [-3.0, 40.0]]).double()
    values = [value(accelerated(start, step=step, value=value, steps=k)) for k in range(1, 121, 7)]
    assert all((after <= before * (1 + 1e-12)).all() for before, after in pairwise(values))
    plain = value(start * (1 - valley) ** 120)
    assert (values[-1] < 0.01 * plain).all()
    alone = accelerated(start[1:], step=step, value=value, steps=60)
    assert torch.equal(accelerated(start, step=step, value=value, steps=60)[1:], alone)


@methods
def test_a_batch_twice_over_and_in_another_order_gives_the_same_weights(method):
    """The objective is a mean over samples, each with activations of its own."""
    x, y = batch()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)) % 8
    results = []
    for rows, labels in ((x, y), (x[order], y[order])):
        model = perceptron()
        trainer_of(model, method, x).step(rows, labels)
        results.append(weights(model))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-11) for a, b in zip(*results, strict=True))


@methods
def test_another_batch_of_another_size_is_welcome_and_starts_at_a_forward_pass(method):
    """What a step does depends on the weights alone, not on the batches before it."""
    model, other = perceptron(), perceptron()
    trainer = trainer_of(model, method, batch()[0])
    trainer.step(*batch(8))
    other.load_state_dict(model.state_dict())
    trainer.step(*batch(5, seed=2))
    trainer_of(other, method, batch()[0]).step(*batch(5, seed=2))
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(other), strict=True))


@methods
def test_cuts_only_divide_the_losses(method):
    totals, results = [], []
    for cuts in ((), ("2",), ("2", "4")):
        model = perceptron()
        losses = trainer_of(model, method, batch()[0], cuts=cuts).step(*batch())
        assert list(losses) == list(range(len(cuts) + 1))
        totals.append(sum(loss.item() for loss in losses.values()))
        results.append(weights(model))
    assert totals[1:] == pytest.approx(totals[:1] * 2, rel=1e-14)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@methods
def test_saved_and_resumed_equals_straight_on(method, tmp_path):
    x, _ = batch()
    model, other = perceptron(), perceptron()
    trainer = trainer_of(model, method, x)
    trainer.step(*batch())
    trainer.save(tmp_path / "checkpoint")
    resumed = trainer_of(other, method, x)
    resumed.load(tmp_path / "checkpoint")
    assert resumed.step(*batch(seed=2)) == trainer.step(*batch(seed=2))
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(other), strict=True))


def test_a_checkpoint_of_another_solver_is_refused():
    solver = trainer_of(perceptron(), LPOM(), batch()[0]).solver
    assert solver.state_dict() == {}
    solver.load_state_dict({})
    with pytest.raises(CheckpointError, match=r"solver tensors \['batch'\] was given to LPOM"):
        solver.load_state_dict({"batch": torch.zeros(1)})


@methods
@pytest.mark.parametrize("name", ["1.weight", "3.bias", "5.weight"])
def test_a_frozen_parameter_stays_and_the_others_learn(method, name):
    model = perceptron()
    model.get_parameter(name).requires_grad_(False)
    before = dict(zip(dict(model.named_parameters()), weights(model), strict=True))
    trainer_of(model, method, batch()[0]).step(*batch())
    still = [key for key, p in model.named_parameters() if torch.equal(p, before[key])]
    assert still == [name]


@methods
def test_it_learns_to_classify(method):
    """Three Gaussian clusters in float32, mini-batches."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 3
    x = (torch.randn(90, 6, generator=generator) * 0.3 + torch.eye(6)[y] * 2).view(90, 2, 3)
    model = perceptron(dtype=torch.float32)
    before = (model(x).argmax(1) == y).float().mean()
    trainer = trainer_of(model, method, x)
    for step in range(60):
        rows = slice(30 * (step % 3), 30 * (step % 3) + 30)
        trainer.step(x[rows], y[rows])
    assert before < 0.7
    assert (model(x).argmax(1) == y).float().mean() > 0.95


@methods
def test_layers_without_bias(method):
    model = perceptron(bias=False)
    before = weights(model)
    losses = trainer_of(model, method, batch()[0]).step(*batch())
    assert all(bool(torch.isfinite(loss)) for loss in losses.values())
    assert all(not torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


@methods
def test_numbers_that_are_not_finite_leave_the_weights_alone(method):
    model, (x, y) = perceptron(), batch()
    trainer, before = trainer_of(model, method, x), weights(model)
    x[3, 1, 1] = float("nan")
    with pytest.raises(NonFiniteLossError, match="part 0 is not finite"):
        trainer.step(x, y)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


class Residual(nn.Module):
    """Linear, ReLU, Linear by its modules, but not by its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.relu, self.two = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(x + self.relu(self.one(x)))


@methods
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)),
            "part 1, module '1' is a BatchN",
        ),
        (nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)), "part 1, module '1' is a Tanh .* expect a ReLU"),
        (nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 2, 3), nn.Flatten()), "part 0, module '0' is a Unflatten"),
        (nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU()), "ends with the ReLU after '2'"),
    ],
    ids=["norm", "tanh", "convolution", "relu at the end"],
)
def test_models_that_are_no_chain_are_refused_at_construction(method, model, message):
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    with pytest.raises(MethodError, match=message):
        trainer_of(model, method, x, cuts=("0",))


@methods
def test_a_forward_that_is_not_the_chain_is_refused_at_construction(method):
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    with pytest.raises(MethodError, match="not that of its linear layers"):
        trainer_of(Residual(), method, x, cuts=())


@methods
def test_half_precision_is_refused_at_construction(method):
    x = torch.randn(8, 6, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    with pytest.raises(MethodError, match=r"module '1' has weights in torch.bfloat16"):
        trainer_of(perceptron(dtype=torch.bfloat16), method, x.view(8, 2, 3), cuts=())


@methods
@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(8), r"labels \(8,\) of torch.float32"),
        (torch.zeros(8, 2, dtype=torch.long), r"labels \(8, 2\)"),
        (torch.zeros(4, dtype=torch.long), r"labels \(4,\) of torch.int64 .* integers \(8,\)"),
        (torch.full((8,), 3), "labels from 3 to 3 were given for 3 outputs"),
        (torch.full((8,), -1), "labels from -1 to -1"),
        (None, "labels NoneType"),
    ],
)
def test_labels_that_do_not_fit_are_refused(method, y, message):
    x, _ = batch()
    solver = trainer_of(perceptron(), method, x).solver
    with pytest.raises(MethodError, match=message):
        solver.step(x, y, step=0)


@pytest.mark.parametrize(
    "x", [{"x": torch.zeros(8, 6)}, torch.zeros(8, 7), torch.zeros(6)], ids=["dict", "width", "flat"]
)
def test_inputs_that_do_not_fit_are_refused(x):
    solver = trainer_of(perceptron(), LPOM(), batch()[0]).solver
    with pytest.raises(MethodError, match=r"was given to LPOM; give a tensor with 6 values a sample"):
        solver.step(x, torch.zeros(8, dtype=torch.long), step=0)


def test_the_three_move_the_same_weights_differently_from_the_same_batch():
    moves = []
    for method in (LiftedNetwork(), FenchelLifted(cross_entropy=False), LPOM(mu=1.0)):
        model, (x, y) = perceptron(), batch()
        trainer_of(model, method, x).step(x, y)
        moves.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(moves, [*moves[1:], moves[0]], strict=True))


def test_the_task_loss_plays_no_part():
    """Said in the docstrings: squared error or cross entropy, by the method's own field."""
    results = []
    for loss in (F.cross_entropy, lambda output, y: output.sum() * 1e6):
        model, (x, y) = perceptron(), batch()
        partition = mw.Partition(model, cuts=("2",), example=x)
        mw.Trainer(partition, FenchelLifted(), loss=loss, optimizer=None).step(x, y)
        results.append(weights(model))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
