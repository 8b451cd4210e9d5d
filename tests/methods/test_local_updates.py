"""Local updates: units that overlap, and the paper's schedules as settings of the partition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_networks import CLASSES, CUTS, Residual, images, seeded, trainer_of
from torch import nn

import modulewise as mw
from modulewise.methods import DGL, Backprop, LocalUpdates


def sgd(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def stepped(method: mw.Method, cuts: tuple[str, ...], *, steps: int = 2) -> dict[str, torch.Tensor]:
    x, y = images(8)
    trainer = trainer_of(seeded(Residual), method, cuts, x, optimizer=sgd)
    for _ in range(steps):
        trainer.step(x, y)
    return trainer.partition.model.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(u, v) for u, v in zip(a.values(), b.values(), strict=True))


def test_without_overlap_it_is_decoupled_greedy_learning_with_the_same_head():
    plain = DGL(CLASSES, head=mw.heads.linear)
    assert same(stepped(LocalUpdates(CLASSES, overlap=False), CUTS), stepped(plain, CUTS))


def test_with_two_parts_overlap_adds_the_task_loss_to_part_0():
    """One unit is the whole network: part 0 follows L_0 + L_1, as under deep supervision."""
    supervised = mw.methods.DeeplySupervised(DGL(CLASSES, head=mw.heads.linear))
    overlapped, summed = (stepped(method, ("one",), steps=1) for method in (LocalUpdates(CLASSES), supervised))
    for name, value in overlapped.items():
        torch.testing.assert_close(value, summed[name], rtol=1e-4, atol=1e-6)


def test_with_three_parts_the_last_loss_does_not_reach_part_0():
    """Scaling the task loss moves the last two parts and leaves the first bit for bit."""
    states = []
    for factor in (1.0, 3.0):
        x, y = images(8)
        loss = lambda output, y, factor=factor: factor * F.cross_entropy(output, y)  # noqa: E731
        trainer = trainer_of(seeded(Residual), LocalUpdates(CLASSES), ("stem", "one"), x, loss=loss, optimizer=sgd)
        trainer.step(x, y)
        states.append({name: p.detach().clone() for name, p in trainer.partition.model.named_parameters()})
    moved = {name.split(".")[0] for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert moved == {"one", "two", "head"}


def test_one_part_is_backpropagation():
    assert same(stepped(LocalUpdates(CLASSES), ()), stepped(Backprop(), ()))


def test_locality_follows_overlap():
    assert LocalUpdates(CLASSES).locality == mw.Locality(mw.Reach.WINDOW, window=2)
    assert LocalUpdates(CLASSES, overlap=False).locality == mw.Locality(mw.Reach.STRICT)
    for overlap in (True, False):
        trainer = trainer_of(
            seeded(Residual), LocalUpdates(CLASSES, overlap=overlap), CUTS, images(8)[0], optimizer=sgd
        )
        assert mw.checks.locality(trainer, *images(8)).ok


def test_a_frozen_part_between_passes_the_gradient_of_the_loss_above_it():
    """Part 1 does not learn; part 0 still follows its own loss and the one above."""
    x, y = images(8)
    model = seeded(Residual)
    model.one.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = trainer_of(model, LocalUpdates(CLASSES), ("stem", "one"), x, optimizer=sgd)
    trainer.step(x, y)
    moved = {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"stem", "two", "head"}


def test_a_dense_head_without_positions_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, CLASSES))
    with pytest.raises(mw.errors.MethodError, match="dense"):
        trainer_of(model, LocalUpdates(CLASSES, dense=True), ("0",), torch.zeros(2, 4))
