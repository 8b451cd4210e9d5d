"""Delayed gradients: DDG and features replay against the recursion written out in plain torch, bit for bit."""

from __future__ import annotations

import copy
import gc
import weakref
from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F
from small_networks import (
    CLASSES,
    CUTS,
    Residual,
    Skipping,
    differing,
    images,
    perceptron,
    rows,
    seeded,
    sgd,
    state,
    trainer_of,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import modulewise as mw
from modulewise.engine.delaying import WeightCopies

M = mw.methods
METHODS = pytest.mark.parametrize("method", [M.DDG(), M.FeaturesReplay()], ids=["ddg", "replay"])
STEPS = 6


def batches(make=rows) -> list[tuple[Tensor, Tensor]]:
    return [make(8, seed) for seed in range(STEPS)]


def trained(model: nn.Module, method, cuts, make=rows, **settings) -> mw.Trainer:
    data = batches(make)
    trainer = trainer_of(model, method, cuts, data[0][0], **settings)
    for x, y in data:
        trainer.step(x, y)
    return trainer


def literal(*, replay: bool, lag: int = 1) -> nn.Sequential:
    """Part k of the perceptron at step t learns from batch t - d_k, written as the papers' recursion.

    DDG takes both factors at the weights of step t - d_k (a copy of the part); replay runs the stored input with the
    present weights.
    """
    model = seeded(perceptron)
    optimizers = [sgd(part.parameters()) for part in model]
    inputs: dict[int, dict[int, Tensor]] = defaultdict(dict)
    stale: dict[int, dict[int, nn.Module]] = defaultdict(dict)
    gradients: dict[int, dict[int, Tensor]] = defaultdict(dict)
    for t, (x, y) in enumerate(batches()):
        h = x
        for k, part in enumerate(model):
            inputs[k][t], stale[k][t] = h, copy.deepcopy(part)
            h = part(h).detach()
        for k in (2, 1, 0):
            old = t - lag * (2 - k)
            if old < 0:
                continue
            h_in = inputs[k][old].clone().requires_grad_(k > 0)
            part = model[k] if replay else stale[k][old]
            out = part(h_in)
            optimizers[k].zero_grad()
            part.zero_grad()
            if k == 2:
                F.cross_entropy(out, y).backward()
            else:
                out.backward(gradients[k][old])
            if k:
                gradients[k - 1][old] = h_in.grad
            for present, past in zip(model[k].parameters(), part.parameters(), strict=True):
                present.grad = past.grad
            optimizers[k].step()
    return model


@pytest.mark.parametrize("lag", [1, 2])
@pytest.mark.parametrize("replay", [False, True], ids=["ddg", "replay"])
def test_six_momentum_steps_equal_the_recursion_written_out(replay, lag):
    model = seeded(perceptron)
    trained(model, M.FeaturesReplay(lag=lag) if replay else M.DDG(lag=lag), ("0", "1"))
    assert differing(state(model), state(literal(replay=replay, lag=lag))) == []


def test_the_two_recursions_differ_where_weights_have_moved_in_between():
    assert differing(state(literal(replay=True)), state(literal(replay=False))) != []


@pytest.mark.parametrize("method", [M.DDG(lag=0), M.FeaturesReplay(lag=0)], ids=["ddg", "replay"])
@pytest.mark.parametrize("make", [lambda: Residual(dropout=0.3), Skipping], ids=["residual", "skipping"])
def test_without_delay_both_are_end_to_end_backpropagation_parameters_and_buffers(method, make):
    models = [seeded(make), seeded(make)]
    cuts, data = (CUTS, images) if isinstance(models[0], Residual) else (("a", "b", "c"), rows)
    for model, each in zip(models, (method, M.Backprop()), strict=True):
        trained(model, each, cuts, data)
    assert differing(state(models[0]), state(models[1])) == []


@METHODS
def test_a_part_moves_first_when_its_delay_has_passed_and_then_every_step(method):
    model = seeded(perceptron)
    data = batches()
    trainer = trainer_of(model, method, ("0", "1"), data[0][0])
    seen = []
    for x, y in data[:4]:
        before = [next(part.parameters()).detach().clone() for part in model]
        losses = trainer.step(x, y)
        moved = [part for part, weight in enumerate(before) if not torch.equal(weight, next(model[part].parameters()))]
        assert sorted(losses) == moved
        seen.append(moved)
    assert seen == [[2], [1, 2], [0, 1, 2], [0, 1, 2]]


@METHODS
def test_buffers_move_once_a_step_and_dropout_is_that_of_the_first_forward(method):
    """Batch statistics are those of a plain forward, with weights that move not at all."""
    model, plain = seeded(lambda: Residual(dropout=0.3)), seeded(lambda: Residual(dropout=0.3))
    trained(model, method, CUTS, images, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    counts = [m.num_batches_tracked.item() for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert counts == [STEPS] * len(counts)
    with torch.no_grad():
        for x, _ in batches(images):
            plain.stem(x)
    assert differing(state(model.stem), state(plain.stem)) == []


def _kept(trainer: mw.Trainer) -> int:
    gc.collect()
    return sum(h_out is not None for session in trainer.engine.pending for _, h_out in session.waiting.values())


def test_features_replay_keeps_inputs_only_and_ddg_keeps_graphs():
    replay = trained(seeded(perceptron), M.FeaturesReplay(), ("0", "1"))
    ddg = trained(seeded(perceptron), M.DDG(), ("0", "1"))
    assert (_kept(replay), _kept(ddg)) == (0, 3)  # part 0 of two batches, part 1 of one
    assert [sorted(session.waiting) for session in replay.engine.pending] == [[0], [0, 1]]
    fed = [h for session in replay.engine.pending for fed, _ in session.waiting.values() for h in fed.values()]
    assert all(h.grad_fn is None for h in fed)
    assert not any(session.weights for session in replay.engine.pending)


class Again(nn.Sequential):
    """Runs itself again in its backward."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


def deep_below(kind: type[nn.Sequential] = nn.Sequential) -> nn.Sequential:
    """Most activations in the first part, which is run again piece by piece where that is asked for."""
    layers = [layer for _ in range(4) for layer in (nn.Linear(6, 6), nn.Tanh(), nn.Tanh())]
    return nn.Sequential(kind(*layers), nn.Linear(6, 8), nn.Linear(8, 4))


@METHODS
@pytest.mark.parametrize(("kind", "recompute"), [(nn.Sequential, True), (Again, False)], ids=["ours", "the user's"])
def test_what_is_recomputed_inside_a_part_is_recomputed_with_the_weights_of_its_graph(method, kind, recompute):
    models = [seeded(deep_below), seeded(lambda: deep_below(kind))]
    trained(models[0], method, ("0", "1"))
    trained(models[1], method, ("0", "1"), recompute=recompute)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_graph_with_copies_is_let_go_without_a_backward():
    """Batches under way are dropped after an error, by an audit and at the end of training."""
    layer = nn.Linear(3, 3)
    with WeightCopies(list(layer.parameters())).kept():
        h = torch.tanh(layer(torch.ones(2, 3)))
    held = weakref.ref(h)
    del h
    gc.collect()
    assert held() is None


class Two(nn.Module):
    """Two inputs, one of which may be left out; every later part begins with a sum that rounds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, u: Tensor, v: Tensor | None = None) -> Tensor:
        h = self.a(u if v is None else u - 2 * v)
        for layer in (self.b, self.c):
            h = layer(1.001 * h + h * h)
        return h


@METHODS
@pytest.mark.parametrize("precision", [torch.float32, torch.float16], ids=str)
def test_inputs_by_name_are_resumed_in_any_order_and_any_precision(method, precision, tmp_path):
    example, models = {"u": rows(8, 0)[0], "v": rows(8, 1)[0]}, []
    for resumed in (False, True):
        model = seeded(Two)
        trainer = trainer_of(model, method, ("a", "b"), example, precision=precision)
        for step, (x, y) in enumerate(batches()):
            if resumed and step == 2:
                trainer.save(tmp_path)
                model = seeded(Two, seed=8)
                trainer = trainer_of(model, method, ("a", "b"), example, precision=precision).load(tmp_path)
            trainer.step({"v": rows(8, step + 50)[0], "u": x}, y)
        models.append(model)
    assert differing(state(models[0]), state(models[1])) == []


@METHODS
def test_a_batch_under_way_that_is_made_of_other_inputs_cannot_be_saved(method, tmp_path):
    x, y = rows()
    trainer = trainer_of(seeded(Two), method, ("a", "b"), {"u": x})
    trainer.step({"u": x, "v": x}, y)
    with pytest.raises(mw.errors.CheckpointError, match=r"input of \['u'\], \['v'\] waits .* example is of \['u'\]"):
        trainer.save(tmp_path)


@METHODS
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_batches_under_way_are_saved_and_resumed_exactly(method, cut, tmp_path):
    data, models = batches(images), []
    for resumed in (False, True):
        model = seeded(lambda: Residual(dropout=0.3))
        trainer = trainer_of(model, method, CUTS, data[0][0])
        for step, (x, y) in enumerate(data):
            if resumed and step == cut:
                trainer.save(tmp_path)
                model = seeded(lambda: Residual(dropout=0.3), seed=8)
                trainer = trainer_of(model, method, CUTS, data[0][0]).load(tmp_path)
            trainer.step(x, y)
        models.append(model)
    assert differing(state(models[0]), state(models[1])) == []


@METHODS
def test_a_step_that_fails_lets_go_of_batches_under_way(method):
    trainer = trained(seeded(perceptron), method, ("0", "1"))
    x, y = rows(8, 3)
    with pytest.raises(mw.errors.NonFiniteLossError):
        trainer.step(x * float("nan"), y)
    assert trainer.engine.pending == []
    assert sorted(trainer.step(x, y)) == [2]


@METHODS
def test_the_audit_sees_the_delayed_influence_of_the_last_part_and_leaves_no_trace(method):
    trainer = trained(seeded(perceptron), method, ("0", "1"))
    before, waiting = state(trainer.partition.model), [sorted(s.waiting) for s in trainer.engine.pending]
    report = mw.checks.locality(trainer, *rows(8, 3))
    assert report.ok, report
    assert {(2, 0), (2, 1), (1, 0)} <= set(report.influence)
    assert differing(before, state(trainer.partition.model)) == []
    assert [sorted(s.waiting) for s in trainer.engine.pending] == waiting


@METHODS
def test_slices_of_a_batch_and_a_schedule_without_later_parts_are_refused(method):
    model = seeded(perceptron)
    x, y = rows()
    with pytest.raises(mw.errors.MethodError, match=r"accumulate=2 .* part 0 learns 2 steps late"):
        trainer_of(model, method, ("0", "1"), x, accumulate=2)
    with pytest.raises(mw.errors.MethodError, match="needs later parts in the same step"):
        trainer_of(model, method, ("0", "1"), x).fit([(x, y)], epochs=1, schedule=mw.schedules.sequential)


@pytest.mark.parametrize("kind", [M.DDG, M.FeaturesReplay])
def test_a_negative_lag_is_refused(kind):
    with pytest.raises(mw.errors.MethodError, match=r"lag=-1 .* 0 or more"):
        kind(lag=-1)
