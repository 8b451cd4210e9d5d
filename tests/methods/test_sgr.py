"""SGR: the distance of two gradients, against plain torch and a literal loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import modulewise as mw
from modulewise import losses
from modulewise.methods import DGL, SGR

CLASSES = 3
PARTS = ("0", "1")


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Sequential(nn.Linear(5, 8), nn.Tanh()), nn.Sequential(nn.Linear(8, 6), nn.Tanh()), nn.Linear(6, CLASSES)
    ).double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(7, 5, generator=generator, dtype=torch.float64), torch.arange(7) % CLASSES


def trainer_of(method: mw.PartwiseMethod) -> mw.Trainer:
    partition = mw.Partition(network(), cuts=PARTS, example=batch()[0])
    return mw.Trainer(partition, method, loss=F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.5))


def test_gradient_distance_is_the_literal_mean_over_samples():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 3, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    literal = 0.0
    for n in range(4):
        for u, v in zip(a[n].flatten().tolist(), b[n].flatten().tolist(), strict=True):
            literal += (4 * u - 4 * v) ** 2 / 4
    assert losses.gradient_distance(a, b).item() == pytest.approx(literal, rel=1e-12)


def test_gradients_of_two_boundaries_are_refused():
    with pytest.raises(mw.errors.MethodError, match="one boundary"):
        losses.gradient_distance(torch.zeros(2, 3), torch.zeros(2, 4))


def test_updates_are_those_of_the_formula_in_plain_torch():
    """The gradient sent up is of the loss alone, and counts as a constant; the second derivative is taken."""
    (x, y), trainer, weight = batch(), trainer_of(SGR(CLASSES, weight=0.7, head=mw.heads.linear)), 0.7
    heads = [objective.inner.head for objective in trainer.objectives[:-1]]
    model = network()
    h, sent, expected = x, None, []
    for k, part in enumerate(model):
        h_in = h.detach().requires_grad_()
        h = part(h_in)
        own = F.cross_entropy(heads[k](h) if k < 2 else h, y)
        total = own
        if sent is not None:
            (gradient,) = torch.autograd.grad(own, h_in, create_graph=True)
            total = own + weight * len(x) * (gradient - sent).square().sum()
        if k < 2:
            (sent,) = torch.autograd.grad(own, h, retain_graph=True)
        expected += [
            p - 0.5 * g
            for p, g in zip(part.parameters(), torch.autograd.grad(total, list(part.parameters())), strict=True)
        ]
    trainer.step(x, y)
    for p, q in zip(trainer.partition.model.parameters(), expected, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)


def test_agreeing_neighbours_take_the_steps_of_backpropagation():
    """Part 1 is the identity with the same head: its gradient at h_0 is the one part 0 has, so nothing is added."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, CLASSES)).double()
    x, y = batch()
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(4))
    partition = mw.Partition(model, cuts=PARTS, example=x)
    updates = []
    for method in (SGR(CLASSES, weight=5.0, head=mw.heads.linear), DGL(CLASSES, head=mw.heads.linear)):
        trainer = mw.Trainer(partition, method, loss=F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
        with torch.no_grad():
            for p, q in zip(trainer.objectives[1].parameters(), trainer.objectives[0].parameters(), strict=True):
                p.copy_(q)
            if updates:  # the two trainers' heads, made alike
                for objective, (w, b) in zip(trainer.objectives[:2], [updates[0][0]] * 2, strict=True):
                    for p, q in zip(objective.parameters(), (w, b), strict=True):
                        p.copy_(q)
        heads = [p.clone() for p in trainer.objectives[0].parameters()]
        start = {name: p.clone() for name, p in model.named_parameters()}
        trainer.step(x, y)
        updates.append((heads, model[1].weight.detach().clone()))
        model.load_state_dict(start)
    torch.testing.assert_close(updates[0][1], updates[1][1], rtol=1e-12, atol=1e-14)


def test_the_shown_loss_is_the_part_s_own():
    x, y = batch()
    shown = trainer_of(SGR(CLASSES, weight=100.0, head=mw.heads.linear)).step(x, y)
    plain = trainer_of(DGL(CLASSES, head=mw.heads.linear)).step(x, y)
    assert shown[1].item() == pytest.approx(plain[1].item(), rel=1e-12)


def test_the_audit_sees_messages_upwards_and_nothing_coming_down():
    trainer = trainer_of(SGR(CLASSES, head=mw.heads.linear))
    report = mw.checks.locality(trainer, *batch())
    assert report.ok, report
    assert report.observed is mw.Reach.PORT
    assert {pair for pair in report.influence if pair[0] > pair[1]} == set()
    assert (0, 1) in report.influence


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_weight_that_is_not_positive_is_refused(weight):
    with pytest.raises(mw.errors.MethodError, match="DGL"):
        SGR(CLASSES, weight=weight)


def test_the_sequential_schedule_is_refused_before_training():
    trainer = trainer_of(SGR(CLASSES, head=mw.heads.linear))
    with pytest.raises(mw.errors.MethodError, match="same step"):
        trainer.fit([batch()], epochs=1, schedule=mw.schedules.sequential)
    assert trainer.steps == 0
