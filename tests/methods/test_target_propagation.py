"""Target propagation against literal loops and closed forms, and learning in turns against learning side by side."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from target_networks import Exact, captured, half_squared_error, learn, literal_map, network, rows, trained, updates
from torch import Tensor, nn

import modulewise as mw
from modulewise.errors import MethodError
from modulewise.methods.objectives import output_tensor
from modulewise.methods.targets.inverses import TransposedFeedback, last_activation
from modulewise.methods.targets.output_targets import class_axis, label_distribution
from modulewise.partition.boundary import Boundary

M = mw.methods


def test_targets_are_the_inverses_of_the_targets_above_element_by_element():
    """t_2 = h - step N dL/dh by autograd; t_1 = g_2(t_2), t_0 = g_1(t_1), as Python loops over float64 numbers."""
    trainer = trained(M.TargetPropagation(step_size=0.4))
    x, y = rows()
    model, inverses = copy.deepcopy(trainer.partition.model), [copy.deepcopy(o) for o in trainer.objectives]
    targets = captured(trainer, x, y)
    h2 = model[2](model[1](model[0](x))).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model[3](h2), y), h2)
    t2 = h2.detach() - 0.4 * len(x) * gradient
    t1 = literal_map(inverses[2].inverse.layers, t2)
    t0 = literal_map(inverses[1].inverse.layers, t1)
    for found, expected in zip((targets[2], targets[1], targets[0]), (t2, t1, t0), strict=True):
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-13)


def test_with_a_label_the_first_target_is_the_last_inverse_of_the_one_hot_label():
    """Element by element; and one class has one target, the instability that the difference rule corrects."""
    trainer = trained(M.TargetPropagation(labelled=True, outputs=3))
    x, y = rows()
    last = copy.deepcopy(trainer.objectives[3])
    targets = captured(trainer, x, y)
    expected = literal_map(last.inverse.layers, F.one_hot(y, 3).double())
    assert torch.allclose(targets[2], expected, rtol=1e-10, atol=1e-13)
    for target in targets.values():
        assert all(torch.allclose(target[i], target[j]) for i in range(8) for j in range(8) if y[i] == y[j])
        assert not torch.allclose(target[0], target[1])


def test_with_floating_labels_the_first_target_is_the_last_inverse_of_the_label():
    trainer = trained(M.TargetPropagation(labelled=True, outputs=3), loss=half_squared_error)
    x, y = rows()[0], torch.randn(8, 3, dtype=torch.float64)
    last = copy.deepcopy(trainer.objectives[3])
    assert torch.allclose(captured(trainer, x, y)[2], literal_map(last.inverse.layers, y), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("rounds", [0, 2])
def test_with_exact_inverses_it_is_difference_target_propagation(rounds):
    """t = g(t') and h + g(t') - g(h') are one where g(h') = h: targets in closed form, and equal updates."""
    moved, targets = [], {}
    for kind in (M.TargetPropagation, M.DifferenceTargetPropagation):
        model = network(widths=(6, 5, 5, 5), activation=nn.Identity)
        x, y = rows()
        parts = list(model)
        with torch.no_grad():
            h2 = parts[2](parts[1](parts[0](x)))
            t2 = h2 - 0.3 * (parts[3](h2).softmax(1) - F.one_hot(y, 3)) @ parts[3].weight
            t1 = (t2 - parts[2][0].bias) @ parts[2][0].weight.inverse().T
            t0 = (t1 - parts[1][0].bias) @ parts[1][0].weight.inverse().T
        method = kind(step_size=0.3, rounds=rounds, inverse=lambda site, parts=parts: Exact(parts[site.part][0]))
        trainer = trained(method, model=model)
        targets = captured(trainer, x, y)
        for found, expected in zip((targets[2], targets[1], targets[0]), (t2, t1, t0), strict=True):
            assert torch.allclose(found, expected, rtol=1e-9, atol=1e-11)
        moved.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(moved[0], moved[1], rtol=1e-9, atol=1e-11)


def reconstruct(part: nn.Module, inverse: nn.Module, h: Tensor, count: int) -> nn.Module:
    """An inverse after `count` gradient steps of length 0.1 on mean ||g(f(h)) - h||^2, in plain torch."""
    inverse = copy.deepcopy(inverse)
    optimizer = torch.optim.SGD(inverse.parameters(), lr=0.1)
    for _ in range(count):
        optimizer.zero_grad()
        ((inverse(part(h).detach()) - h) ** 2).sum(1).mean().backward()
        optimizer.step()
    return inverse


METHODS = {
    "TP": M.TargetPropagation(noise=0.0),
    "DTP": M.DifferenceTargetPropagation(noise=0.0),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_in_turns_targets_come_from_inverses_that_have_learned_on_the_batch(name, rounds):
    """`rounds` updates by hand before the targets; with 0 rounds the inverse of before, and one update beside them."""
    method = METHODS[name].__class__(noise=0.0, rounds=rounds)
    model = network()
    trainer = trained(method, model=model, lr=0.1)
    x, y = rows()
    before, started = copy.deepcopy(model), [copy.deepcopy(o) for o in trainer.objectives]
    targets = captured(trainer, x, y)
    hs = [before[0](x).detach()]
    hs += [before[1](hs[0]).detach(), None]
    hs[2] = before[2](hs[1]).detach()
    leaf = hs[2].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(before[3](leaf), y), leaf)
    target = hs[2] - method.step_size * len(x) * gradient
    assert torch.allclose(targets[2], target, rtol=1e-12, atol=1e-14)
    for k in (2, 1):
        taught = reconstruct(before[k], started[k].inverse, hs[k - 1], rounds)
        with torch.no_grad():
            back = taught(target)
            target = back if name == "TP" else hs[k - 1] + back - taught(hs[k])
        assert torch.allclose(targets[k - 1], target, rtol=1e-12, atol=1e-14)
        final = reconstruct(before[k], started[k].inverse, hs[k - 1], max(rounds, 1))
        for a, b in zip(trainer.objectives[k].inverse.parameters(), final.parameters(), strict=True):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)


def test_in_turns_the_parts_follow_their_targets_alone():
    """The update of a part is that of ||h - t||^2, t from the inverses of after the feedback phase."""
    model = network()
    trainer = trained(M.DifferenceTargetPropagation(rounds=2), model=model, lr=0.1)
    x, y = rows()
    before = copy.deepcopy(model)
    targets = captured(trainer, x, y)
    h_in = x
    for k in range(3):
        h = before[k](h_in.detach())
        ((h - targets[k]) ** 2).sum(1).mean().backward()
        for p, after in zip(before[k].parameters(), model[k].parameters(), strict=True):
            assert torch.allclose(after, p - 0.1 * p.grad, rtol=1e-12, atol=1e-14)
        h_in = h


def test_an_inverse_is_taught_on_corrupted_inputs_of_the_given_spread():
    """The literal loss with the very draws of the step: 1/N sum ||g(f(h + e)) - (h + e)||^2."""
    trainer = trained(M.TargetPropagation(noise=0.3, rounds=1))
    x, _ = rows()
    model, objective = trainer.partition.model, trainer.objectives[1]
    h_in = model[0](x).detach()
    fixed = mw.Context(h_in, model[1](h_in), x, None, 1, 1, 0, run=model[1])
    torch.manual_seed(4)
    found = objective.rehearse(fixed).loss
    torch.manual_seed(4)
    corrupted = h_in + 0.3 * torch.randn_like(h_in)
    back = literal_map(objective.inverse.layers, model[1](corrupted).detach())
    total = sum((a - b) ** 2 for n in range(8) for a, b in zip(back[n].tolist(), corrupted[n].tolist(), strict=True))
    assert found.item() == pytest.approx(total / 8, rel=1e-12)
    found.backward()
    assert all(p.grad is None for p in model.parameters())


class Step(nn.Module):
    """A function without a slope, as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, h: Tensor) -> Tensor:
        return self.function(h)


def stepping(*, to_the_end: bool) -> nn.Module:
    """Sign in the second part and, where no gradient of the last part is needed, rounding in the last."""
    torch.manual_seed(5)
    last = [Step(lambda h: (4 * h).round() / 4)] if to_the_end else []
    return nn.Sequential(
        nn.Sequential(nn.Linear(20, 4), nn.Tanh()),
        nn.Sequential(Step(torch.sign), nn.Linear(4, 16), nn.Tanh()),
        nn.Sequential(*last, nn.Linear(16, 3)),
    )


@pytest.mark.parametrize(
    "method",
    [
        M.DifferenceTargetPropagation(step_size=0.2),
        M.DifferenceTargetPropagation(step_size=0.2, rounds=1),
        M.SimplifiedDTP(outputs=3),
        M.AuxiliaryOutputSDTP(outputs=3, auxiliary=16),
        M.LocalDRL(outputs=3, rounds=2),
        M.FixedWeightDTP(outputs=3, step_size=0.5),
    ],
    ids=lambda m: f"{type(m).__name__}-{getattr(m, 'rounds', 0)}",
)
def test_parts_below_a_step_function_learn(method):
    """Sign and rounding inside later parts stop every gradient; targets pass: the first part moves, and it helps."""
    torch.manual_seed(6)
    x = torch.randn(200, 20)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    correct = []
    for tried in (M.Backprop(), method):
        model = stepping(to_the_end=not isinstance(method, M.DifferenceTargetPropagation))
        partition = mw.Partition(model, cuts=["0", "1"], example=x)
        adam = lambda p: torch.optim.Adam(p, lr=0.02)  # noqa: E731
        trainer = mw.Trainer(partition, tried, loss=F.cross_entropy, optimizer=adam)
        before = model[0][0].weight.detach().clone()
        for _ in range(60):
            trainer.step(x, y)
        moved = not torch.equal(before, model[0][0].weight)
        assert moved == (tried is method), "backpropagation finds slope 0 and stays"
        correct.append((model(x).argmax(1) == y).float().mean().item())
    assert correct[1] > correct[0] + 0.05


def test_argmax_inside_a_later_part_is_passed_as_well():
    class Winner(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return F.one_hot(h.argmax(1), h.shape[1]).to(h.dtype)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Sequential(Winner(), nn.Linear(8, 3))).double()
    x, y = rows()
    trainer = trained(M.SimplifiedDTP(outputs=3), model=model, cuts=("0",))
    before = model[0].weight.detach().clone()
    trainer.step(x, y)
    assert not torch.equal(before, model[0].weight)


@pytest.mark.parametrize(
    "method",
    [
        M.TargetPropagation(),
        M.TargetPropagation(labelled=True, outputs=3),
        M.DifferenceTargetPropagation(rounds=2),
        M.SimplifiedDTP(outputs=3, rounds=1),
        M.AuxiliaryOutputSDTP(outputs=3),
        M.LocalDRL(outputs=3),
        M.FixedWeightDTP(outputs=3),
    ],
    ids=lambda m: type(m).__name__,
)
def test_one_part_is_plain_training(method):
    """No inverse is made, and the update is autograd's."""
    x, y = rows()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 3)).double()
    expected = updates(model, F.cross_entropy(model(x), y))
    trainer = trained(method, model=model, cuts=())
    assert not list(trainer.objectives[0].parameters())
    found = learn(trainer, x, y)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"step_size": 0.0}, "give step_size > 0"),
        ({"step_size": float("nan")}, "give step_size > 0"),
        ({"noise": -1.0}, "noise >= 0"),
        ({"noise": float("nan")}, "noise >= 0"),
        ({"width": 0}, "width >= 1 or None"),
        ({"outputs": 0}, "outputs >= 1"),
        ({"rounds": -1}, "rounds >= 0"),
        ({"labelled": True}, "give outputs"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, words):
    with pytest.raises(MethodError, match=words):
        M.TargetPropagation(**arguments)


def test_rounds_out_of_range_are_refused():
    with pytest.raises(MethodError, match="rounds >= 0"):
        M.DifferenceTargetPropagation(rounds=-1)


def test_label_distributions_follow_the_axis_of_the_classes():
    """(N, C, T) with (N, T), (N, T, C) with (N, T); -100 keeps the output's own distribution."""
    torch.manual_seed(0)
    y = torch.tensor([[0, 2, 1, 2], [-100, 1, 0, 0]])
    channels = torch.randn(2, 3, 4)
    found = label_distribution(channels, y)
    assert torch.allclose(found.movedim(1, -1), label_distribution(channels.movedim(1, -1), y))
    for n in range(2):
        for t in range(4):
            own = channels[n, :, t].softmax(0)
            expected = own if y[n, t] == -100 else torch.eye(3)[y[n, t]]
            assert torch.allclose(found[n, :, t], expected)
    with pytest.raises(MethodError, match=r"an output \(2, 3, 4\) and labels \(3,\)"):
        class_axis(channels, torch.zeros(3))


def test_outputs_that_do_not_fit_are_refused():
    x, y = rows()
    with pytest.raises(MethodError, match="a sample has 3 outputs, outputs=4 was given"):
        trained(M.TargetPropagation(labelled=True, outputs=4)).step(x, y)
    trainer = trained(M.TargetPropagation(labelled=True, outputs=3), loss=lambda o, y: o.square().mean())
    with pytest.raises(MethodError, match=r"labels \(8, 2\) were given, expected the same shape"):
        trainer.step(x, torch.zeros(8, 2, dtype=torch.float64))
    with pytest.raises(MethodError, match="labels were given as list"):
        trainer.step(x, [1, 2])
    with pytest.raises(MethodError, match="returned list"):
        output_tensor([1])


def test_feedback_uses_the_last_activation_of_its_part():
    part = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.LeakyReLU(0.3, inplace=True))
    found = last_activation([("fc", part)])
    assert repr(found) == "LeakyReLU(negative_slope=0.3)"
    assert isinstance(last_activation([("fc", nn.Linear(2, 2))]), nn.Identity)


@pytest.mark.parametrize(
    ("input", "output", "axes"),
    [
        ((4, 6), (4, 9), (1, 1)),
        ((4, 3, 8, 8), (4, 6, 4, 4), (1, 1)),
        ((4, 8, 8, 3), (4, 4, 4, 6), (-1, -1)),
        ((4, 5, 6), (4, 5, 8), (-1, -1)),
        ((4, 3, 4, 4), (4, 10), (1, 1)),
    ],
)
def test_feedback_maps_every_layout_back(input, output, axes):
    boundaries = Boundary("in", input, torch.float32, axes[0]), Boundary("out", output, torch.float32, axes[1])
    feedback = TransposedFeedback(*boundaries, modules=[("a", nn.Tanh())])
    h = torch.randn(4, *output[1:])
    assert feedback(h).shape == input
    assert not torch.equal(feedback(h), feedback(h + 1))
    assert torch.equal(feedback(torch.zeros_like(h)), torch.zeros(input)), "no bias, and tanh(0) = 0"
