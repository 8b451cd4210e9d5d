"""The solver of block coordinate descent: sweeps into the model's own weights, checkpoints, refusals."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import modulewise as mw
from modulewise.errors import CheckpointError, MethodError
from modulewise.method import Family, Locality, Reach, Solver, SolverMethod
from modulewise.methods import ADMM, DlADMM
from modulewise.methods.auxiliary import BCD, bcd_objective
from modulewise.methods.auxiliary.bcd_updates import Penalties, bcd_sweep
from modulewise.methods.auxiliary.blocks import initial_blocks
from modulewise.methods.auxiliary.linear_chain import linear_chain


def perceptron(*, bias: bool = True, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [("flat", nn.Flatten()), ("one", nn.Linear(6, 5, bias=bias)), ("relu", nn.ReLU())]
    layers += [("two", nn.Linear(5, 4, bias=bias)), ("relu2", nn.ReLU(inplace=True)), ("three", nn.Linear(4, 3))]
    return nn.Sequential(OrderedDict(layers)).to(dtype)


def stand_in(model: nn.Module, *groups: tuple[str, ...]) -> SimpleNamespace:
    """What the solver reads of a partition."""
    names = [name for name, _ in model.named_parameters()]
    groups = groups or (tuple(names),)
    return SimpleNamespace(
        model=model, parts=[SimpleNamespace(parameter_names=group, modules=list) for group in groups]
    )


def bound(model: nn.Module, *groups: tuple[str, ...], method: SolverMethod | None = None) -> Solver:
    return (method or BCD()).solver(stand_in(model, *groups), loss=F.cross_entropy, seed=0)


def batch(n: int = 12, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(n, 2, 3, dtype=dtype), torch.randint(0, 3, (n,))


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
        (nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)), "module '1' is a Tanh where .* expect a ReLU"),
        (nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), "module '1' is a Linear where .* expect a ReLU"),
        (nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(4, 3)), "module '1' is a ReLU where .* expect a Linear"),
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
    with pytest.raises(MethodError, match="give finite numbers above 0"):
        BCD(**{name: 0.0})


def test_family_and_locality():
    assert BCD().family is Family.AUXILIARY
    assert BCD().locality == Locality(Reach.TARGETS)


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), nn.Sequential(nn.Flatten(), nn.Linear(2, 3)))


def normalised() -> nn.Module:
    hidden = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU())
    return nn.Sequential(nn.Sequential(nn.Linear(9, 4), nn.ReLU()), hidden, nn.Linear(5, 3))


@pytest.mark.parametrize("method", [BCD(), ADMM(), DlADMM()], ids=lambda method: type(method).__name__)
@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (convolutional(), torch.zeros(2, 1, 3, 3), "part 0, module '0.0' is a Conv2d where .* expect a Linear"),
        (normalised(), torch.zeros(2, 9), "part 1, module '1.1' is a BatchNorm1d where .* expect a ReLU"),
    ],
)
def test_convolutions_and_batch_normalisation_are_refused_at_construction_by_part(method, model, x, message):
    partition = mw.Partition(model, cuts=("0",), example=x)
    with pytest.raises(MethodError, match=message):
        mw.Trainer(partition, method, loss=F.cross_entropy)


@pytest.mark.parametrize("method", [BCD(), ADMM(warm_start=0)], ids=lambda method: type(method).__name__)
def test_what_is_kept_of_the_input_is_forgotten_with_the_batch(method):
    """A solver that has stepped on one batch and then loads a state of another goes on as one that never saw it."""
    model, twin = perceptron(), perceptron()
    stepped, fresh = bound(model, method=method), bound(twin, method=method)
    state = bound(perceptron(), method=method)
    state.step(*batch(20), step=0)
    stepped.step(*batch(12), step=0)
    model.load_state_dict(twin.state_dict())
    for solver in (stepped, fresh):
        solver.load_state_dict(state.state_dict())
        solver.step(*batch(20), step=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_the_objective_never_rises_over_a_full_batch_sweep_in_the_trainer():
    """float64, to 1e-12 relative, over the whole of sixty sweeps."""
    x, y = batch(30)
    model = perceptron()
    trainer = mw.Trainer(mw.Partition(model, cuts=("relu",), example=x), BCD(), loss=F.cross_entropy)
    totals = [sum(trainer.step(x, y).values()).item() for _ in range(60)]
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(totals))
    assert totals[-1] < 0.5 * totals[0]
