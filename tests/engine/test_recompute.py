"""Recomputation, of parts (`Checkpointed`) and inside parts (`recompute=True`): statistics once, draws replayed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_networks import CLASSES, CUTS, Residual, differing, images, seeded, state, trainer_of
from torch import nn

import modulewise as mw

M = mw.methods
WAYS = [
    pytest.param(M.Checkpointed(), False, id="Checkpointed"),
    pytest.param(M.Checkpointed(), True, id="Checkpointed-recompute"),
    pytest.param(M.Backprop(), True, id="Backprop-recompute"),
    pytest.param(M.DGL(classes=CLASSES), True, id="DGL-recompute"),
]


def step(method: Any, *, dropout: float = 0.0, count: int = 1, **settings: Any) -> Residual:
    model, (x, y) = seeded(lambda: Residual(dropout=dropout)), images()
    trainer = trainer_of(model, method, CUTS, x, **settings)
    for _ in range(count):
        trainer.step(x, y)
    return model


@pytest.mark.parametrize(("method", "recompute"), WAYS)
def test_statistics_are_updated_once_a_step(method, recompute):
    model = step(method, recompute=recompute, count=3)
    counts = {int(m.num_batches_tracked) for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    assert counts == {3}


@pytest.mark.parametrize(("method", "recompute"), WAYS)
def test_statistics_are_those_of_an_ordinary_forward(method, recompute):
    """One step's running statistics come from the weights before it, so that they need no training to compare."""
    model, plain = step(method, recompute=recompute), seeded(Residual).train()
    with torch.no_grad():
        plain(images()[0])
    assert differing(dict(model.named_buffers()), dict(plain.named_buffers())) == []


@pytest.mark.parametrize(("method", "recompute"), WAYS)
def test_random_draws_are_replayed(method, recompute):
    """With dropout, a second run with other draws would give another gradient."""
    ordinary = M.Backprop() if isinstance(method, M.Checkpointed) else method
    again = step(method, dropout=0.5, recompute=recompute, count=3)
    once = step(ordinary, dropout=0.5, count=3)
    assert differing(state(again), state(once)) == []


@pytest.mark.parametrize(("method", "recompute"), WAYS)
def test_the_forward_really_runs_twice(method, recompute):
    model, (x, y) = seeded(Residual), images()
    trainer = trainer_of(model, method, CUTS, x, recompute=recompute)
    runs: list[int] = []
    model.one[0].a.register_forward_hook(lambda *_: runs.append(1))
    trainer.step(x, y)
    assert len(runs) >= 2


def test_the_models_buffers_stay_the_same_objects():
    model, (x, y) = seeded(Residual), images()
    before = {name: id(buffer) for name, buffer in model.named_buffers()}
    trainer = trainer_of(model, M.Checkpointed(), CUTS, x, recompute=True)
    trainer.step(x, y)
    assert {name: id(buffer) for name, buffer in model.named_buffers()} == before


@pytest.mark.parametrize("method", [M.DGL(classes=CLASSES), M.Checkpointed()], ids=lambda m: type(m).__name__)
def test_the_callers_generator_stays_where_it_was(method):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    step(method, dropout=0.5, recompute=True, count=2)
    assert torch.equal(before, torch.get_rng_state())
