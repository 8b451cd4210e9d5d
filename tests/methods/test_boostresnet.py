"""BoostResNet: the objective against the paper's formula, and what a sequence of modules adds up to."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import modulewise as mw
from modulewise import heads, losses, schedules
from modulewise.errors import DataError, MethodError, NonFiniteLossError
from modulewise.methods import BoostResNet
from modulewise.methods.objectives import TaskLoss
from modulewise.objective import Context, Site
from modulewise.partition.boundary import Boundary

Y = torch.tensor([0, 1, 0, 2])
BOUNDARIES = [
    Boundary("layer1", (4, 6, 4, 4), torch.float64),
    Boundary("stage1", (4, 4, 4, 6), torch.float64, -1),
    Boundary("encoder", (4, 5, 6), torch.float64, -1),
    Boundary("fc1", (4, 6), torch.float64),
]


def context(h, y=Y):
    return Context(h_in=None, h_out=h, x=None, y=y, views=1, part=0, step=0)


def site(boundary, *, part=0):
    return Site(part, 2, None, None if part == 1 else boundary, F.cross_entropy)


def pooled(h, boundary):
    """Features of the linear head by hand: a mean over tokens, means of the quarters of an image."""
    if h.dim() == 2:
        return [list(row) for row in h]
    if h.dim() == 3:
        return [[sum(sample[:, d]) / h.shape[1] for d in range(h.shape[2])] for sample in h]
    rows = []
    for sample in h if boundary.channel_axis == 1 else h.movedim(-1, 1):
        rows.append(
            [
                sum(channel[2 * i + a, 2 * j + b] for a in (0, 1) for b in (0, 1)) / 4
                for channel in sample
                for i in (0, 1)
                for j in (0, 1)
            ]
        )
    return rows


def literal(h, boundary, weight, bias, alpha, y):
    """mean_n sum_{c != y} exp(alpha (o_c - o_y)), o = softmax(W g + b), by loops."""
    total = 0.0
    for row, label in zip(pooled(h, boundary), y, strict=True):
        logits = [
            sum(w * v for w, v in zip(weights, row, strict=True)) + b for weights, b in zip(weight, bias, strict=True)
        ]
        whole = sum(torch.exp(v) for v in logits)
        o = [torch.exp(v) / whole for v in logits]
        total = total + sum(torch.exp(alpha * (o[c] - o[label])) for c in range(len(o)) if c != label)
    return total / len(y)


@pytest.mark.parametrize("boundary", BOUNDARIES, ids=lambda b: b.name)
def test_value_and_gradients_equal_the_formula_in_every_layout(boundary):
    torch.manual_seed(0)
    objective = BoostResNet(classes=3, alpha=1.7).objective(site(boundary))
    h = torch.randn(boundary.shape, dtype=torch.float64, requires_grad=True)
    (linear,) = [module for module in objective.modules() if isinstance(module, nn.Linear)]
    inputs = [h, linear.weight, linear.bias, objective.alpha]
    a = objective(context(h)).loss
    b = literal(h, boundary, linear.weight, linear.bias, objective.alpha, Y)
    assert list(map(id, objective.parameters())) == list(map(id, [objective.alpha, linear.weight, linear.bias]))
    for x, y in zip((a, *torch.autograd.grad(a, inputs)), (b, *torch.autograd.grad(b, inputs)), strict=True):
        assert y.abs().max() > 0
        tolerance = 1e-10 if y.dtype == torch.float64 else 1e-6  # alpha itself is a float32 number
        assert (x - y).abs().max() <= tolerance * y.abs().max()


def test_the_last_part_minimises_the_task_loss_and_has_no_parameters():
    objective = BoostResNet(classes=3).objective(site(BOUNDARIES[3], part=1))
    assert isinstance(objective, TaskLoss)
    assert not list(objective.parameters())
    output = torch.randn(4, 3)
    assert torch.equal(objective(context(output)).loss, F.cross_entropy(output, Y))


def test_descending_the_weight_alone_reaches_the_closed_form():
    """With o certain on three samples of four and wrong on one, the edge is 1/2 and alpha = ln(3) / 2."""
    boundary = Boundary("fc1", (4, 2), torch.float64)
    objective = BoostResNet(classes=2, head=lambda *_, **__: nn.Identity()).objective(site(boundary)).double()
    y = torch.tensor([0, 1, 1, 0])
    h = 50.0 * F.one_hot(torch.tensor([0, 1, 1, 1]), 2).double()
    optimizer = torch.optim.SGD([objective.alpha], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        objective(context(h, y)).loss.backward()
        optimizer.step()
    edge = losses.edge(objective.hypothesis(h), y, previous=torch.zeros(4, 2).double())
    assert edge.item() == pytest.approx(0.5)
    assert objective.alpha.item() == pytest.approx(0.5 * math.log((1 + 0.5) / (1 - 0.5)), rel=1e-6)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, width))

    def forward(self, g):
        return g + self.inner(g)


def residual_problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), Block(8), Block(8), nn.Linear(8, 3))
    x = torch.randn(96, 2)
    y = (x[:, 0] * x[:, 1] > 0).long() + (x.norm(dim=1) > 1.2).long()
    return model, x, y


def trained():
    model, x, y = residual_problem()
    partition = mw.Partition(model, cuts=["0", "1", "2"], example=x)
    trainer = mw.Trainer(
        partition,
        BoostResNet(classes=3),
        loss=F.cross_entropy,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.01),
    )
    trainer.fit([(x, y)], epochs=80, schedule=schedules.sequential)
    return trainer, x, y


def test_modules_trained_one_after_another_beat_guessing_where_the_one_before_errs():
    trainer, x, y = trained()
    previous, h, values = torch.zeros(len(y), 3), x, []
    with torch.no_grad():
        for part, objective in enumerate(trainer.objectives[:-1]):
            h = trainer.partition.part(part)(h)
            o = objective.hypothesis(h)
            assert losses.edge(o, y, previous=previous) > 0.05
            previous = objective.alpha * o
            values.append(losses.exponential_loss(previous, y).item())
    assert 2 > values[0] > 2 * values[1]  # 2 is guessing among three; the first residual block sees more than Linear
    assert trainer.objectives[1].alpha > 1


def test_a_step_is_gradient_descent_on_the_exponential_loss():
    model, x, y = residual_problem()
    partition = mw.Partition(model, cuts=["0"], example=x)
    trainer = mw.Trainer(
        partition, BoostResNet(classes=3), loss=F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=1.0)
    )
    head = trainer.objectives[0]
    before = model[0].weight.detach().clone().requires_grad_()
    scores = head.alpha * head.head(F.linear(x, before, model[0].bias)).softmax(1)
    loss = sum(math.e ** (scores[:, c] - scores.gather(1, y[:, None])[:, 0]) * (y != c) for c in range(3)).mean()
    (gradient,) = torch.autograd.grad(loss, before)
    reported = trainer.step(x, y)
    torch.testing.assert_close(model[0].weight, before - gradient)
    torch.testing.assert_close(reported[0], loss.detach())


def test_a_batch_of_one_sample_or_one_class_is_a_loss_like_any_other():
    objective = BoostResNet(classes=3).objective(site(BOUNDARIES[3]))
    h = torch.randn(4, 6, dtype=torch.float64)
    one = objective(context(h[:1], Y[:1])).loss
    assert torch.isfinite(one)
    assert one == objective(context(h[:1].repeat(4, 1), Y[:1].repeat(4))).loss


def test_features_of_zero_have_a_finite_loss_and_gradient():
    objective = BoostResNet(classes=3).objective(site(BOUNDARIES[3]))
    h = torch.zeros(4, 6, dtype=torch.float64, requires_grad=True)
    objective(context(h)).loss.backward()
    assert torch.isfinite(h.grad).all()


def test_the_trainer_refuses_what_is_not_finite_and_labels_beyond_the_classes():
    model, x, y = residual_problem()
    partition = mw.Partition(model, cuts=["0"], example=x)
    trainer = mw.Trainer(partition, BoostResNet(classes=3), loss=F.cross_entropy, optimizer=torch.optim.SGD)
    with pytest.raises(NonFiniteLossError):
        trainer.step(x * torch.nan, y)
    with pytest.raises(DataError):
        trainer.step(x, y + 1)


def test_numbers_out_of_range_and_labels_per_position_are_refused():
    for arguments in ({"classes": 1}, {"classes": 3, "alpha": 0.0}, {"classes": 3, "alpha": math.nan}):
        with pytest.raises(MethodError):
            BoostResNet(**arguments)
    objective = BoostResNet(classes=3, head=heads.linear).objective(site(BOUNDARIES[2]))
    with pytest.raises(MethodError, match="one integer class per sample"):
        objective(context(torch.zeros(4, 5, 6, dtype=torch.float64), torch.zeros(4, 5, dtype=torch.long)))
