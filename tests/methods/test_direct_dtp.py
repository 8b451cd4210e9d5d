"""Direct DTP against literal loops, closed-form minimisers and exact Gauss-Newton targets."""

from __future__ import annotations

import pytest
import torch
from reconstruction_chains import (
    activations,
    batch,
    chain,
    close,
    damped_inverse,
    jacobian_above,
    output_move,
    step,
    trainer_of,
    weight,
    whitened,
)
from torch import nn

import modulewise as mw
from modulewise.errors import MethodError
from modulewise.methods.targets import DirectFeedback
from modulewise.objective import Role

Method = mw.methods.DirectDTP
ALL = pytest.mark.parametrize("feedback", list(DirectFeedback), ids=str)


def nonlinear():
    return chain(8, 7, 6, 5, 3, activation=nn.Tanh), *batch()


def squares(u, v):
    return sum((a - b) ** 2 for a, b in zip(u.tolist(), v.tolist(), strict=True))


@ALL
def test_the_loss_is_the_literal_loop(feedback, monkeypatch):
    """Sample by sample: the corrupted activation up to the output, features of it, and back through Q."""
    noises, signals, draw = {}, {}, torch.randn_like
    model, x, y = nonlinear()
    trainer = trainer_of(model, Method(outputs=3, feedback=feedback, hidden=11, noise=0.2, decay=0.03), x)
    monkeypatch.setattr(torch, "randn_like", lambda h: noises.setdefault(h.shape[1], draw(h)))
    for k, objective in enumerate(trainer.objectives[:3]):
        rehearse = objective.rehearse
        objective.__dict__["rehearse"] = lambda c, k=k, f=rehearse: signals.setdefault(k, f(c))
    trainer.step(x, y)
    random = trainer.objectives[3].random
    hs = activations(model, x)

    def features(k, a):
        if feedback is not DirectFeedback.RANDOM_HIDDEN or k == 2:
            return a
        return torch.stack([torch.tanh(sum(r * v for r, v in zip(row, a, strict=True))) for row in random])

    with torch.no_grad():
        for k in range(3):
            back, total = trainer.objectives[k].back, 0.0
            for n in range(12):
                corrupted = hs[k][n] + 0.2 * noises[hs[k].shape[1]][n]
                there = features(k, model[k + 1 :](corrupted))
                if feedback is DirectFeedback.CONTROL:
                    total += squares(back.weight @ there + back.bias, corrupted) / 12
                else:
                    returned = hs[k][n] + back.weight @ there - back.weight @ features(k, hs[3][n])
                    total += squares(returned, corrupted) / 0.04 / 12
            total += 0.03 * sum(v**2 for v in back.weight.flatten().tolist())
            assert signals[k].loss.item() == pytest.approx(total, rel=1e-10)


@ALL
def test_targets_are_the_literal_formula(feedback):
    """h + Q phi(a_target) - Q phi(a), with one R for all parts; the part below the last always takes a itself."""
    model, x, y = nonlinear()
    trainer = trainer_of(model, Method(outputs=3, feedback=feedback, hidden=11, step_size=0.4), x)
    seen = step(trainer, x, y)
    hs = activations(model, x)
    random = trainer.objectives[3].random
    target = hs[3] + output_move(hs[3], y, 0.4)
    hidden = feedback is DirectFeedback.RANDOM_HIDDEN
    assert random.shape == ((11, 3) if hidden else (0, 3))
    for k in range(3):
        objective = trainer.objectives[k]
        q, expected = objective.back.weight.detach(), []
        for n in range(12):
            there, here = (target[n], hs[3][n])
            if hidden and k < 2:
                there, here = torch.tanh(random @ there), torch.tanh(random @ here)
            expected.append(hs[k][n] + q @ there - q @ here)
        expected = torch.stack(expected)
        assert close(objective.target(seen[k]) - hs[k], expected - hs[k])
        loss = sum(squares(a, b) for a, b in zip(hs[k], expected, strict=True)) / 12
        assert objective(seen[k]).loss.item() == pytest.approx(loss, rel=1e-10)


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_training_reaches_the_pseudo_inverse_damped_by_the_decay(decay, monkeypatch):
    monkeypatch.setattr(torch, "randn_like", whitened)
    model, (x, y) = chain(8, 7, 6, 4, 3), batch()
    trainer = trainer_of(model, Method(outputs=3, decay=decay, rounds=150), x, feedback_lr=0.15)
    trainer.step(x, y)
    for k in range(3):
        assert close(weight(trainer.objectives[k].back), damped_inverse(jacobian_above(model, k), decay), 1e-8)


def test_trained_on_drawn_noise_it_comes_near():
    """500 samples a round, 120 rounds with a falling rate: within some percent."""
    model, (x, y) = chain(8, 7, 4, 3), batch(n=500)
    method = Method(outputs=3, decay=0.5, noise=0.05, rounds=40)
    trainer = trainer_of(model, method, x, feedback_lr=0.1)
    for lr in (0.1, 0.03, 0.01):
        for (_, role), optimizer in trainer.updater.optimizers.items():
            optimizer.param_groups[0]["lr"] = lr if role is Role.FEEDBACK else 0.0
        trainer.step(x, y)
    for k in range(2):
        assert close(weight(trainer.objectives[k].back), damped_inverse(jacobian_above(model, k), 0.5), 0.03)


@pytest.mark.parametrize("damping", [1.0, 0.03])
def test_at_the_minimum_it_is_gauss_newton_with_the_decay_for_damping(damping):
    """On linear parts: equal targets and, after a step, equal parameters."""
    (x, y), models, trainers = batch(), [chain(8, 7, 6, 4, 3) for _ in range(2)], []
    for model, method in zip(
        models,
        (
            Method(outputs=3, step_size=0.4, decay=damping),
            mw.methods.GaussNewtonTargets(step_size=0.4, damping=damping),
        ),
        strict=True,
    ):
        trainers.append(trainer_of(model, method, x, lr=0.5))
    with torch.no_grad():
        for k in range(3):
            trainers[0].objectives[k].back.weight.copy_(damped_inverse(jacobian_above(models[0], k), damping))
    first, second = (step(trainer, x, y) for trainer in trainers)
    start = chain(8, 7, 6, 4, 3)
    hs = activations(start, x)
    for k in range(3):
        a, b = (
            trainer.objectives[k].target(seen[k]) - hs[k]
            for trainer, seen in zip(trainers, (first, second), strict=True)
        )
        assert close(a, b, 1e-8)
    for p, q, old in zip(models[0].parameters(), models[1].parameters(), start.parameters(), strict=True):
        assert close(p.detach() - old.detach(), q.detach() - old.detach(), 1e-8)


def test_the_controls_feedback_learns_the_regression_of_activations_on_outputs(monkeypatch):
    """Ridge regression with an intercept that is not penalised, of h~ on a~, in closed form."""
    noise = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    monkeypatch.setattr(torch, "randn_like", lambda h: noise)
    model, (x, y) = chain(8, 4, 3), batch()
    method = Method(outputs=3, feedback=DirectFeedback.CONTROL, decay=0.3, noise=0.5, rounds=400)
    trainer = trainer_of(model, method, x, feedback_lr=0.08)
    trainer.step(x, y)
    corrupted = activations(model, x)[0] + 0.5 * noise
    with torch.no_grad():
        a = model[1](corrupted)
    centred, moved = corrupted - corrupted.mean(0), a - a.mean(0)
    q = torch.linalg.solve(moved.T @ moved / 12 + 0.3 * torch.eye(3).double(), moved.T @ centred / 12).T
    back = trainer.objectives[0].back
    assert close(back.weight.detach(), q, 1e-8)
    assert close(back.bias.detach(), corrupted.mean(0) - q @ a.mean(0), 1e-8)


@ALL
def test_feedback_alone_learns_in_the_feedback_phase(feedback):
    """The random projection is no parameter; Q moves by its own rate while parts stand still."""
    model, x, y = nonlinear()
    trainer = trainer_of(model, Method(outputs=3, feedback=feedback, hidden=11), x, feedback_lr=0.01)
    before = {k: weight(trainer.objectives[k].back).clone() for k in range(3)}
    random = trainer.objectives[3].random.clone()
    parts = [p.detach().clone() for p in model.parameters()]
    trainer.step(x, y)
    assert all(not torch.equal(before[k], weight(trainer.objectives[k].back)) for k in range(3))
    assert torch.equal(random, trainer.objectives[3].random)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), parts, strict=True))
    assert [list(o.parameters()) == [] for o in trainer.objectives] == [False, False, False, True]


def test_with_a_random_hidden_layer_it_meets_the_contract():
    """The contract suite runs every method with its defaults; this variant alone has state in the last part."""
    method = Method(outputs=3, feedback=DirectFeedback.RANDOM_HIDDEN, hidden=11)
    assert [check for check in mw.checks.conformance(method) if not check.passed] == []


@pytest.mark.parametrize(
    "given",
    [
        {"outputs": 0},
        {"hidden": 0},
        {"step_size": 0.0},
        {"step_size": float("nan")},
        {"decay": float("nan")},
        {"warmup": -1},
        {"feedback": "linear"},
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused(given):
    with pytest.raises(MethodError, match="given"):
        Method(**{"outputs": 3, **given})
