"""The weight mirror through the trainer: one step literally, angles that fall, the same noise after a restart."""

from __future__ import annotations

import math

import pytest
import torch
from driven import Y, backward_by, close, convolutional, images, moves, perceptron, rows, same, state, trainer
from torch import nn

import modulewise as mw
from modulewise.checks import feedback_angles
from modulewise.errors import MethodError
from modulewise.seeding import seed_of, set_generators

M = mw.methods


def test_a_step_is_the_literal_backward_with_b_and_then_the_literal_mirror():
    """B <- (1 - decay) B + rate 1/n sum_n y_n xi_n^T, the noise drawn from (seed, step, part), W before its update."""
    trained, twin = trainer(M.WeightMirror(rate=0.2, decay=0.1, samples=3), seed=5), perceptron()
    trained.step(rows(), Y)
    twin.load_state_dict(trained.partition.model.state_dict())
    before = [{name: b.clone() for name, b in o.rule.state_dict().items()} for o in trained.objectives]
    found = moves(trained, rows(1))
    close(found, backward_by(twin, rows(1), Y, {name: b for held in before for name, b in held.items()}))
    for part, held in enumerate(before):
        with torch.random.fork_rng(devices=[]):
            set_generators(seed_of(5, 1, part, "rule"))
            for name, b in held.items():
                w = twin.get_submodule(name).weight.detach()
                noise = torch.empty(3, w.shape[1], dtype=torch.float64).normal_()
                expected = 0.9 * b
                for xi in noise:
                    for o in range(w.shape[0]):
                        y = sum(float(w[o, i]) * float(xi[i]) for i in range(w.shape[1]))
                        expected[o] += 0.2 * y * xi / 3
                now = trained.objectives[part].rule.state_dict()[name]
                assert torch.allclose(now, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("make", "inputs"), [(perceptron, rows), (convolutional, images)])
def test_the_angle_of_every_layer_falls_while_weights_are_trained(make, inputs):
    trained = trainer(M.WeightMirror(rate=0.05, samples=100), make())
    angles = [feedback_angles(trained)]
    for _ in range(2):
        for step in range(60):
            trained.step(inputs(step % 4), Y)
        angles.append(feedback_angles(trained))
    for name in angles[0]:
        assert angles[0][name] > 50
        assert angles[1][name] < angles[0][name] / 3, name
        assert angles[2][name] < 10, name


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"clip_norm": 0.1}, {"precision": torch.float16}], ids=str)
def test_saved_and_resumed_it_goes_on_bit_for_bit(settings, tmp_path):
    model = lambda: perceptron().float()  # noqa: E731
    first, second = (trainer(M.WeightMirror(rate=0.1, samples=4), model(), **settings) for _ in range(2))
    first.step(rows().float(), Y)
    first.save(tmp_path)
    second.load(tmp_path)
    torch.manual_seed(99)
    for trained in (first, second):
        trained.step(rows(1).float(), Y)
        trained.step(rows(2).float(), Y)
    assert same(state(first), state(second))


def test_slices_of_a_batch_mirror_once():
    """Noise is that of the step, whatever it is called; the weights move as with the whole batch."""
    whole, sliced = trainer(M.WeightMirror(rate=0.1)), trainer(M.WeightMirror(rate=0.1), accumulate=4)
    for trained in (whole, sliced):
        trained.step(rows(), Y)
    for p, q in zip(sliced.partition.model.parameters(), whole.partition.model.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-11, atol=1e-14)
    start = trainer(M.WeightMirror(rate=0.1))
    for name, w in ((n, m.weight.detach()) for n, m in perceptron().named_modules() if isinstance(m, nn.Linear)):
        part = int(name[0])
        rule, fresh = sliced.objectives[part].rule, start.objectives[part].rule
        b = fresh.weight(name, start.partition.model.get_submodule(name))
        moved = (rule.state_dict()[name] - 0.9 * b) / 0.1
        assert ((moved - w).abs() < 6 * ((w.square().sum(1, keepdim=True) + w.square()) / 128).sqrt()).all()


@pytest.mark.parametrize(
    "wrong",
    [{"rate": 0.0}, {"rate": math.nan}, {"rate": 1.0}, {"decay": 1.0}, {"decay": -0.1}, {"samples": 0}, {"scale": 0.0}],
    ids=str,
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(MethodError, match="give rate and scale above 0"):
        M.WeightMirror(**wrong)


def test_a_part_without_layers_is_refused():
    with pytest.raises(MethodError, match="WeightMirror changes linear layers and convolutions, and part 1 has none"):
        trainer(M.WeightMirror(), nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3)).double())
