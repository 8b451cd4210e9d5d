"""Gauss-Newton targets against explicit Jacobians, pseudo-inverses, inverse images and the gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from reconstruction_chains import (
    activations,
    batch,
    chain,
    close,
    damped_inverse,
    output_move,
    step,
    trainer_of,
    weight,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import modulewise as mw
from modulewise.errors import MethodError
from modulewise.method import Reach
from modulewise.methods.targets.gauss_newton_solver import gauss_newton_step, jacobians

Method = mw.methods.GaussNewtonTargets


def targets(trainer, x, y):
    """The target of every part before the last in one step."""
    return {k: trainer.objectives[k].target(context) for k, context in step(trainer, x, y).items() if k < 3}


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_targets_are_per_sample_pseudo_inverses_of_explicit_jacobians(damping):
    model, (x, y) = chain(8, 7, 6, 5, 3, activation=nn.Tanh), batch()
    found = targets(trainer_of(model, Method(step_size=0.4, damping=damping), x), x, y)
    hs = activations(model, x)
    move = output_move(hs[-1], y, 0.4)
    for k in range(3):
        for n in range(len(x)):
            jacobian = torch.autograd.functional.jacobian(model[k + 1 :], hs[k][n])
            expected = hs[k][n] + damped_inverse(jacobian, damping) @ move[n]
            assert close(found[k][n] - hs[k][n], expected - hs[k][n], 1e-9)


def test_jacobians_are_the_finite_differences():
    model, (x, _) = chain(8, 7, 5, 3, activation=nn.Tanh), batch()
    found = jacobians(model, x)
    assert found.shape == (12, 3, 8)
    with torch.no_grad():
        for i in range(8):
            moved = torch.zeros_like(x)
            moved[:, i] = 1e-5
            difference = (model(x + moved) - model(x - moved)) / 2e-5
            assert (found[:, :, i] - difference).abs().max() <= 1e-8
    assert not found.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_a_counter_of_operations_may_watch_the_modules():
    model, (x, _) = chain(8, 7, 5, 3, activation=nn.Tanh), batch()
    plain = jacobians(model, x)
    with FlopCounterMode(display=False) as counter:
        watched = jacobians(model, x)
    assert torch.equal(watched, plain)
    assert counter.get_total_flops() > 0


def test_images_and_several_elements_of_output_are_flattened():
    conv = nn.Conv2d(2, 3, 3, stride=2).double()
    h = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    found = jacobians(conv, h)
    expected = torch.stack([torch.autograd.functional.jacobian(conv, image).reshape(12, 50) for image in h])
    assert close(found, expected.detach())


def test_a_step_reaches_the_outputs_target_where_the_map_is_linear():
    jacobian, move = torch.randn(5, 3, 7).double(), torch.randn(5, 3).double()
    found = gauss_newton_step(jacobian, move, damping=0.0)
    assert close(torch.einsum("nmf,nf->nm", jacobian, found), move, 1e-9)
    loop = torch.stack([damped_inverse(j, 0.2) @ m for j, m in zip(jacobian, move, strict=True)])
    assert close(gauss_newton_step(jacobian, move, damping=0.2), loop)


def test_with_invertible_parts_targets_are_inverse_images():
    """Target propagation in closed form: t_{k-1} = f_k^{-1}(t_k), from the output's target down."""
    model, (x, y) = chain(8, 4, 4, 4, 4), batch(classes=4)
    found = targets(trainer_of(model, Method(step_size=0.4, damping=0.0), x), x, y)
    hs = activations(model, x)
    target = hs[-1] + output_move(hs[-1], y, 0.4)
    for k in (2, 1, 0):
        linear = model[k + 1] if k == 2 else model[k + 1][0]
        target = (target - linear.bias.detach()) @ torch.linalg.inv(weight(linear)).T
        assert close(found[k], target, 1e-8)


def test_with_much_damping_parts_follow_their_true_gradient():
    """t - h -> -step N dL/dh / damping: the update is backpropagation's times 2 step / damping."""
    model, (x, y) = chain(8, 7, 6, 5, 3, activation=nn.Tanh), batch()
    F.cross_entropy(model(x), y).backward()
    expected = [p.grad.clone() for p in model[:3].parameters()]
    before = [p.detach().clone() for p in model[:3].parameters()]
    model.zero_grad(set_to_none=True)
    trainer = trainer_of(model, Method(step_size=0.5, damping=1e6), x, lr=1e6)
    trainer.step(x, y)
    for p, old, gradient in zip(model[:3].parameters(), before, expected, strict=True):
        assert close(old - p.detach(), gradient, 1e-4)


def test_jacobians_are_those_of_the_forward_passs_weights():
    """Later parts learn before the part does; its target is made of what they were."""
    model, (x, y) = chain(8, 7, 6, 5, 3, activation=nn.Tanh), batch()
    still, learning = (trainer_of(model, Method(), x, lr=lr) for lr in (0.0, 0.3))
    first, second = targets(still, x, y), targets(learning, x, y)
    assert all(torch.equal(first[k], second[k]) for k in range(3))


class Noisy(nn.Sequential):
    """Parts with batch normalisation and dropout above the first."""

    def __init__(self):
        torch.manual_seed(0)
        middle = nn.Sequential(nn.Linear(7, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.4))
        super().__init__(nn.Linear(8, 7), middle, nn.Sequential(nn.Dropout(0.3), nn.Linear(6, 3)))
        self.double()


@pytest.mark.parametrize("method", [Method(), mw.methods.DirectDTP(outputs=3)], ids=lambda m: m.name)
def test_running_ahead_draws_as_the_forward_did_and_leaves_buffers_alone(method):
    model, plain, (x, y) = Noisy(), Noisy(), batch()
    trainer = trainer_of(model, method, x)
    ahead = {}
    rehearsed = trainer.objectives[0].rehearsed

    def look(context):
        ahead["output"] = context.ahead(context.h_out).detach()
        return rehearsed(context)

    trainer.objectives[0].__dict__["rehearsed"] = look
    seen = step(trainer, x, y)
    assert torch.equal(ahead["output"], seen[2].h_out.detach())
    plain(x)
    for (name, buffer), expected in zip(model.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(buffer, expected), name


def test_one_part_is_plain_training():
    model, (x, y) = chain(8, 3), batch()
    F.cross_entropy(model(x), y).backward()
    expected = [p.detach() - p.grad for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    trainer_of(model, Method(), x, lr=1.0).step(x, y)
    assert all(torch.equal(p, e) for p, e in zip(model.parameters(), expected, strict=True))


def test_every_part_keeps_learning_under_accumulation_and_recomputation():
    """Slices and recomputation inside parts change nothing but rounding."""
    (x, y), states = batch(), []
    for settings in ({}, {"accumulate": 3}, {"recompute": True}):
        model = chain(8, 7, 6, 5, 3, activation=nn.Tanh)
        trainer = trainer_of(model, Method(damping=0.1), x, lr=0.1, **settings)
        trainer.step(x, y)
        states.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert close(states[1], states[0])
    assert close(states[2], states[0])


@pytest.mark.parametrize(
    "given", [{"step_size": 0.0}, {"step_size": float("nan")}, {"damping": -1.0}, {"damping": float("nan")}], ids=str
)
def test_arguments_out_of_range_are_refused(given):
    with pytest.raises(MethodError, match="give step_size > 0 and damping >= 0"):
        Method(**given)


def test_the_chain_rule_through_all_later_parts_is_declared():
    assert Method().locality.reach is Reach.GLOBAL
