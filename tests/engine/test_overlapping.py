"""Losses that reach the part below (window(2)), messages to later parts, taps inside a part, views a method makes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from small_networks import CLASSES, CUTS, Residual, images, perceptron, rows, seeded, trainer_of
from torch import Tensor, nn

import modulewise as mw
from modulewise.methods.objectives import TaskLoss
from modulewise.methods.overlapping import Overlapping

PARTS = ("0", "1")
OVERLAPPING = mw.methods.LocalUpdates(classes=CLASSES)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def gradients_with_detached_units(model: nn.Module, heads: list[nn.Module], x: Tensor, y: Tensor) -> list[Tensor]:
    """dL_k/d(theta_k) + dL_{k+1}/d(theta_k) for every part, each unit run alone on a boundary that is cut off."""
    parts = list(model.children())
    boundaries = [x]
    for part in parts[:-1]:
        boundaries.append(part(boundaries[-1]).detach())
    for unit in range(len(parts)):
        below = max(0, unit - 1)
        h = boundaries[below]
        for part in parts[below : unit + 1]:
            h = part(h)
        head = heads[unit] if unit < len(parts) - 1 else nn.Identity()
        F.cross_entropy(head(h), y).backward()
    return [p.grad for p in model.parameters()]


class TestOverlap:
    def trainer(self, **settings: Any) -> mw.Trainer:
        return trainer_of(
            seeded(perceptron).double(), OVERLAPPING, PARTS, rows(10)[0].double(), optimizer=sgd, **settings
        )

    @pytest.mark.parametrize("slices", [1, 3])
    def test_a_part_follows_its_own_loss_and_the_next_one_and_no_other(self, slices):
        """Against plain torch, in slices of unequal size as well."""
        x, y = rows(10)
        trainer = self.trainer(accumulate=slices)
        heads = [objective.inner.head for objective in trainer.objectives[:-1]]
        model = seeded(perceptron).double()
        expected = gradients_with_detached_units(model, heads, x.double(), y)
        before = [p.detach().clone() for p in model.parameters()]
        trainer.step(x.double(), y)
        for p, old, gradient in zip(trainer.partition.model.parameters(), before, expected, strict=True):
            torch.testing.assert_close(p, old - 0.1 * gradient, rtol=1e-12, atol=1e-14)

    def test_a_part_steps_once_a_step(self):
        trainer = self.trainer()
        trainer.step(rows(10)[0].double(), rows(10)[1])
        assert trainer.updater.steps == {0: 1, 1: 1, 2: 1}

    def test_recomputation_changes_nothing(self):
        x, y = images(8)
        states = []
        for recompute in (False, True):
            trainer = trainer_of(seeded(Residual), OVERLAPPING, CUTS, x, recompute=recompute, optimizer=sgd)
            trainer.step(x, y)
            states.append(trainer.partition.model.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))

    def test_no_more_than_two_graphs_live_at_a_time(self):
        """When part k + 2 begins, the output of part k with its graph is gone."""
        model = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4)), nn.Linear(6, CLASSES))
        outputs: dict[int, weakref.ref[Tensor]] = {}
        alive: list[int] = []
        x, y = rows(8)
        trainer = trainer_of(model, OVERLAPPING, ("0", "1", "2", "3"), x, optimizer=sgd)
        for index in range(4):
            model[index][1].register_forward_hook(
                lambda _, __, out, index=index: outputs.__setitem__(index, weakref.ref(out))
            )
            model[index][0].register_forward_pre_hook(
                lambda *_, index=index: alive.extend(k for k, ref in outputs.items() if k < index - 1 and ref())
            )
        gc.disable()
        try:
            trainer.step(x, y)
        finally:
            gc.enable()
        assert sorted(outputs) == [0, 1, 2, 3]
        assert alive == []

    def test_the_sequential_schedule_refuses_it_before_anything_is_trained(self):
        trainer, (x, y) = self.trainer(), rows(10)
        before = [p.clone() for p in trainer.partition.model.parameters()]
        with pytest.raises(mw.errors.MethodError, match="LocalUpdates"):
            trainer.fit([(x.double(), y)], epochs=1, schedule=mw.schedules.sequential)
        assert all(torch.equal(a, b) for a, b in zip(before, trainer.partition.model.parameters(), strict=True))

    def test_half_precision_scales_both_gradients_alike(self):
        """The update in float16 is the one in float64 to the digits of float16."""
        x, y = rows(10)
        trainer = trainer_of(seeded(perceptron), OVERLAPPING, PARTS, x, precision=torch.float16, optimizer=sgd)
        exact = self.trainer()
        with torch.no_grad():
            for a, b in zip(exact.objectives, trainer.objectives, strict=True):
                for p, q in zip(a.parameters(), b.parameters(), strict=True):
                    p.copy_(q)
        trainer.step(x, y)
        exact.step(x.double(), y)
        for p, q in zip(trainer.partition.model.parameters(), exact.partition.model.parameters(), strict=True):
            torch.testing.assert_close(p.double(), q, rtol=2e-3, atol=2e-3)


class Telling(mw.Objective):
    """Sends its part's number to every later part, and keeps what it was told."""

    def __init__(self, site: mw.Site) -> None:
        super().__init__()
        self.task, self.parts = TaskLoss(site.loss), site.parts
        self.told: list[Mapping[int, Any]] = []

    def forward(self, context: mw.Context) -> mw.Signal:
        self.told.append(dict(context.feedback))
        return self.task(context) if context.part == self.parts - 1 else mw.Signal(loss=context.h_out.square().mean())

    def messages(self, context: mw.Context) -> Mapping[int, Any]:
        return dict.fromkeys(range(context.part + 1, self.parts), context.part)


class Tapping(mw.Objective):
    """Reads a module inside the part."""

    def __init__(self, site: mw.Site) -> None:
        super().__init__()
        self.taps = () if site.last else (site.modules()[0][0] + ".1",)
        self.task, self.last = TaskLoss(site.loss), site.last
        self.seen: list[tuple[Any, Any]] = []

    def forward(self, context: mw.Context) -> mw.Signal:
        if self.last:
            return self.task(context)
        ((name, (before, after)),) = context.taps.items()
        assert name == self.taps[0]
        self.seen.append((before.detach(), after.detach()))
        return mw.Signal(loss=after.square().sum())


@dataclass(frozen=True)
class Made(mw.PartwiseMethod):
    """A method of one of the objectives above."""

    kind: Callable[[mw.Site], mw.Objective]

    family: ClassVar[mw.Family] = mw.Family.PROXY
    locality: ClassVar[mw.Locality] = mw.Locality(mw.Reach.PORT, messages=True)
    references: ClassVar[tuple[mw.Reference, ...]] = ()

    def objective(self, site: mw.Site) -> mw.Objective:
        return self.kind(site)


def test_later_parts_have_what_earlier_ones_told_them_when_they_learn():
    x, y = rows(8)
    trainer = trainer_of(seeded(perceptron), Made(Telling), PARTS, x)
    trainer.step(x, y)
    assert [objective.told for objective in trainer.objectives] == [[{}], [{0: 0}], [{0: 0, 1: 1}]]


def test_a_tap_reads_what_goes_in_and_out_with_its_graph_and_leaves_no_hook():
    x, y = rows(8)
    trainer = trainer_of(seeded(perceptron), Made(Tapping), PARTS, x, optimizer=sgd)
    twin = seeded(perceptron)
    trainer.step(x, y)
    before = twin[0][0](x)
    assert torch.equal(trainer.objectives[0].seen[0][0], before)
    assert torch.equal(trainer.objectives[0].seen[0][1], before.relu())
    (gradient,) = torch.autograd.grad(twin[0][1](before).square().sum(), twin[0][0].weight)
    assert torch.equal(trainer.partition.model[0][0].weight, torch.add(twin[0][0].weight, gradient, alpha=-0.1))
    assert not any(module._forward_hooks for module in trainer.partition.model.modules())


def test_a_tap_leaves_no_hook_after_an_error():
    x, y = rows(8)
    trainer = trainer_of(seeded(perceptron), Made(Tapping), PARTS, x)
    with pytest.raises(RuntimeError):
        trainer.step(torch.zeros(8, 5), y)
    assert not any(module._forward_hooks for module in trainer.partition.model.modules())


@pytest.mark.parametrize("word", ["compile", "recompute"])
def test_taps_are_refused_where_insides_are_compiled_or_run_twice(word):
    with pytest.raises(mw.errors.MethodError, match=f"{word}=True.*part 0"):
        trainer_of(seeded(perceptron), Made(Tapping), PARTS, rows(8)[0], **{word: True})


@dataclass(frozen=True)
class Doubled(mw.PartwiseMethod):
    """Makes a noisy second view of every sample."""

    family: ClassVar[mw.Family] = mw.Family.PROXY
    locality: ClassVar[mw.Locality] = mw.Locality(mw.Reach.STRICT)
    references: ClassVar[tuple[mw.Reference, ...]] = ()
    makes_views: ClassVar[bool] = True

    def objective(self, site: mw.Site) -> mw.Objective:
        return mw.methods.DGL(classes=CLASSES, head=mw.heads.linear).objective(site)

    def prepare(self, x: Any, y: Any) -> tuple[Any, int]:
        assert len(x) == len(y)
        return torch.cat([x, x + torch.randn_like(x)]), 2


class TestViewsOfAMethod:
    def test_they_are_what_a_caller_could_have_stacked(self):
        """The same update as with the views given by hand, drawn from (seed, step)."""
        from modulewise.seeding import seed_of, set_generators

        x, y = rows(8)
        made = trainer_of(seeded(perceptron), Doubled(), PARTS, x)
        given = trainer_of(seeded(perceptron), mw.methods.DGL(classes=CLASSES, head=mw.heads.linear), PARTS, x)
        made.step(x, y)
        with torch.random.fork_rng(devices=[]):
            set_generators(seed_of(0, 0, "views"))
            stacked = torch.cat([x, x + torch.randn_like(x)])
        given.step(stacked, y, views=2)
        pairs = zip(made.partition.model.parameters(), given.partition.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)

    def test_they_are_drawn_anew_in_every_step(self):
        x, y = rows(8)
        trainer = trainer_of(seeded(perceptron), Doubled(), PARTS, x)
        first, _ = trainer.prepared(x, y, views=1)
        again, _ = trainer.prepared(x, y, views=1)
        trainer.step(x, y)
        second, _ = trainer.prepared(x, y, views=1)
        assert torch.equal(first, again)
        assert not torch.equal(first[8:], second[8:])

    def test_views_of_both_are_refused(self):
        x, y = rows(8)
        with pytest.raises(mw.errors.MethodError, match="makes its own"):
            trainer_of(seeded(perceptron), Doubled(), PARTS, x).step(torch.cat([x, x]), y, views=2)

    def test_features_of_drawn_views_are_not_kept(self):
        """Part 0 runs in every pass of part 1 again: 2 batches to learn from, 2 below part 1, 2 below part 2."""
        split = mw.data.Split(*rows(16))
        trainer = trainer_of(seeded(perceptron), Doubled(), PARTS, rows(8)[0])
        runs: list[bool] = []
        trainer.partition.model[0].register_forward_hook(lambda module, *_: runs.append(module.training))
        trainer.fit(mw.data.Loader(split, batch_size=8), epochs=1, schedule=mw.schedules.sequential)
        assert runs == [True] * 2 + [False] * 4


@pytest.mark.parametrize("kind", [Telling, lambda site: _overlapping(site)], ids=["tells later parts", "overlaps"])
def test_the_sequential_schedule_refuses_parts_that_have_to_do_with_one_another(kind):
    """What a part would be told, or the loss above it, never comes when parts learn one after another."""
    x, y = rows(8)
    trainer = trainer_of(seeded(perceptron), Made(kind), PARTS, x)
    with pytest.raises(mw.errors.MethodError, match="Made"):
        trainer.fit([(x, y)], epochs=1, schedule=mw.schedules.sequential)


def _overlapping(site: mw.Site) -> mw.Objective:
    objective = mw.methods.DGL(classes=CLASSES, head=mw.heads.linear).objective(site)
    objective.overlaps = not site.last
    return objective


def test_slices_of_a_batch_go_through_one_by_one():
    """With overlap a slice's graphs are let go before the next slice comes, or accumulation would save nothing."""
    x, y = rows(8)
    alive, refs = [], []
    model = seeded(perceptron)
    trainer = trainer_of(model, OVERLAPPING, PARTS, x, accumulate=4, optimizer=sgd)
    model[0][1].register_forward_hook(
        lambda _, __, out: (alive.append(sum(ref() is not None for ref in refs)), refs.append(weakref.ref(out)))[0]
    )
    gc.disable()
    try:
        trainer.step(x, y)
    finally:
        gc.enable()
    assert alive == [0, 0, 0, 0]


def test_an_overlapping_loss_of_an_inner_objective_keeps_its_report():
    inner = TaskLoss(F.cross_entropy)
    h, y = torch.randn(4, CLASSES), torch.arange(4)
    context = mw.Context(h_in=None, h_out=h, x=None, y=y, views=1, part=0, step=0)
    site = mw.Site(0, 2, None, None, F.cross_entropy)
    assert torch.equal(Overlapping(inner, site=site)(context).loss, F.cross_entropy(h, y))
