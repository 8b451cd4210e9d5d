"""Local critic training: the rest of the network as critic is backpropagation, another one the literal cascade."""

from __future__ import annotations

import pytest
import torch
from exact_chains import CLASSES, Others, batch, chain, close, moves, snapshot, train_alike, trainer
from torch import Tensor, nn

from modulewise import heads
from modulewise.engine.exits import exits
from modulewise.errors import MethodError
from modulewise.methods import Backprop, LocalCritic
from modulewise.methods.gradients.local_critic import cascade_loss
from modulewise.partition.boundary import Boundary


def test_the_rest_of_the_network_as_critic_gives_backpropagation_bit_for_bit():
    def method(model: nn.Sequential, followers: list[Others]) -> LocalCritic:
        def head(boundary: Boundary, outputs: int, *, dense: bool = False) -> nn.Module:
            del outputs, dense
            followers.append(Others(model, range(int(boundary.name) + 1, len(model))))
            return followers[-1]

        return LocalCritic(classes=CLASSES, head=head)

    ours, plain, *_ = train_alike(method, Backprop(), n=7)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))


def linear(boundary: Boundary, outputs: int, *, dense: bool = False) -> nn.Module:
    del dense
    return nn.Linear(boundary.features, outputs, bias=False).double()


def gradient_of_loss(logits: Tensor, label: int) -> Tensor:
    return torch.softmax(logits, 0) - torch.eye(CLASSES, dtype=logits.dtype)[label]


def test_a_step_is_the_literal_cascade():
    """Parts follow their own critic's loss, critics the sign of L_n - L'_n with L' of the critic or loss one up."""
    model, (x, y) = chain(), batch(9)
    ours = trainer(model, LocalCritic(classes=CLASSES, head=linear), x, own=0.1)
    layers = [model[0][0], model[1][0], model[2]]
    critics = [o.critic.weight.detach().clone() for o in ours.objectives[:2]]
    n, weights, own = len(x), [torch.zeros_like(m.weight) for m in layers[:2]], [torch.zeros_like(c) for c in critics]
    signs = []
    with torch.no_grad():
        for sample, label in enumerate(y.tolist()):
            h = [x[sample]]
            for layer in layers[:2]:
                h.append(torch.tanh(layer.weight @ h[-1] + layer.bias))
            logits = [critics[0] @ h[1], critics[1] @ h[2], layers[2].weight @ h[2] + layers[2].bias]
            losses = [-torch.log_softmax(z, 0)[label] for z in logits]
            for k in range(2):
                error = gradient_of_loss(logits[k], label) / n
                weights[k] += torch.outer((1 - h[k + 1] ** 2) * (critics[k].T @ error), h[k])
                signs.append(1.0 if losses[k] > losses[k + 1] else -1.0)
                own[k] += signs[-1] * torch.outer(error, h[k + 1])
    assert len(set(signs)) == 2
    before = snapshot(model)
    ours.step(x, y)
    moved = moves(model, before)
    for k in range(2):
        assert close(moved[f"{k}.0.weight"], -0.5 * weights[k])
        assert close(ours.objectives[k].critic.weight.detach() - critics[k], -0.1 * own[k])


def test_critics_learn_in_every_third_step_and_parts_in_every_step():
    model = chain()
    ours = trainer(model, LocalCritic(classes=CLASSES, head=linear, every=3), batch()[0])
    critics, parts = [], []
    for step in range(5):
        before = snapshot(model), snapshot(ours.objectives[0])
        ours.step(*batch(seed=step))
        critics.append(any(m.any() for m in moves(ours.objectives[0], before[1]).values()))
        parts.append(all(m.any() for m in moves(model, before[0]).values()))
    assert critics == [True, False, False, True, False]
    assert parts == [True] * 5


def test_critics_are_early_exits():
    model, (x, _) = chain(), batch()
    ours = trainer(model, LocalCritic(classes=CLASSES, head=linear), x)
    found = exits(ours.partition, ours.objectives, x)
    assert torch.equal(found[0], ours.objectives[0].critic(model[0](x)))
    assert sorted(found) == [0, 1, 2]


def test_the_cascade_loss_is_the_loop_over_samples():
    a, b = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    assert cascade_loss(a, b).item() == pytest.approx(sum(abs(u - v) for u, v in zip(a, b, strict=True)).item() / 5)


def test_the_published_critic_is_a_convolution_and_a_linear_layer():
    critic = heads.conv(Boundary("cut", (2, 4, 8, 8)), 10)
    assert [type(m).__name__ for m in critic.modules() if isinstance(m, nn.Conv2d | nn.Linear)] == ["Conv2d", "Linear"]


@pytest.mark.parametrize("fields", [{"classes": 0}, {"classes": 3, "every": 0}, {"classes": 3, "every": float("nan")}])
def test_bad_hyper_parameters_are_refused(fields):
    with pytest.raises(MethodError, match="give 1 or more of both"):
        LocalCritic(**fields)
