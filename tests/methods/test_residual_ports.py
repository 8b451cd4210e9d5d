"""A loss for every convolution of a residual network: the shortcut is a port, updates equal plain detached torch."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import modulewise as mw
from modulewise.errors import PartitionError
from modulewise.method import Reach
from modulewise.methods import PredSim
from modulewise.objective import Context

RATE, CLASSES = 0.1, 3
CUTS = ("stem", "layer1.0.relu1", "layer1.0", "layer2.0.relu1", "layer2.0")
PORTS = {2: (0,), 4: (2,)}
X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(6) % CLASSES
METHODS = [PredSim(CLASSES), PredSim(CLASSES, alpha=0.3), PredSim(CLASSES, beta=0.5, backprop_free=True)]
each_method = pytest.mark.parametrize("method", METHODS, ids=["predsim", "unsupervised", "backprop free"])


class Block(nn.Module):
    """relu2(norm2(conv2(h)) + shortcut(x)), h = relu1(norm1(conv1(x))), as in CIFAR residual networks."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.conv2, self.norm2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def first(self, x: Tensor) -> Tensor:
        return self.relu1(self.norm1(self.conv1(x)))

    def second(self, h: Tensor, x: Tensor) -> Tensor:
        return self.relu2(self.norm2(self.conv2(h)) + self.shortcut(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x), x)


class Eager(Block):
    """The same with the shortcut made before the first convolution: it starts inside that convolution's part."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        return self.relu2(self.norm2(self.conv2(self.first(x))) + shortcut)


class Net(nn.Module):
    def __init__(self, block: Callable[[int, int, int], nn.Module] = Block) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.layer1 = nn.Sequential(block(4, 4, 1))
        self.layer2 = nn.Sequential(block(4, 6, 2))
        self.head = nn.Linear(6, CLASSES)

    def last(self, h: Tensor) -> Tensor:
        return self.head(h.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer2(self.layer1(self.stem(x))))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return make().double()


def trainer_of(model: nn.Module, cuts: tuple[str, ...], method: mw.Method) -> mw.Trainer:
    return mw.Trainer(
        mw.Partition(model, cuts=cuts, example=X),
        method,
        loss=F.cross_entropy,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=RATE),
    )


Parts = list[Callable[..., Tensor]]


def net_parts(net: nn.Module) -> Parts:
    one, two = net.layer1[0], net.layer2[0]
    return [net.stem, one.first, one.second, two.first, two.second, net.last]


def plain_step(parts: Parts, ports: dict[int, tuple[int, ...]], model: nn.Module, objectives: nn.ModuleList) -> None:
    """One step in plain torch: h.detach() at every boundary and at the start of every shortcut, then SGD."""
    boundaries: list[Tensor] = []
    h = X
    for k, (part, objective) in enumerate(zip(parts, objectives, strict=True)):
        h_in = h.detach()
        h = part(h_in, *[boundaries[port].detach() for port in ports.get(k, ())])
        boundaries.append(h)
        context = Context(h_in=h_in, h_out=h, x=X, y=Y, views=1, part=k, step=0)
        objective(context).loss.backward()
    optimizer = torch.optim.SGD([*model.parameters(), *objectives.parameters()], lr=RATE)
    optimizer.step()
    optimizer.zero_grad()


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    for (name, u), v in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(u, v), name


@each_method
def test_updates_equal_plain_torch_with_both_detached(method: mw.Method) -> None:
    """Three steps: every weight, buffer and head, bit for bit in float64."""
    model = seeded(Net)
    plain = copy.deepcopy(model)
    trainer = trainer_of(model, CUTS, method)
    objectives = nn.ModuleList(copy.deepcopy(list(trainer.objectives)))
    assert trainer.partition.ports == PORTS
    start = copy.deepcopy(plain.state_dict())
    for _ in range(3):
        trainer.step(X, Y)
        plain_step(net_parts(plain), PORTS, plain, objectives)
    assert_same_state(model, plain)
    assert_same_state(nn.ModuleList(trainer.objectives), objectives)
    assert all(not torch.equal(value, start[name]) for name, value in plain.named_parameters())


def test_a_shortcut_that_were_not_detached_would_change_the_block_below() -> None:
    """The comparison above could fail: with the shortcut's start attached the stem learns from the second loss too."""
    plain = seeded(Net)
    stem, block = plain.stem, plain.layer1[0]
    updates = []
    for attached in (False, True):
        x = stem(X)
        h = block.first(x.detach())
        loss = block.second(h.detach(), x if attached else x.detach()).square().mean() + x.square().mean()
        updates.append(torch.autograd.grad(loss, stem[0].weight)[0])
    assert not torch.allclose(*updates)


@each_method
def test_the_locality_is_port_and_holds(method: mw.Method) -> None:
    trainer = trainer_of(seeded(Net), CUTS, method)
    assert trainer.locality.reach is Reach.PORT
    assert trainer_of(seeded(Net), ("stem", "layer1.0", "layer2.0"), method).locality.reach is Reach.STRICT
    report = mw.checks.locality(trainer, X, Y)
    assert report.ok, str(report)


def test_a_loss_for_every_convolution_learns() -> None:
    trainer = trainer_of(seeded(Net), CUTS, PredSim(CLASSES, beta=0.5))
    first = trainer.step(X, Y)
    for _ in range(60):
        last = trainer.step(X, Y)
    assert all(last[k] < 0.8 * first[k] for k in first)


def test_blocks_of_torchvision_are_cut_at_their_first_normalisation() -> None:
    """Their one ReLU is called twice and works in place, so the loss of the first convolution stands before it."""
    resnet = pytest.importorskip("torchvision").models.resnet

    def make() -> nn.Module:
        down = nn.Sequential(nn.Conv2d(4, 6, 1, 2, bias=False), nn.BatchNorm2d(6))
        return nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
            resnet.BasicBlock(4, 4),
            resnet.BasicBlock(4, 6, 2, down),
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES)),
        )

    def parts_of(net: nn.Module) -> Parts:
        def halves(block: nn.Module, shortcut: nn.Module) -> Parts:
            return [
                lambda x: block.bn1(block.conv1(x)),
                lambda h, x: F.relu(block.bn2(block.conv2(F.relu(h))) + shortcut(x)),
            ]

        return [net[0], *halves(net[1], nn.Identity()), *halves(net[2], net[2].downsample), net[3]]

    model = seeded(make)
    plain = copy.deepcopy(model)
    trainer = trainer_of(model, ("0", "1.bn1", "1", "2.bn1", "2"), METHODS[0])
    objectives = nn.ModuleList(copy.deepcopy(list(trainer.objectives)))
    assert trainer.partition.ports == PORTS
    assert trainer.locality.reach is Reach.PORT
    for _ in range(3):
        trainer.step(X, Y)
        plain_step(parts_of(plain), PORTS, plain, objectives)
    assert_same_state(model, plain)
    with pytest.raises(PartitionError, match=r"'1.relu' is called 2 times"):
        trainer_of(seeded(make), ("0", "1.relu", "1"), METHODS[0])


def test_a_shortcut_that_starts_inside_a_part_is_refused_with_what_to_do() -> None:
    """The block's input is no boundary, or the shortcut is a tensor that the first convolution's part makes."""
    says = (
        r"at cut 'layer1.0.relu1' .* a skip from 'stem[.0-9]*' to 'layer1.0.*starts inside one part and ends in another"
    )
    with pytest.raises(PartitionError, match=says):
        mw.Partition(seeded(Net), cuts=["layer1.0.relu1"], example=X)
    says = r"at cut 'layer2.0.relu1' .* a skip from 'layer2.0.shortcut.*cut where the skip begins"
    with pytest.raises(PartitionError, match=says):
        mw.Partition(seeded(lambda: Net(Eager)), cuts=["layer1", "layer2.0.relu1", "layer2.0"], example=X)
