"""What MAC, online alternating minimisation and local propagation share: draws, buffers, skips, state, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from literal_oracles import draw
from small_networks import CUTS, Residual, Skipping, differing, images, perceptron, rows, seeded, state
from torch import Tensor, nn

import modulewise as mw
from modulewise.errors import CheckpointError, MethodError, NonFiniteLossError
from modulewise.methods import MAC, LocalPropagation, OnlineAlternatingMinimisation
from modulewise.methods.auxiliary.altmin_updates import altmin_codes
from modulewise.methods.auxiliary.mac_updates import mac_coordinates
from modulewise.methods.auxiliary.part_runs import PartRuns
from modulewise.seeding import seed_of, set_generators

SEED = 9
METHODS = (MAC, OnlineAlternatingMinimisation, LocalPropagation)
every_method = pytest.mark.parametrize("method", [kind() for kind in METHODS], ids=lambda m: type(m).__name__)


def trainer(
    model: nn.Module, cuts: Any, x: Tensor, method: Any, loss: Callable[..., Tensor] = F.cross_entropy
) -> mw.Trainer:
    return mw.Trainer(mw.Partition(model, cuts=list(cuts), example=x), method, loss=loss, seed=SEED)


@pytest.mark.parametrize("adam", [True, False])
@pytest.mark.parametrize("kind", METHODS)
def test_one_part_is_end_to_end_backpropagation(kind, adam):
    """Bit for bit over three batches, with dropout and batch normalisation: parameters and buffers."""
    once = {"iterations": 1, "damping": 0.0} if kind is LocalPropagation else {}
    method = kind(weight_rate=0.01, adam=adam, **once)
    model, plain = (seeded(lambda: Residual(dropout=0.3)) for _ in range(2))
    ours = trainer(model, (), images()[0], method)
    optimizer = (torch.optim.Adam if adam else torch.optim.SGD)(plain.parameters(), lr=0.01)
    for step, (x, y) in enumerate(images(8, seed) for seed in range(3)):
        losses = ours.step(x, y)
        set_generators(seed_of(SEED, step, 0))
        optimizer.zero_grad()
        loss = F.cross_entropy(plain(x), y)
        loss.backward()
        optimizer.step()
        assert torch.equal(losses[0], loss.detach())
    assert differing(state(model), state(plain)) == []


@every_method
def test_buffers_are_those_of_one_forward_pass_a_step(method):
    model, plain, (x, y) = seeded(Residual), seeded(Residual), images()
    trainer(model, CUTS, x, method).step(x, y)
    plain(x)
    buffers = dict(plain.named_buffers())
    assert int(model.stem[1].num_batches_tracked) == 1
    assert len(buffers) > 10
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


def test_a_part_draws_the_same_in_every_run_of_a_step_and_anew_in_the_next():
    model, (x, _) = seeded(lambda: perceptron(dropout=0.5)), rows()
    partition = mw.Partition(model, cuts=["0", "1"], example=x)

    def mask(step: int, part: int, at: Tensor) -> Tensor:
        return PartRuns(partition, x, seed=SEED, step=step)(part, [at, at]) == 0

    at = draw(8, 16).float()
    set_generators(seed_of(SEED, 4, 1))
    dropped = F.dropout(torch.ones(8, 12), 0.5) == 0
    runs = PartRuns(partition, x, seed=SEED, step=4)
    torch.rand(7)
    assert torch.equal(runs(1, [at]), runs(1, [at]))
    assert (runs(1, [at])[dropped] == 0).all()
    assert (mask(4, 1, at) != mask(5, 1, at)).any()
    set_generators(seed_of(SEED, 4, 0))
    expected = model[0](x)
    assert torch.equal(runs.forward()[0], expected)
    assert torch.equal(runs(0, []), expected)


@every_method
def test_training_with_dropout_leaves_the_callers_generator_and_grad_mode_alone(method):
    model, (x, y) = seeded(lambda: perceptron(dropout=0.5)), rows()
    bound = trainer(model, ("0", "1"), x, method)
    before, weights = torch.get_rng_state(), [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        losses = bound.step(x, y)
    assert torch.equal(before, torch.get_rng_state())
    assert all((p != w).any() for p, w in zip(model.parameters(), weights, strict=True))
    assert not any(loss.requires_grad for loss in losses.values())
    assert all(p.grad is None for p in model.parameters())


def test_skips_are_read_as_any_boundary():
    """MAC's Z-step on a network whose parts read the first boundary: autograd on the whole objective, written out."""
    model, (x, y) = seeded(Skipping).double(), rows()
    x, mu, rate = x.double(), 0.8, 0.05
    partition = mw.Partition(model, cuts=["a", "b", "c"], example=x)
    assert partition.ports
    runs = PartRuns(partition, x, seed=0, step=0)
    start = [h + 0.1 * draw(*h.shape, seed=k) for k, h in enumerate(runs.forward())]
    ours = mac_coordinates(runs, start, lambda out: F.cross_entropy(out, y), mu=mu, rate=rate, steps=1)
    a, b, c = (h.clone().requires_grad_() for h in start)
    distances = (a - model.a(x)).square().sum() + (b - model.b(a)).square().sum() + (c - model.c(b + a)).square().sum()
    objective = len(x) * F.cross_entropy(model.d(c * a + b), y) + mu / 2 * distances
    for z, h, gradient in zip(ours, start, torch.autograd.grad(objective, (a, b, c)), strict=True):
        assert torch.allclose(z, h - rate / mu * gradient, rtol=1e-12, atol=1e-14)
        assert (z - h).abs().max() > 1e-4


def test_a_code_read_by_skips_has_a_term_for_each_reader():
    """Online alternating minimisation: the first code is drawn to the second and third, and by the task loss."""
    model, (x, y) = seeded(Skipping).double(), rows()
    x, mu, rate = x.double(), 0.8, 0.05
    runs = PartRuns(mw.Partition(model, cuts=["a", "b", "c"], example=x), x, seed=0, step=0)
    start, task = runs.forward(), lambda out: F.cross_entropy(out, y)
    settings = {"mu": mu, "rate": rate, "momentum": 0.0, "steps": 1}
    ours = altmin_codes(runs, start, [[1, 2, 3], [2, 3], [3]], task, **settings)
    a, n = start[0].clone().requires_grad_(), len(x)
    two, three = ours[1], ours[2]
    objective = (
        (a - start[0]).square().sum() + (model.b(a) - two).square().sum() + (model.c(two + a) - three).square().sum()
    )
    objective = objective + n * task(model.d(three * a + two)) / mu
    (gradient,) = torch.autograd.grad(objective, a)
    assert torch.allclose(ours[0], start[0] - rate * gradient, rtol=1e-12, atol=1e-14)


@every_method
def test_a_network_with_skips_trains(method):
    model, (x, y) = seeded(Skipping), rows()
    before = [p.detach().clone() for p in model.parameters()]
    losses = trainer(model, ("a", "b", "c"), x, method).step(x, y)
    assert sorted(losses) == [0, 1, 2, 3]
    assert all((p != b).any() for p, b in zip(model.parameters(), before, strict=True))


@every_method
def test_a_frozen_part_stays_and_a_part_without_parameters_is_passed(method):
    model, (x, y) = seeded(perceptron), rows()
    for p in model[0].parameters():
        p.requires_grad_(False)
    before = state(model)
    bound = trainer(model, ("0.0", "0.1", "1"), x, method)
    assert not list(bound.partition.part(1).parameters())
    losses = bound.step(x, y)
    moved = differing(before, state(model))
    assert moved == [name for name in before if not name.startswith("0.0.0")]
    assert sorted(losses) == [0, 1, 2, 3]


@every_method
def test_a_checkpoint_goes_on_bit_for_bit(method, tmp_path):
    data = [rows(8, seed) for seed in range(6)]
    make = lambda: trainer(seeded(lambda: perceptron(dropout=0.2)), ("0", "1"), data[0][0], method)  # noqa: E731
    straight, first, second = make(), make(), make()
    for x, y in data:
        straight.step(x, y)
    for x, y in data[:3]:
        first.step(x, y)
    first.save(tmp_path)
    second.load(tmp_path)
    assert {key.rsplit(".")[-1] for key in first.solver.state_dict()} == {"exp_avg", "exp_avg_sq", "step"}
    for x, y in data[3:]:
        second.step(x, y)
    assert differing(state(straight.partition.model), state(second.partition.model)) == []
    ours, resumed = straight.solver.state_dict(), second.solver.state_dict()
    assert ours.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in ours.items())
    fresh = make()
    second.solver.load_state_dict({})
    assert second.solver.state_dict() == fresh.solver.state_dict() == {}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"0.9.exp_avg": torch.zeros(2)}, "'0.9.exp_avg' was given as a tensor of the solver"),
        ({"7.0.exp_avg": torch.zeros(2)}, "'7.0.exp_avg' was given as a tensor of the solver"),
        ({"batch": torch.zeros(())}, "'batch' was given as a tensor of the solver"),
        ({"0.0.exp_avg": torch.zeros(2)}, r"has shape \(2,\), expected \(16, 6\)"),
    ],
)
def test_a_checkpoint_of_another_partition_is_refused(state, message):
    with pytest.raises(CheckpointError, match=message):
        trainer(seeded(perceptron), ("0", "1"), rows()[0], MAC()).solver.load_state_dict(state)


@pytest.mark.parametrize("good", [0, 3])
@pytest.mark.parametrize(
    "method",
    [MAC(alternations=3), OnlineAlternatingMinimisation(weight_steps=3), LocalPropagation()],
    ids=lambda m: type(m).__name__,
)
def test_a_loss_that_is_not_finite_leaves_every_part_alone(method, good):
    """At once, and after some of the step's own iterations, which have moved the weights by then."""
    model, (x, y) = seeded(perceptron), rows()
    before, seen = state(model), []

    def loss(output: Tensor, y: Tensor) -> Tensor:
        seen.append(differing(before, state(model)))
        weights_moved = any(seen)
        return F.cross_entropy(output, y) * float("nan" if not good or weights_moved else 1)

    bound = trainer(model, ("0", "1"), x, method, loss=loss)
    with pytest.raises(NonFiniteLossError, match=r"not finite at step 0; its weights are untouched, .* stepped: none"):
        bound.step(x, y)
    assert any(seen) == bool(good)
    assert differing(before, state(model)) == []
    assert all(p.grad is None for p in model.parameters())


@every_method
def test_boundaries_in_half_precision_are_refused_by_name(method):
    model = seeded(perceptron).bfloat16()
    with pytest.raises(MethodError, match=rf"part 0 \(cut '0'\) gives torch.bfloat16, but {type(method).__name__}"):
        trainer(model, ("0", "1"), rows()[0].bfloat16(), method)


@every_method
def test_under_the_callers_autocast_coordinates_stay_wide(method):
    model, (x, y) = seeded(perceptron), rows()
    bound = trainer(model, ("0", "1"), x, method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = bound.step(x, y)
        wide = PartRuns(bound.partition, x, seed=0, step=0).forward()
    assert all(h.dtype is torch.float32 for h in wide)
    assert all(torch.isfinite(loss) for loss in losses.values())


@every_method
def test_the_contract_holds_on_a_convolutional_network(method):
    """Batch normalisation, dropout and convolutions: all that the suite asks of a method."""
    checks = mw.checks.conformance(method, problem=mw.checks.example_problem())
    assert {check.name: check.detail for check in checks if not check.passed} == {}


def test_cuts_of_different_sizes_make_shares_that_add_up():
    """MAC: the shares sum to E at the coordinates, which the Z-step has lowered from the forward pass's task loss."""
    x, y = rows()
    for cuts in (("0",), ("0", "1"), ("0.0", "0", "1")):
        model = seeded(perceptron)
        shown = trainer(model, cuts, x, MAC(mu=5.0, weight_rate=1e-9)).step(x, y)
        assert all(float(shown[part]) >= 0 for part in shown)
        assert float(sum(shown.values())) < float(F.cross_entropy(model(x), y).detach())
        assert list(shown) == list(range(len(cuts) + 1))
