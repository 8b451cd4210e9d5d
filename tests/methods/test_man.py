import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import modulewise as mw
from modulewise import heads, losses
from modulewise.errors import DataError, MethodError, NonFiniteLossError
from modulewise.heads.averaging import MomentumHead, averaged_copy, momentum_head
from modulewise.method import Reach
from modulewise.methods.objectives import TaskLoss
from modulewise.methods.proxy.man import MAN
from modulewise.objective import Context, Site
from modulewise.partition.boundary import Block, Boundary

IMAGE = Boundary("layer1", (4, 6, 8, 8))
IMAGE_LAST = Boundary("stage1", (4, 8, 8, 6), channel_axis=-1)
TOKENS = Boundary("encoder", (4, 5, 6), channel_axis=-1)
VECTOR = Boundary("fc1", (4, 6))
Y = torch.tensor([0, 1, 0, 2])


def convolution(boundary=IMAGE):
    return Block("next", nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()), boundary, boundary)


def site(boundary=IMAGE, block=None, *, part=0, parts=3):
    block = block or convolution()
    return Site(part, parts, None, None if part == parts - 1 else boundary, losses.classification, lambda: (block,))


def context(h, y=Y, step=0):
    return Context(h_in=None, h_out=h, x=None, y=y, views=1, part=0, step=step)


def linear_block(dtype=torch.float64):
    return Block("next", nn.Linear(6, 6, dtype=dtype), Boundary("fc1", (4, 6), dtype), Boundary("fc2", (4, 6), dtype))


@pytest.mark.parametrize("learned_scale", [True, False])
def test_the_logits_are_those_of_the_weighted_sum_of_two_copies(learned_scale):
    block = linear_block()
    method = MAN(3, head=heads.linear, momentum=0.9, learned_scale=learned_scale)
    objective = method.objective(site(block.input, block))
    live, h = block.module, torch.randn(4, 6, dtype=torch.float64)
    average = live.weight.detach().clone(), live.bias.detach().clone()
    s = 1.0
    if learned_scale:
        s = 0.75
        with torch.no_grad():
            objective.head.scale.fill_(s)
    for step in range(3):
        with torch.no_grad():
            live.weight.add_(torch.randn(6, 6))
            live.bias.add_(1.0)
        average = tuple(0.9 * a + 0.1 * w.detach() for a, w in zip(average, (live.weight, live.bias), strict=True))
        loss = objective(context(h, step=step)).loss
        learned, classifier = objective.head.learned, objective.head.classifier[-1]
        total = 0.0
        for n in range(4):
            mixed = [
                s * (learned.weight[i] @ h[n] + learned.bias[i]) + (2 - s) * (average[0][i] @ h[n] + average[1][i])
                for i in range(6)
            ]
            logits = classifier.weight @ torch.stack(mixed) + classifier.bias
            total = total + torch.log(torch.exp(logits).sum()) - logits[Y[n]]
        assert abs(loss - total / 4) <= 1e-10 * abs(total / 4)


@pytest.mark.parametrize(
    ("boundary", "block"),
    [
        (IMAGE, convolution()),
        (IMAGE_LAST, Block("next", nn.Linear(6, 9), IMAGE_LAST, Boundary("b", (4, 8, 8, 9), channel_axis=-1))),
        (TOKENS, Block("next", nn.TransformerEncoderLayer(6, 2, 12, 0.0, batch_first=True), TOKENS, TOKENS)),
        (VECTOR, Block("next", nn.Linear(6, 9), VECTOR, Boundary("fc2", (4, 9)))),
        (IMAGE, Block("next", nn.Linear(12, 9), Boundary("f", (4, 12)), Boundary("fc2", (4, 9)))),
    ],
    ids=["image", "channels last", "tokens", "vector", "another shape"],
)
def test_gradients_reach_part_and_head_in_every_layout_and_not_the_network_they_look_at(boundary, block):
    objective = MAN(3).objective(site(boundary, block))
    h = torch.randn(boundary.shape, requires_grad=True)
    objective(context(h)).loss.backward()
    assert h.grad.abs().sum() > 0
    assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)
    assert all(p.grad is None for p in block.module.parameters())


def test_gradient_passes_through_the_average_to_the_part():
    """With s = 0 only the average is left: y = 2 EMA(h)."""
    block = linear_block()
    objective = MAN(3, head=heads.linear, momentum=1.0).objective(site(block.input, block))
    with torch.no_grad():
        objective.head.scale.zero_()
    h = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    (through,) = torch.autograd.grad(objective(context(h)).loss, h)
    logits = objective.head.classifier(2 * F.linear(h, block.module.weight.detach(), block.module.bias.detach()))
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, Y), h)
    assert (through - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_average_weights_are_not_trained_and_the_live_block_is_no_part_of_the_head():
    block = convolution()
    objective = MAN(3).objective(site(block=block))
    assert {id(p) for p in objective.parameters()}.isdisjoint({id(p) for p in block.module.parameters()})
    assert all(module is not block.module for module in objective.modules())
    names = [name for name in objective.state_dict() if name.startswith("head.average.")]
    assert not any(p.requires_grad for p in objective.head.average.parameters())
    expected = [*dict(block.module.named_parameters()), *dict(block.module.named_buffers())]
    assert sorted(names) == sorted(f"head.average.{name}" for name in expected)
    assert not any("live" in name for name in objective.state_dict())


def test_the_average_starts_at_the_live_weights_and_the_trained_copy_afresh():
    block = convolution()
    head = MAN(3).objective(site(block=block)).head
    for name, value in block.module.named_parameters():
        assert torch.equal(head.average.get_parameter(name), value)
    assert not torch.equal(head.learned[0].weight, block.module[0].weight)
    assert head.scale.item() == 1


def test_following_leaves_running_statistics_and_the_live_block_alone():
    block = convolution()
    head = MAN(3, momentum=0.5).objective(site(block=block)).head
    before = copy.deepcopy(block.module.state_dict())
    with torch.no_grad():
        block.module[1].running_mean.fill_(7.0)
        block.module[1].weight.fill_(3.0)
    head.follow()
    assert torch.equal(head.average[1].running_mean, before["1.running_mean"])
    assert torch.equal(head.average[1].weight, torch.full((6,), 2.0))  # half-way from 1 to 3
    assert torch.equal(block.module[1].weight, torch.full((6,), 3.0))
    assert torch.equal(block.module[0].weight, before["0.weight"])


def test_batch_normalisation_in_the_average_uses_the_statistics_of_the_batch():
    block = convolution()
    head = MAN(3, momentum=1.0).objective(site(block=block)).head
    h = torch.randn(IMAGE.shape)
    torch.testing.assert_close(head.average(h), block.module.train()(h))


@pytest.mark.parametrize(("momentum", "share"), [(1.0, 0.0), (0.0, 1.0), (0.75, 0.25)])
def test_the_average_moves_by_one_minus_the_momentum(momentum, share):
    module = nn.Linear(2, 2)
    boundary = Boundary("fc", (4, 2))
    block = Block("next", module, boundary, boundary)
    head = momentum_head(boundary, 3, blocks=(block,), classifier=heads.linear, momentum=momentum)
    before = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.add_(4.0)
    head.follow()
    torch.testing.assert_close(head.average.weight, before + 4 * share)


def test_a_weight_that_a_block_uses_twice_follows_in_both_places():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    copied = averaged_copy(module)
    boundary = Boundary("fc", (4, 2))
    head = momentum_head(boundary, 3, blocks=(Block("b", module, boundary, boundary),), classifier=heads.linear)
    head.momentum = 0.0
    with torch.no_grad():
        module[0].weight.fill_(5.0)
    head.follow()
    assert torch.equal(head.average[0].weight, head.average[1].weight)
    assert torch.equal(head.average[1].weight, module[0].weight)
    assert not torch.equal(copied[0].weight, module[0].weight)


def test_the_first_block_that_can_be_copied_is_taken_and_the_networks_classifier_never():
    pooling = Block("pool", nn.AvgPool2d(1), IMAGE, IMAGE)
    body = convolution()
    classifier = Block("fc", nn.Linear(6, 3), VECTOR, Boundary("fc", (4, 3)))
    head = momentum_head(IMAGE, 3, blocks=(pooling, body, classifier), classifier=heads.linear)
    assert isinstance(head, MomentumHead)
    assert isinstance(head.learned[0], nn.Conv2d)
    alone = momentum_head(IMAGE, 3, blocks=(pooling, classifier), classifier=heads.linear)
    assert not isinstance(alone, MomentumHead)
    assert alone(torch.randn(IMAGE.shape)).shape == (4, 3)


def test_last_part_minimises_the_task_loss():
    assert isinstance(MAN(3).objective(site(part=2)), TaskLoss)


def test_one_label_per_position_where_asked_for():
    objective = MAN(3, head=heads.conv, dense=True).objective(site())
    assert objective(context(torch.randn(IMAGE.shape), torch.randint(3, (4, 8, 8)))).loss.shape == ()


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"classes": 0}, "classes=0"), ({"momentum": 1.1}, "momentum=1.1"), ({"momentum": float("nan")}, "momentum=nan")],
)
def test_hyperparameters_out_of_range_are_refused(settings, says):
    with pytest.raises(MethodError, match=says):
        MAN(**{"classes": 3, **settings})


def test_a_block_that_does_not_run_by_itself_is_refused():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, h):
            return h, h

    with pytest.raises(MethodError, match="'next'"):
        MAN(3).objective(site(VECTOR, Block("next", Pair(), VECTOR, VECTOR)))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def trainer_of(method, *, cuts=("1", "3"), **settings):
    example = torch.randn(4, 5, dtype=torch.float64)
    made = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.5), "loss": F.cross_entropy, **settings}
    return mw.Trainer(mw.Partition(network(), cuts=list(cuts), example=example), method, **made)


def test_three_steps_of_the_trainer_equal_plain_torch():
    """Part 0 with its head by hand: copies, average, scale, and the live weights as they were at each step's start."""
    trainer = trainer_of(MAN(3, head=heads.linear, momentum=0.8))
    head = copy.deepcopy({k: v.clone() for k, v in trainer.objectives[0].head.state_dict().items()})
    kinds = {name.split(".")[0] for name in head}
    assert kinds == {"scale", "learned", "average", "classifier"}
    own = {name: value.requires_grad_() for name, value in head.items() if not name.startswith("average")}
    average = {name: value for name, value in head.items() if name.startswith("average")}
    model = trainer.partition.model
    first = [p.detach().clone().requires_grad_() for p in model[0].parameters()]
    assert any(name.startswith("average.0.") for name in average)  # the block is the linear map with its activation
    for step in range(3):
        x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        live = dict(model[2].named_parameters())
        for name, value in average.items():
            value.mul_(0.8).add_(live[name.split(".")[-1]].detach(), alpha=0.2)
        trainer.step(x, Y)
        h = torch.tanh(F.linear(x, *first))
        learned = torch.tanh(F.linear(h, own["learned.0.weight"], own["learned.0.bias"]))
        followed = torch.tanh(F.linear(h, average["average.0.weight"], average["average.0.bias"]))
        mixed = own["scale"] * learned + (2 - own["scale"]) * followed
        loss = F.cross_entropy(F.linear(mixed, own["classifier.0.weight"], own["classifier.0.bias"]), Y)
        leaves = [*first, *own.values()]
        gradients = torch.autograd.grad(loss, leaves)
        with torch.no_grad():
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf -= 0.5 * gradient
        for actual, expected in zip(model[0].parameters(), first, strict=True):
            assert (actual - expected).abs().max() <= 1e-10
    assert all((trainer.objectives[0].head.get_parameter(n) - v).abs().max() <= 1e-10 for n, v in own.items())
    assert own["scale"].item() != 1


def test_the_next_parts_weights_change_the_update_and_its_loss_does_not():
    report = mw.checks.locality(trainer_of(MAN(3)), torch.randn(4, 5, dtype=torch.float64), Y)
    assert report.ok
    assert report.observed is Reach.PORT
    assert report.influence[1, 0] == {"weights"}


def test_with_a_momentum_of_one_nothing_crosses_the_cut():
    report = mw.checks.locality(trainer_of(MAN(3, momentum=1.0)), torch.randn(4, 5, dtype=torch.float64), Y)
    assert report.observed is Reach.STRICT
    assert "no part reads a neighbour" in str(report)


def test_one_part_after_another_the_average_stays_at_the_next_parts_first_weights():
    trainer = trainer_of(MAN(3))
    start = {name: value.clone() for name, value in trainer.partition.model[2].named_parameters()}
    trainer.fit([(torch.randn(4, 5, dtype=torch.float64), Y)], epochs=2, schedule=mw.schedules.sequential)
    for name, value in start.items():
        torch.testing.assert_close(trainer.objectives[0].head.average[0].get_parameter(name), value)
    assert not torch.equal(trainer.partition.model[2].weight, start["weight"])


def test_a_checkpoint_holds_the_average(tmp_path):
    trainer = trainer_of(MAN(3, momentum=0.5))
    for seed in range(3):
        trainer.step(torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), Y)
    trainer.save(tmp_path / "checkpoint")
    other = trainer_of(MAN(3, momentum=0.5)).load(tmp_path / "checkpoint")
    average, loaded = (t.objectives[0].head.average[0].weight for t in (trainer, other))
    assert torch.equal(average, loaded)
    assert not torch.equal(average, trainer.partition.model[2].weight)


def test_a_loss_that_is_not_a_number_and_a_class_out_of_range_stop_the_step():
    trainer = trainer_of(MAN(3))
    with pytest.raises(NonFiniteLossError):
        trainer.step(torch.full((4, 5), torch.nan, dtype=torch.float64), Y)
    with pytest.raises(DataError, match="classes=3"):
        trainer.step(torch.randn(4, 5, dtype=torch.float64), Y + 1)


def test_the_average_of_a_recurrent_block_is_computed_with():
    """Recurrent layers keep references to their weights: an average beside them would never be used."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRU(4, 4, batch_first=True)

        def forward(self, h):
            return self.cell(h)[0]

    live = Recurrent()
    average = averaged_copy(live)
    with torch.no_grad():
        for weight in live.parameters():
            weight.add_(1.0)
        for old, new in zip(average.parameters(), live.parameters(), strict=True):
            old.copy_(new)
    z = torch.randn(2, 3, 4)
    torch.testing.assert_close(average(z), live(z))
