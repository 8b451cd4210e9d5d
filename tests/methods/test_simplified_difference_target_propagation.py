"""SDTP and AO-SDTP: the difference rule from the label down against literal loops; no gradient crosses a cut."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from target_networks import captured, half_squared_error, literal_map, network, rows, trained
from torch import Tensor, nn

import modulewise as mw
from modulewise.errors import MethodError
from modulewise.method import Family, Locality, Reach

M = mw.methods
SDTP = M.SimplifiedDTP(outputs=3)
AO = M.AuxiliaryOutputSDTP(outputs=3, auxiliary=4)


def literal_softmax(output: Tensor) -> Tensor:
    made = []
    for row in output.tolist():
        total = sum(math.exp(v) for v in row)
        made.append([math.exp(v) / total for v in row])
    return torch.tensor(made, dtype=torch.float64)


def literal_features(weight: Tensor, h: Tensor) -> Tensor:
    made = [
        [math.tanh(sum(w * v for w, v in zip(ws, row, strict=True))) for ws in weight.tolist()] for row in h.tolist()
    ]
    return torch.tensor(made, dtype=torch.float64)


@pytest.mark.parametrize("method", [SDTP, AO], ids=["SDTP", "AO-SDTP"])
@pytest.mark.parametrize("labels", ["classes", "values", "distributions"])
def test_targets_are_the_difference_rule_from_the_label_down(method, labels):
    """t_{k-1} = h_{k-1} + g_k(t_k) - g_k(h_k) at all parts, number by number; for AO-SDTP g_K reads z as well."""
    x, y = rows()
    expected_top = F.one_hot(y, 3).double()
    loss = F.cross_entropy
    if labels == "values":
        y = expected_top = torch.randn(8, 3, dtype=torch.float64)
        loss = half_squared_error
    elif labels == "distributions":
        y = expected_top = torch.rand(8, 3, dtype=torch.float64).softmax(1)
        method = type(method)(**{**vars(method), "distribution": True})
    trainer = trained(method, loss=loss)
    before, objectives = copy.deepcopy(trainer.partition.model), [copy.deepcopy(o) for o in trainer.objectives]
    targets = captured(trainer, x, y)
    hs = [before[0](x)]
    hs += [before[1](hs[0])]
    hs += [before[2](hs[1])]
    output = before[3](hs[2]).detach()
    top = output if labels == "values" else literal_softmax(output)
    wanted = expected_top
    if isinstance(method, M.AuxiliaryOutputSDTP):
        z = literal_features(objectives[3].target.weight, hs[2])
        top, wanted = torch.cat([top, z], 1), torch.cat([wanted, z], 1)
    read = [None, hs[1].detach(), hs[2].detach(), top]
    for k in (3, 2, 1):
        layers = objectives[k].inverse.layers
        wanted = hs[k - 1].detach() + literal_map(layers, wanted) - literal_map(layers, read[k])
        assert torch.allclose(targets[k - 1], wanted, rtol=1e-10, atol=1e-13)


class Closed(torch.autograd.Function):
    """Passes forward; any gradient that would go back through it is an error."""

    @staticmethod
    def forward(ctx, h):
        return h.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise AssertionError("a gradient crosses the cut")


class Gate(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return Closed.apply(h)


def gated() -> nn.Module:
    parts = list(network())
    return nn.Sequential(*parts[:3], nn.Sequential(Gate(), parts[3])).double()


@pytest.mark.parametrize("rounds", [0, 2])
@pytest.mark.parametrize("kind", [M.SimplifiedDTP, M.AuxiliaryOutputSDTP])
def test_no_gradient_of_the_last_part_crosses_the_cut(kind, rounds):
    """Behind a gate that lets no gradient through training goes on, and every parameter moves; DTP meets the gate."""
    x, y = rows()
    trainer = trained(kind(outputs=3, rounds=rounds), model=gated(), lr=0.1)
    before = [p.detach().clone() for p in trainer.partition.model.parameters()]
    trainer.step(x, y)
    assert not any(torch.equal(a, b) for a, b in zip(before, trainer.partition.model.parameters(), strict=True))
    with pytest.raises(AssertionError, match="a gradient crosses the cut"):
        trained(M.DifferenceTargetPropagation(), model=gated()).step(x, y)


@pytest.mark.parametrize("method", [SDTP, AO], ids=["SDTP", "AO-SDTP"])
def test_every_part_but_the_first_has_an_inverse_that_learns(method):
    x, y = rows()
    trainer = trained(method, lr=0.1)
    before = [[p.detach().clone() for p in o.parameters()] for o in trainer.objectives]
    assert [len(b) > 0 for b in before] == [False, True, True, True]
    trainer.step(x, y)
    for old, objective in zip(before, trainer.objectives, strict=True):
        assert not any(torch.equal(a, b) for a, b in zip(old, objective.parameters(), strict=True))


@pytest.mark.parametrize("method", [SDTP, AO], ids=["SDTP", "AO-SDTP"])
def test_the_last_inverse_is_taught_what_it_is_asked(method):
    """Its loss is 1/N sum ||g(softmax(o(h + e)), z(h + e)) - (h + e)||^2, with the draws of the step, in loops."""
    x, y = rows()
    trainer = trained(type(method)(**{**vars(method), "rounds": 1}))
    model, objective = trainer.partition.model, trainer.objectives[3]
    h_in = model[:3](x).detach()
    context = mw.Context(h_in, model[3](h_in), x, y, 1, 3, 0, run=model[3])
    torch.manual_seed(4)
    found = objective.rehearse(context).loss
    torch.manual_seed(4)
    corrupted = h_in + 0.36 * torch.randn_like(h_in)
    read = literal_softmax(model[3](corrupted).detach())
    if method is AO:
        read = torch.cat([read, literal_features(objective.target.weight, corrupted)], 1)
    back = literal_map(objective.inverse.layers, read)
    total = sum((a - b) ** 2 for n in range(8) for a, b in zip(back[n].tolist(), corrupted[n].tolist(), strict=True))
    assert found.item() == pytest.approx(total / 8, rel=1e-12)
    found.backward()
    assert all(p.grad is None for p in model.parameters())


def test_the_last_part_is_shown_and_trained_by_the_task_loss_alone():
    x, y = rows()
    trainer = trained(SDTP)
    model = copy.deepcopy(trainer.partition.model)
    h_in = model[:3](x).detach()
    loss = F.cross_entropy(model[3](h_in), y)
    expected = torch.autograd.grad(loss, list(model[3].parameters()))
    shown = trainer.step(x, y)
    assert shown[3].item() == loss.item()
    for p, old, g in zip(trainer.partition.model[3].parameters(), model[3].parameters(), expected, strict=True):
        assert torch.allclose(p, old - g, rtol=1e-13, atol=1e-15)


def test_auxiliary_outputs_tell_inputs_of_a_class_apart():
    """With one output for all, SDTP moves all inputs of a class alike; the random features tell them apart."""
    for method in (SDTP, AO):
        trainer = trained(method)
        x, y = rows()
        model = trainer.partition.model
        nn.init.zeros_(model[3].weight)
        h = model[:3](x).detach()
        moves = captured(trainer, x, y)[2] - h
        alike = [torch.allclose(moves[i], moves[j]) for i in range(8) for j in range(i) if y[i] == y[j]]
        assert alike == [method is SDTP] * len(alike)


def test_where_the_label_is_reached_nothing_is_asked_below():
    """Where the output is reached, o = label, nothing is asked below, whatever z and the inverse are."""
    trainer = trained(AO, loss=half_squared_error)
    x, _ = rows()
    model = trainer.partition.model
    y = model(x).detach()
    hs = [model[0](x).detach(), model[:2](x).detach(), model[:3](x).detach()]
    targets = captured(trainer, x, y)
    for k in range(3):
        assert torch.allclose(targets[k], hs[k], rtol=1e-12, atol=1e-14)


def test_random_features_are_fixed_and_kept_in_checkpoints():
    trainer = trained(AO)
    name = "target.weight"
    before = trainer.objectives[3].state_dict()[name].clone()
    assert before.shape == (4, 4)
    trainer.step(*rows())
    assert torch.equal(before, trainer.objectives[3].state_dict()[name])


@pytest.mark.parametrize("kind", [M.SimplifiedDTP, M.AuxiliaryOutputSDTP])
@pytest.mark.parametrize(
    "arguments",
    [{"outputs": 0}, {"noise": -0.1}, {"noise": float("nan")}, {"width": 0}, {"rounds": -1}],
    ids=str,
)
def test_arguments_out_of_range_are_refused(kind, arguments):
    with pytest.raises(MethodError, match="give outputs >= 1"):
        kind(**{"outputs": 3, **arguments})


def test_no_random_feature_is_refused():
    with pytest.raises(MethodError, match="auxiliary >= 1"):
        M.AuxiliaryOutputSDTP(outputs=3, auxiliary=0)


@pytest.mark.parametrize("method", [SDTP, AO], ids=["SDTP", "AO-SDTP"])
def test_name_family_and_locality(method):
    assert method.name == ("sdtp" if method is SDTP else "ao-sdtp")
    assert method.family is Family.TARGETS
    assert method.locality == Locality(Reach.TARGETS)
