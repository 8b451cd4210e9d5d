"""The difference reconstruction loss against loops and its minimiser in closed form; the output's step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from reconstruction_chains import batch, close, damped_inverse, output_move, whitened
from torch import nn

from modulewise.errors import MethodError
from modulewise.methods.targets.difference_reconstruction import (
    FeedbackTraining,
    difference_reconstruction_loss,
    flattened_output,
    output_step,
    squared_weights,
)


def test_the_loss_is_the_loop():
    a, b = torch.randn(2, 4, 3, 2, dtype=torch.float64)
    total = 0.0
    for n in range(4):
        for i in range(3):
            for j in range(2):
                total += (a[n, i, j].item() - b[n, i, j].item()) ** 2 / (0.3 * 0.3) / 4
    assert difference_reconstruction_loss(a, b, noise=0.3).item() == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("damping", [0.7, 1e-2])
@pytest.mark.parametrize("noise", [1.0, 0.01])
def test_the_least_loss_is_at_the_pseudo_inverse_damped_by_the_decay(damping, noise):
    """The normal equations of the loss, written by autograd and solved, whatever the noise's size."""
    torch.manual_seed(0)
    jacobian, h = torch.randn(3, 6, dtype=torch.float64), torch.randn(20, 6, dtype=torch.float64)
    corrupted = h + noise * whitened(h)

    def loss(flat):
        q = flat.reshape(6, 3)
        returned = h + (corrupted @ jacobian.T) @ q.T - (h @ jacobian.T) @ q.T
        return difference_reconstruction_loss(returned, corrupted, noise=noise) + damping * (q**2).sum()

    start = torch.zeros(18, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(loss, start)
    slope = torch.autograd.functional.jacobian(loss, start)
    least = torch.linalg.solve(hessian, -slope).reshape(6, 3)
    assert close(least, damped_inverse(jacobian, damping))


def test_undivided_by_the_noise_the_damping_is_the_decay_over_its_variance():
    torch.manual_seed(0)
    jacobian, h, noise, decay = torch.randn(3, 6).double(), torch.randn(20, 6).double(), 0.2, 0.05
    corrupted = h + noise * whitened(h)
    moved = (corrupted - h) @ jacobian.T
    least = (corrupted - h).T @ moved @ torch.linalg.inv(moved.T @ moved + decay * len(h) * torch.eye(3).double())
    assert close(least, damped_inverse(jacobian, decay / noise**2))


def test_weights_are_squared_and_biases_are_not():
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(4, 5)).double()
    total = sum(v**2 for p in (module[0].weight, module[1].weight) for v in p.flatten().tolist())
    assert squared_weights(module).item() == pytest.approx(total, rel=1e-12)
    assert squared_weights(nn.Identity()).item() == 0


def test_the_outputs_step_is_on_every_samples_own_loss():
    """Cross-entropy: -step (softmax - onehot), whatever the batch size; no graph of the output is used."""
    _, y = batch()
    a = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    found = output_step(F.cross_entropy, a, y, step_size=0.4)
    assert close(found, output_move(a.detach(), y, 0.4))
    assert not found.requires_grad
    assert a.grad is None
    assert close(output_step(F.cross_entropy, a[:1], y[:1], step_size=0.4), found[:1])


def test_an_output_of_another_size_or_kind_is_refused():
    with pytest.raises(MethodError, match="outputs=4 was given and a sample of the model's output has 3 elements"):
        flattened_output(torch.zeros(2, 3), outputs=4)
    assert flattened_output(SimpleNamespace(logits=torch.zeros(2, 3, 2)), outputs=6).shape == (2, 6)


@pytest.mark.parametrize(
    "given",
    [{"noise": 0.0}, {"noise": float("nan")}, {"decay": -1.0}, {"decay": float("nan")}, {"rounds": 0}, {"warmup": -1}],
    ids=str,
)
def test_training_out_of_range_is_refused(given):
    with pytest.raises(MethodError, match="give noise > 0, decay >= 0, rounds >= 1 and warmup >= 0"):
        FeedbackTraining(**{"noise": 0.1, "decay": 0.0, "rounds": 1, "warmup": 0, **given})
