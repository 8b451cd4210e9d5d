"""What one dropped word would break: each test here pins a line of the engine that nothing on the surface shows."""

from __future__ import annotations

import copy
import itertools
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import modulewise as mw
from modulewise.engine import state_files
from modulewise.engine.updating import guarded_step
from modulewise.errors import CheckpointError, NonFiniteLossError
from modulewise.methods.objectives import TaskLoss
from modulewise.seeding import seed_of, set_generators

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def sgd(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def chain(*middle: nn.Module) -> nn.Sequential:
    """Three parts, cut at "0" and "1"; the modules in the middle go into the second."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
        return nn.Sequential(first, nn.Sequential(nn.Linear(8, 8), *middle), nn.Linear(8, 3))


def trainer_of(model: nn.Module, method: mw.Method, *cuts: str, **settings: object) -> mw.Trainer:
    partition = mw.Partition(model, cuts=cuts or ("0", "1"), example=X)
    return mw.Trainer(partition, method, loss=functional.cross_entropy, optimizer=sgd, **settings)


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(u, v) for u, v in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def plain_steps(model: nn.Module, *, steps: int, clip: float | None = None) -> None:
    """Ordinary training with the same optimiser."""
    optimizer = sgd(list(model.parameters()))
    for _ in range(steps):
        functional.cross_entropy(model(X), Y).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()


class Skip(nn.Module):
    """The first boundary is read by the second part and by the third."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.c(self.b(h).tanh() + h)


def test_two_readers_of_a_boundary_send_a_gradient_each() -> None:
    """A boundary that is fed to two parts collects each one's gradient apart: equal to autograd."""
    torch.manual_seed(0)
    model = Skip()
    whole = copy.deepcopy(model)
    trainer = trainer_of(model, mw.methods.Backprop(), "a", "b")
    for _ in range(3):
        trainer.step(X, Y)
    plain_steps(whole, steps=3)
    assert same_weights(model, whole)


def test_a_part_is_forgotten_before_the_next_one_runs() -> None:
    """When part 1 begins, the output of part 0 that carries a graph exists no more."""
    model = chain()
    trainer = trainer_of(model, mw.methods.DGL(classes=3))
    alive: list[bool] = []
    outputs: list[weakref.ref[Tensor]] = []
    model[0].register_forward_hook(lambda _, __, output: outputs.append(weakref.ref(output)))
    model[1].register_forward_pre_hook(lambda *_: alive.append(outputs[-1]() is not None))
    trainer.step(X, Y)
    trainer.step(X, Y)
    assert alive == [False, False]


def test_reported_losses_hold_no_graph() -> None:
    """What `step` returns can be kept for a whole run."""
    losses = trainer_of(chain(), mw.methods.DGL(classes=3)).step(X, Y)
    assert [loss.requires_grad for loss in losses.values()] == [False, False, False]


def test_every_head_learns_and_no_gradient_stays() -> None:
    """One step moves every parameter of every head and part, and leaves no gradient for the next."""
    trainer = trainer_of(chain(), mw.methods.PredSim(classes=3))
    parameters = [*trainer.partition.model.parameters(), *(p for o in trainer.objectives for p in o.parameters())]
    before = [p.detach().clone() for p in parameters]
    for _ in range(2):  # a prediction that starts at zero gives the part its first gradient in the second step
        trainer.step(X, Y)
    assert not any(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
    assert all(p.grad is None for p in parameters)


def test_heads_of_equal_shape_start_apart() -> None:
    """Every part's head draws from a seed of its own."""
    first, second, _ = trainer_of(chain(), mw.methods.DGL(classes=3)).objectives
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs if a.ndim > 1)


class Masked(nn.Module):
    """A mask made by a module of the input alone, used after the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.mask, self.a, self.c = nn.Hardtanh(0.0, 1.0), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        mask = self.mask(x)
        return self.c(self.a(x) * mask)


def test_what_the_batch_alone_determines_is_recomputed() -> None:
    """A mask is made anew of every batch, never stood in for."""
    model = Masked()
    partition = mw.Partition(model, cuts=["a"], example=torch.ones(2, 4))
    assert torch.equal(partition.part(1)(partition.part(0)(X), x=X), model(X))


def test_draws_belong_to_seed_step_and_part() -> None:
    """Dropout in two parts draws what plain torch draws when seeded at the same places, and not twice the same."""
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5)), nn.Dropout(0.5), nn.Linear(8, 3))
    whole = copy.deepcopy(model)
    trainer = trainer_of(model, mw.methods.Backprop(), "0", seed=5)
    optimizer = sgd(list(whole.parameters()))
    for step in range(3):
        trainer.step(X, Y)
        with torch.random.fork_rng(devices=[]):
            set_generators(seed_of(5, step, 0))
            h = whole[0](X)
            set_generators(seed_of(5, step, 1))
            functional.cross_entropy(whole[2](whole[1](h)), Y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert same_weights(model, whole)


def test_a_step_leaves_the_callers_generator_alone() -> None:
    """The user's own stream goes on where it was."""
    trainer = trainer_of(chain(nn.Dropout(0.5)), mw.methods.DGL(classes=3))
    before = torch.get_rng_state()
    trainer.step(X, Y)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_next_forward_sees_the_new_weights_in_lower_precision() -> None:
    """A weight cast to bfloat16 is not kept over its update, not even where the caller's own autocast goes on."""
    model, twin = chain(), chain()
    alone, within = (trainer_of(m, mw.methods.DGL(classes=3), precision=torch.bfloat16) for m in (model, twin))
    for _ in range(3):
        alone.step(X, Y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(3):
            within.step(X, Y)
    assert same_weights(model, twin)


def test_global_methods_clip_the_norm_of_all_parts_together() -> None:
    """Clipped backpropagation by messages equals clipped autograd."""
    model, whole = chain(), chain()
    trainer = trainer_of(model, mw.methods.Backprop(), clip_norm=0.05)
    for _ in range(3):
        trainer.step(X, Y)
    plain_steps(whole, steps=3, clip=0.05)
    for a, b in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_uneven_slices_accumulate_to_the_batch() -> None:
    """Slices of three and two samples sum to the gradient of the mean over five."""
    models = [chain().double(), chain().double()]
    for model, count in zip(models, (1, 2), strict=True):
        partition = mw.Partition(model, cuts=["0", "1"], example=X.double())
        trainer = mw.Trainer(
            partition, mw.methods.DGL(classes=3), loss=functional.cross_entropy, optimizer=sgd, accumulate=count
        )
        for _ in range(2):
            trainer.step(X.double()[:5], Y[:5])
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_loss_that_is_not_finite_stops_before_its_part() -> None:
    """The part's weights are as before; the error names it and those that had stepped."""
    model = chain()
    trainer = trainer_of(model, mw.methods.DGL(classes=3))
    head = next(trainer.objectives[1].parameters())
    with torch.no_grad():
        head.fill_(float("nan"))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.step(X, Y)
    assert (caught.value.part, caught.value.step, caught.value.stepped) == (1, 0, (0,))
    moved = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"0"}


def test_a_guarded_step_takes_the_weights_back() -> None:
    """Where a device has not yet said that the loss is bad, its flag undoes the step, what momentum adds included."""
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.5, momentum=0.5)
    weight.grad = torch.ones(2)
    guarded_step(optimizer, torch.tensor(True))
    assert torch.equal(weight, torch.full((2,), 0.5))
    weight.grad = torch.full((2,), float("nan"))
    guarded_step(optimizer, torch.tensor(False))
    assert torch.equal(weight, torch.full((2,), 0.5))


class Disk:
    """Lets a number of writes through; the next one ends half-way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 0
        self.save_file, self.write_text = state_files.save_file, Path.write_text
        monkeypatch.setattr(state_files, "save_file", self.tensors)
        monkeypatch.setattr(Path, "write_text", lambda path, text: self.text(path, text))

    def tensors(self, tensors: dict[str, Tensor], path: Path) -> None:
        self.room -= 1
        if self.room < 0:
            raise OSError("no space left on device")
        self.save_file(tensors, path)

    def text(self, path: Path, text: str) -> None:
        self.room -= 1
        self.write_text(path, text if self.room >= 0 else text[: len(text) // 2])
        if self.room < 0:
            raise OSError("no space left on device")


def test_a_save_that_breaks_off_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever write is the one that ends half-way, the last complete checkpoint is what loads."""
    trainer = trainer_of(chain(), mw.methods.DGL(classes=3))
    trainer.step(X, Y)
    trainer.save(tmp_path)
    saved = copy.deepcopy(trainer.partition.model)
    trainer.step(X, Y)
    disk = Disk(monkeypatch)
    for room in range(8):  # six files of tensors, the facts, the name of the newest
        disk.room = room
        with pytest.raises(CheckpointError, match="no space"):
            trainer.save(tmp_path)
        fresh = trainer_of(chain(), mw.methods.DGL(classes=3)).load(tmp_path)
        assert same_weights(fresh.partition.model, saved)
    disk.room = 8
    trainer.save(tmp_path)
    fresh = trainer_of(chain(), mw.methods.DGL(classes=3)).load(tmp_path)
    assert same_weights(fresh.partition.model, trainer.partition.model)


@dataclass(frozen=True)
class Peeking(mw.PartwiseMethod):
    """Says it is strict, and reads a weight of a later part."""

    weight: nn.Parameter

    family: ClassVar[mw.Family] = mw.Family.PROXY
    locality: ClassVar[mw.Locality] = mw.Locality(mw.Reach.STRICT)
    references: ClassVar[tuple[mw.Reference, ...]] = ()

    def objective(self, site: mw.Site) -> mw.Objective:
        """The task loss at the end, a weighted square before."""
        return TaskLoss(site.loss if site.last else lambda h, _: (h * self.weight.detach().mean()).square().mean())


def test_the_audit_catches_a_part_that_reads_later_weights() -> None:
    """Reading weights above is no signal, and still not strict."""
    model = chain()
    report = mw.checks.locality(trainer_of(model, Peeking(model[2].weight)), X, Y)
    assert report.observed is mw.Reach.PORT
    assert not report.ok


def test_the_mean_over_a_data_set_counts_samples() -> None:
    """Batches of five and one weigh five to one."""
    trainer = trainer_of(chain(), mw.methods.DGL(classes=3))
    parts, whole = trainer.evaluate([(X[:5], Y[:5]), (X[5:], Y[5:])]), trainer.evaluate([(X, Y)])
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert parts.accuracy == pytest.approx(whole.accuracy)


def test_balanced_cuts_are_the_best_of_all() -> None:
    """The largest part is as small as in any other grouping."""
    sizes = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]

    def largest(ends: tuple[int, ...]) -> float:
        edges = [0, *(end + 1 for end in ends), len(sizes)]
        return max(sum(sizes[a:b]) for a, b in itertools.pairwise(edges))

    for parts in range(1, len(sizes) + 1):
        ends = tuple(mw.balance.split(lambda start, stop: sum(sizes[start:stop]), len(sizes), parts))
        assert len(ends) == parts - 1
        assert largest(ends) == min(map(largest, itertools.combinations(range(len(sizes) - 1), parts - 1)))
