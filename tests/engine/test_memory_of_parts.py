"""A part learns, then forgets: graph, gradients and boundaries are gone when the next part begins to run."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from small_networks import CLASSES, CUTS, Residual, images, seeded, trainer_of
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import modulewise as mw
from modulewise.objective import Role

M = mw.methods


class Kept:
    """A tensor as autograd saved it; lives as long as the node that saved it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Watch:
    """From inside every part's forward, looks at what the parts before it have left behind."""

    def __init__(self, trainer: mw.Trainer) -> None:
        self.trainer = trainer
        model = trainer.partition.model
        self.owners: list[nn.Module] = [model.stem, model.one, model.two, model.head]
        self.saved: list[weakref.WeakSet[Kept]] = [weakref.WeakSet() for _ in self.owners]
        self.outputs: dict[int, list[StorageWeakRef]] = {}
        self.part = -1
        self.graphs: list[tuple[int, int]] = []
        self.gradients: list[tuple[int, int]] = []
        self.boundaries: list[tuple[int, int]] = []
        self.entered: list[int] = []
        self.most_saved = 0

    def enter(self, part: int) -> None:
        self.part = part
        self.entered.append(part)
        for below in range(part):
            self.graphs += [(part, below) for _ in self.saved[below]]
            owned = [*self.owners[below].parameters(), *self.trainer.objectives[below].parameters()]
            self.gradients += [(part, below) for p in owned if p.grad is not None]
            if below < part - 1:
                alive = [ref for ref in self.outputs.get(below, []) if not ref.expired()]
                self.boundaries += [(part, below) for _ in alive]

    def pack(self, tensor: Tensor) -> Kept:
        kept = Kept(tensor)
        self.saved[self.part].add(kept)
        self.most_saved = max(self.most_saved, len(self.saved[self.part]))
        return kept

    def left(self, part: int, output: Tensor) -> None:
        self.outputs.setdefault(part, []).append(StorageWeakRef(output.untyped_storage()))

    @contextmanager
    def __call__(self) -> Iterator[None]:
        handles: list[Any] = []
        for part, owner in enumerate(self.owners):
            handles.append(owner.register_forward_pre_hook(lambda *_, part=part: self.enter(part)))
            handles.append(owner.register_forward_hook(lambda m, args, out, part=part: self.left(part, out)))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self.pack, lambda kept: kept.tensor):
                yield
        finally:
            for handle in handles:
                handle.remove()


def watched(method: Any, **settings: Any) -> tuple[mw.Trainer, Watch]:
    x, y = images(8)
    trainer = trainer_of(seeded(Residual), method, CUTS, x, **settings)
    trainer.step(x, y)
    watch = Watch(trainer)
    with watch():
        trainer.step(x, y)
    assert watch.most_saved > 3
    return trainer, watch


LOCAL = [M.DGL(classes=CLASSES), M.PredSim(classes=CLASSES), M.KernelProxy(), M.AugLocal(classes=CLASSES)]


@pytest.mark.parametrize("method", LOCAL, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"clip_norm": 1.0}], ids=str)
def test_graph_gradients_and_boundary_are_gone_before_the_next_part(method, settings):
    _, watch = watched(method, **settings)
    assert watch.entered == [part for part in range(4) for _ in range(settings.get("accumulate", 1))]
    assert watch.graphs == []
    assert watch.gradients == []
    if "accumulate" not in settings:
        assert watch.boundaries == []


def test_synthetic_gradients_keep_a_boundary_but_no_graph():
    """A predictor hears the next part's message, so a part's input and output live one part longer."""
    _, watch = watched(M.SyntheticGradients(classes=CLASSES, width=4), optimizer=lambda p: torch.optim.SGD(p, lr=1e-4))
    assert watch.entered == [0, 1, 2, 3]
    assert (watch.graphs, watch.gradients, watch.boundaries) == ([], [], [(2, 0), (3, 1)])


def test_the_watch_sees_what_backpropagation_keeps():
    """The same watch on a method that must keep every graph: so the tests above can fail."""
    _, watch = watched(M.Backprop())
    assert set(watch.graphs) == {(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)}


def test_checkpointing_keeps_boundaries_but_no_graph():
    _, watch = watched(M.Checkpointed())
    assert watch.entered == [0, 1, 2, 3, 2, 1, 0]
    assert [pair for pair in watch.graphs if pair[1] < pair[0]] == []
    assert set(watch.boundaries) == {(2, 0), (3, 0), (3, 1)}


@pytest.mark.parametrize("slices", [1, 2])
def test_in_a_slice_the_graph_of_the_slice_before_is_gone(slices):
    x, y = images(8)
    trainer = trainer_of(seeded(Residual), M.DGL(classes=CLASSES), CUTS, x, accumulate=slices)
    watch, alive = Watch(trainer), []
    handle = trainer.partition.model.one.register_forward_pre_hook(lambda *_: alive.append(len(watch.saved[1])))
    with watch():
        trainer.step(x, y)
    handle.remove()
    assert alive == [0] * slices


def test_no_gradient_is_left_after_a_step():
    for method in (*LOCAL, M.Backprop(), M.DeeplySupervised(M.DGL(classes=CLASSES))):
        trainer, _ = watched(method)
        owned = [*trainer.partition.model.parameters(), *(p for o in trainer.objectives for p in o.parameters())]
        assert all(p.grad is None for p in owned)


def test_in_sequential_only_the_part_in_training_has_an_optimiser():
    x, y = images(8)
    trainer = trainer_of(seeded(Residual), M.DGL(classes=CLASSES), CUTS, x)
    model, held = trainer.partition.model, []
    for part, owner in enumerate([model.stem, model.one, model.two, model.head]):
        owner.register_forward_hook(
            lambda m, *_, part=part: held.append((part, sorted(trainer.updater.optimizers))) if m.training else None
        )
    trainer.fit([(x, y)] * 3, epochs=1, schedule=mw.schedules.sequential)
    for part in range(4):
        own = [(part, Role.HEAD), (part, Role.PART)] if part < 3 else [(part, Role.PART)]
        assert [keys for k, keys in held if k == part] == [[], own, own]
    assert trainer.updater.optimizers == {}


def test_in_sequential_no_graph_is_made_below_the_part_in_training():
    x, y = images(8)
    trainer = trainer_of(seeded(Residual), M.DGL(classes=CLASSES), CUTS, x)
    watch = Watch(trainer)
    with watch():
        trainer.fit([(x, y)] * 2, epochs=1, schedule=mw.schedules.sequential)
    assert watch.entered == [0, 0, 0, 1, 0, 1, 0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3]
    assert (watch.graphs, watch.gradients) == ([], [])


def test_a_failed_step_leaves_no_gradient_behind():
    """Also in the very first step, when the part that fails has no optimiser yet."""
    x, y = images(8)
    trainer = trainer_of(seeded(Residual), M.DGL(classes=CLASSES), CUTS, x, accumulate=2)
    x[6] = float("nan")
    with pytest.raises(mw.ModulewiseError, match="part 0"):
        trainer.step(x, y)
    assert all(p.grad is None for p in trainer.partition.model.parameters())
    assert all(p.grad is None for o in trainer.objectives for p in o.parameters())
