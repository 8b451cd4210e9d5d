"""Critic training: an exact critic is backpropagation, another one the literal update; the loss of single samples."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from exact_chains import CLASSES, Others, batch, chain, close, moves, snapshot, train_alike, trainer
from hand_driving import drive, objectives_of, sites
from torch import Tensor, nn

from modulewise.errors import MethodError
from modulewise.losses import classification
from modulewise.methods import Backprop, CriticTraining
from modulewise.methods.gradients.critic_training import critic_loss
from modulewise.methods.gradients.loss_critics import LossCritic
from modulewise.methods.gradients.sample_losses import sample_losses
from modulewise.partition.boundary import Boundary


class ExactCritic(nn.Module):
    """The loss of every sample, by a copy of the rest of the network."""

    def __init__(self, rest: Others) -> None:
        super().__init__()
        self.rest = rest

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.rest(h), y, reduction="none")


def test_an_exact_critic_gives_backpropagation():
    def method(model: nn.Sequential, followers: list[Others]) -> CriticTraining:
        def critic(site):
            followers.append(Others(model, range(site.part + 1, site.parts)))
            return ExactCritic(followers[-1])

        return CriticTraining(critic=critic)

    ours, plain, *_ = train_alike(method, Backprop(), n=7)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert close(a, b, relative=1e-14)


class LinearCritic(nn.Module):
    """w . h + v_y."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(features, dtype=torch.float64))
        self.v = nn.Parameter(torch.randn(CLASSES, dtype=torch.float64))

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        return h @ self.w + self.v[y]


def test_a_step_is_the_literal_update():
    """Every part follows w / N; every critic, whichever part it sits on, learns the same true losses of samples."""
    model, (x, y) = chain(), batch()
    ours = trainer(model, CriticTraining(critic=lambda site: LinearCritic(site.boundary.features)), x, own=0.1)
    layers = [model[0][0], model[1][0], model[2]]
    before = snapshot(model), [snapshot(o.critic) for o in ours.objectives[:2]]
    weights = [torch.zeros_like(layer.weight) for layer in layers[:2]]
    critics = [{"w": torch.zeros_like(b["w"]), "v": torch.zeros_like(b["v"])} for b in before[1]]
    n = len(x)
    with torch.no_grad():
        for sample in range(n):
            h = [x[sample]]
            for layer in layers[:2]:
                h.append(torch.tanh(layer.weight @ h[-1] + layer.bias))
            loss = -torch.log_softmax(layers[2].weight @ h[-1] + layers[2].bias, 0)[y[sample]]
            for k in range(2):
                w, v = before[1][k]["w"], before[1][k]["v"]
                weights[k] += torch.outer((1 - h[k + 1] ** 2) * w / n, h[k])
                error = 2 * (w @ h[k + 1] + v[y[sample]] - loss) / n
                critics[k]["w"] += error * h[k + 1]
                critics[k]["v"][y[sample]] += error
    ours.step(x, y)
    moved = moves(model, before[0])
    for k in range(2):
        assert close(moved[f"{k}.0.weight"], -0.5 * weights[k])
        own = moves(ours.objectives[k].critic, before[1][k])
        assert close(own["w"], -0.1 * critics[k]["w"])
        assert close(own["v"], -0.1 * critics[k]["v"])


def test_only_the_last_part_sends_and_only_the_losses_of_samples():
    parts, (x, y) = list(chain()), batch()
    method = CriticTraining(classes=CLASSES, width=4)
    done = drive(parts, objectives_of(method, sites(parts, x, F.cross_entropy)), x, y)
    assert [sorted(done.messages[k]) for k in range(3)] == [[], [], [0, 1]]
    logits = parts[2](parts[1](parts[0](x))).detach()
    assert torch.allclose(done.messages[2][0], F.cross_entropy(logits, y, reduction="none"), rtol=1e-12)


def test_the_last_part_alone_learns_at_first():
    """The read-out is zero, and so is the gradient of the guess."""
    model, (x, y) = chain(), batch()
    before = snapshot(model)
    trainer(model, CriticTraining(classes=CLASSES, width=4), x).step(x, y)
    assert {name for name, move in moves(model, before).items() if move.any()} == {"2.weight", "2.bias"}


@pytest.mark.parametrize(
    ("shape", "axis", "labels"),
    [
        ((4, 6), 1, ()),
        ((4, 5, 6), -1, ()),
        ((4, 5, 6), -1, (5,)),
        ((4, 6, 5), 1, ()),
        ((4, 6, 8, 9), 1, ()),
        ((4, 6, 8, 9), 1, (8, 9)),
        ((4, 8, 9, 6), -1, ()),
    ],
)
def test_default_critics_fit_every_layout_and_see_labels(shape, axis, labels):
    torch.manual_seed(0)
    critic = LossCritic(Boundary("cut", shape, torch.float32, axis), classes=3, width=8)
    h, y = torch.randn(2, *shape[1:]), torch.zeros(2, *labels, dtype=torch.long)
    assert torch.equal(critic(h, y), torch.zeros(2))
    nn.init.normal_(critic.last.weight)
    assert critic(h, y).shape == (2,)
    assert not torch.allclose(critic(h, y), critic(h, y + 1))
    assert not torch.allclose(critic(h, y), critic(2 * h, y))


def test_the_critic_loss_is_the_loop():
    guess, losses = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    total = sum((a - b) ** 2 / 5 for a, b in zip(guess.tolist(), losses.tolist(), strict=True))
    assert critic_loss(guess, losses).item() == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("shape", [(5, 1), (), (4,)])
def test_a_critic_that_does_not_give_one_number_a_sample_is_refused(shape):
    with pytest.raises(MethodError, match="one guess a sample"):
        critic_loss(torch.zeros(shape), torch.zeros(5))


@pytest.mark.parametrize(
    ("loss", "output", "y"),
    [
        (classification, (5, 3), torch.arange(5) % 3),
        (classification, (5, 4, 3), torch.arange(20).reshape(5, 4) % 3),
        (F.mse_loss, (5, 3), torch.randn(5, 3, dtype=torch.float64)),
        (nn.CrossEntropyLoss(label_smoothing=0.1), (5, 3), torch.arange(5) % 3),
    ],
)
def test_losses_of_samples_are_the_loop_over_batches_of_one_with_gradients(loss, output, y):
    out = torch.randn(output, dtype=torch.float64, requires_grad=True)
    found = sample_losses(loss, out, y)
    expected = torch.stack([loss(out[n : n + 1], y[n : n + 1]) for n in range(5)])
    assert torch.allclose(found, expected, rtol=1e-12)
    weights = torch.randn(5, dtype=torch.float64)
    (a,) = torch.autograd.grad((found * weights).sum(), out)
    (b,) = torch.autograd.grad((expected * weights).sum(), out)
    assert close(a, b)


def test_losses_of_samples_are_taken_of_outputs_in_containers():
    def loss(output: dict[str, Tensor], y: Tensor) -> Tensor:
        return F.cross_entropy(output["logits"], y)

    logits, y = torch.randn(4, 3), torch.arange(4) % 3
    assert torch.allclose(sample_losses(loss, {"logits": logits}, y), F.cross_entropy(logits, y, reduction="none"))


@pytest.mark.parametrize(
    "loss",
    [
        lambda output, y: output.square().mean() if output.sum() > 0 else output.mean(),
        lambda output, y: F.cross_entropy(output, y, reduction="none"),
        lambda output, y: output.reshape(4, 3).mean(),
    ],
)
def test_a_loss_that_cannot_be_taken_sample_by_sample_is_refused(loss):
    with pytest.raises(MethodError, match=r"single samples|one sample"):
        sample_losses(loss, torch.randn(4, 3), torch.arange(4) % 3)


def test_bad_hyper_parameters_are_refused():
    with pytest.raises(MethodError, match="labelled=True was given with classes=None"):
        CriticTraining()
    with pytest.raises(MethodError, match="width=0"):
        CriticTraining(classes=3, width=0)
