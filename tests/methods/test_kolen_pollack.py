"""Kolen-Pollack through the trainer: B - W shrinks by exactly 1 - lr decay, whatever the errors, slices or clipping."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from driven import RATE, Y, backward_by, close, convolutional, images, moves, perceptron, rows, same, state, trainer
from torch import Tensor, nn

import modulewise as mw
from modulewise.checks import feedback_angles
from modulewise.errors import MethodError
from modulewise.objective import Role

M = mw.methods
DECAY = 0.3


def pairs(trained: mw.Trainer) -> dict[str, tuple[Tensor, Tensor]]:
    """Every layer's W and B, copied."""
    found = {}
    for objective in trained.objectives:
        for key, b in objective.feedback.items():
            name = key.removeprefix("/").replace("/", ".")
            w = trained.partition.model.get_submodule(name).weight
            found[name] = (w.detach().clone(), b.detach().clone())
    return found


def apart(trained: mw.Trainer) -> dict[str, float]:
    return {name: float((b - w).norm()) for name, (w, b) in pairs(trained).items()}


@pytest.mark.parametrize("settings", [{}, {"accumulate": 3}], ids=str)
@pytest.mark.parametrize(("make", "inputs"), [(perceptron, rows), (convolutional, images)])
def test_the_distance_shrinks_by_one_minus_rate_times_decay_in_every_step(make, inputs, settings):
    """In float64, to round-off, for every layer and step, while the errors go where they like."""
    trained = trainer(M.KolenPollack(decay=DECAY), make(), **settings)
    distances = [apart(trained)]
    for step in range(6):
        trained.step(inputs(step), Y)
        distances.append(apart(trained))
    assert len(distances[0]) == 4
    for before, after in pairwise(distances):
        for name in before:
            assert after[name] == pytest.approx((1 - RATE * DECAY) * before[name], rel=1e-12)


def test_a_step_is_the_literal_backward_with_b_plus_decay_for_both():
    trained, twin = trainer(M.KolenPollack(decay=DECAY)), perceptron()
    before = pairs(trained)
    found = moves(trained, rows())
    after = pairs(trained)
    literal = backward_by(twin, rows(), Y, {name: b for name, (_, b) in before.items()})
    expected = {
        name: g + DECAY * before[name.removesuffix(".weight")][0] if name.endswith("weight") else g
        for name, g in literal.items()
    }
    close(found, expected)
    of_feedback = {name: (before[name][1] - b) / RATE for name, (_, b) in after.items()}
    close(of_feedback, {name: literal[f"{name}.weight"] + DECAY * b for name, (_, b) in before.items()})


@pytest.mark.parametrize("settings", [{"clip_norm": 0.05}, {"clip_norm": 0.05, "accumulate": 2}], ids=str)
def test_clipping_shrinks_by_one_factor_for_all_layers(settings):
    """All parts and roles are clipped together: 1 - c lr decay with the same c <= 1 everywhere."""
    trained = trainer(M.KolenPollack(decay=DECAY), **settings)
    for step in range(3):
        before = apart(trained)
        trained.step(rows(step), Y)
        factors = [after / before[name] for name, after in apart(trained).items()]
        assert max(factors) - min(factors) < 1e-12
        assert 1 - RATE * DECAY < factors[0] < 1


def test_a_gradient_scaler_keeps_the_increments_equal():
    trained = trainer(M.KolenPollack(decay=DECAY), perceptron().float(), precision=torch.float16)
    before = apart(trained)
    trained.step(rows().float(), Y)
    for name, after in apart(trained).items():
        assert after == pytest.approx((1 - RATE * DECAY) * before[name], rel=1e-4)


def test_momentum_keeps_the_distance_free_of_the_errors():
    """D_t of heavy ball on decay/2 ||D||^2, computed by itself: v <- 0.9 v + decay D, D <- D - lr v."""

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=RATE, momentum=0.9)

    trained = trainer(M.KolenPollack(decay=DECAY), optimizer=optimizer)
    apart_by = {name: b - w for name, (w, b) in pairs(trained).items()}
    velocity = {name: torch.zeros_like(d) for name, d in apart_by.items()}
    for step in range(5):
        trained.step(rows(step), Y)
        for name, (w, b) in pairs(trained).items():
            velocity[name] = 0.9 * velocity[name] + DECAY * apart_by[name]
            apart_by[name] = apart_by[name] - RATE * velocity[name]
            assert torch.allclose(b - w, apart_by[name], rtol=1e-11, atol=1e-13)


def test_the_angle_of_every_layer_falls_while_weights_are_trained():
    trained = trainer(M.KolenPollack(decay=0.01, scale=0.5), optimizer=lambda p: torch.optim.SGD(p, lr=0.3))
    angles = [feedback_angles(trained)]
    for _ in range(3):
        for step in range(50):
            x = rows(step % 8)
            trained.step(x, x[:, :3].argmax(1))
        angles.append(feedback_angles(trained))
    for name in angles[0]:
        assert angles[0][name] > angles[1][name] > angles[2][name] > angles[3][name]
        assert angles[3][name] < 0.5 * angles[0][name]


def test_feedback_weights_are_parameters_of_their_own_role_saved_with_the_heads(tmp_path):
    roles: list[tuple[int, Role, int]] = []

    def optimizer(parameters: Any, *, part: int, role: Role) -> torch.optim.Optimizer:
        roles.append((part, role, len(list(parameters))))
        return torch.optim.SGD(parameters, lr=RATE, momentum=0.5)

    first, second = (trainer(M.KolenPollack(), optimizer=optimizer) for _ in range(2))
    first.step(rows(), Y)
    assert sorted((part, count) for part, role, count in roles if role is Role.FEEDBACK) == [(0, 1), (1, 2), (2, 1)]
    first.save(tmp_path)
    second.load(tmp_path)
    for trained in (first, second):
        trained.step(rows(1), Y)
    assert same(state(first), state(second))
    assert "feedback./1/2" in first.objectives[1].state_dict()


def test_a_frozen_weight_and_its_feedback_stay():
    model = perceptron()
    model[1][0].weight.requires_grad_(False)
    trained = trainer(M.KolenPollack(decay=DECAY), model)
    before = pairs(trained)
    trained.step(rows(), Y)
    after = pairs(trained)
    assert all(torch.equal(a, b) for a, b in zip(before["1.0"], after["1.0"], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before["1.2"], after["1.2"], strict=True))


def test_layers_that_share_a_weight_have_a_feedback_each_that_follows_it():
    model = seeded_shared()
    trained = trainer(M.KolenPollack(decay=DECAY), model)
    before = apart(trained)
    trained.step(rows(), Y)
    assert len(before) == 4
    for name, after in apart(trained).items():
        assert after == pytest.approx((1 - RATE * DECAY) * before[name], rel=1e-12)


def seeded_shared() -> nn.Sequential:
    """The perceptron, its middle part with two layers of one weight."""
    model = perceptron()
    torch.manual_seed(0)
    model[1] = nn.Sequential(nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, 5)).double()
    model[1][2].weight = model[1][0].weight
    model[1] = model[1][:4]
    model[2] = nn.Linear(7, 3).double()
    return model


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_weight_that_a_hook_computes_is_refused_by_name():
    model = perceptron()
    nn.utils.weight_norm(model[1][0])
    with pytest.raises(MethodError, match=r"layer '1\.0' in part 1 is computed by a hook"):
        trainer(M.KolenPollack(), model)


@pytest.mark.parametrize("wrong", [{"decay": 0.0}, {"decay": math.nan}, {"decay": -0.1}, {"scale": 0.0}], ids=str)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(MethodError, match="give both above 0"):
        M.KolenPollack(**wrong)


def test_a_part_without_layers_is_refused():
    with pytest.raises(MethodError, match="KolenPollack changes linear layers and convolutions, and part 1 has none"):
        trainer(M.KolenPollack(), nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3)).double())
