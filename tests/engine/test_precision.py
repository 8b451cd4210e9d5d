"""Lower precision: no stale weight survives a step, small gradients reach every part, overflows are left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_networks import CLASSES, CUTS, Residual, differing, images, perceptron, rows, seeded, state, trainer_of
from torch import Tensor, nn

import modulewise as mw

M = mw.methods


def name_of(method: Any) -> str:
    return type(method).__name__


def grouped() -> Residual:
    return seeded(lambda: Residual(norm=lambda n: nn.GroupNorm(2, n)))


def steps(model: nn.Module, method: Any, **settings: Any) -> mw.Trainer:
    x, y = images()
    trainer = trainer_of(model, method, CUTS, x, **settings)
    for _ in range(3):
        trainer.step(x, y)
    return trainer


@pytest.mark.parametrize("method", [M.DGL(classes=CLASSES), M.Backprop(), M.Checkpointed()], ids=name_of)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_the_next_forward_sees_the_new_weights_inside_the_callers_own_autocast(method, precision):
    """An outer autocast keeps its cache of cast weights until it ends; every step must see the weights as they are."""
    inside, apart = grouped(), grouped()
    x, y = images()
    trainer = trainer_of(inside, method, CUTS, x, precision=precision)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(3):
            trainer.step(x, y)
    trainer = trainer_of(apart, method, CUTS, x, precision=precision)
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            trainer.step(x, y)
    assert differing(state(inside), state(apart)) == []


def test_an_autocast_with_a_cache_would_see_old_weights():
    """The defect that the test above is there for, in plain torch."""
    layer, x = nn.Linear(4, 4), torch.ones(1, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = layer(x)
        with torch.no_grad():
            layer.weight.add_(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            uncached = layer(x)
        stale = layer(x)
    assert torch.equal(before, stale)
    assert not torch.equal(before, uncached)


def test_the_forward_runs_in_the_precision_asked_for():
    for precision in (torch.float32, torch.bfloat16, torch.float16):
        seen: dict[str, torch.dtype] = {}
        model = grouped()
        model.one[0].a.register_forward_hook(lambda m, a, out, seen=seen: seen.update(conv=out.dtype))
        trainer = steps(model, M.DGL(classes=CLASSES), precision=precision)
        assert seen == {"conv": precision}
        assert all(p.dtype is torch.float32 for p in model.parameters())
        assert all(p.dtype is torch.float32 for o in trainer.objectives for p in o.parameters())


# Wraps another method; takes windows of time, invertible layers, or parts that begin with a layer alone.
OTHERWISE = ("DeeplySupervised", "SyntheticBPTT", "TargetPropThroughTime", "GaitProp", "NodePerturbation")
HALVED = [n for n in M.__all__ if n not in OTHERWISE and not issubclass(getattr(M, n), mw.SolverMethod)]


@pytest.mark.parametrize("name", HALVED)
def test_every_method_steps_in_half_precision(name):
    kind = getattr(M, name)
    arguments = {"classes": CLASSES, "outputs": CLASSES, "width": 4}
    given = {k: v for k, v in arguments.items() if k in kind.__dataclass_fields__}
    model, (x, y) = grouped(), images()
    views = kind.views
    trainer = trainer_of(
        model, kind(**given), CUTS, x, precision=torch.float16, optimizer=lambda p: torch.optim.SGD(p, lr=1e-4)
    )
    before = state(model)
    for _ in range(2):
        losses = trainer.step(torch.cat([x] * views), y, views=views)
    assert all(bool(torch.isfinite(loss)) for loss in losses.values())
    assert all(bool(torch.isfinite(t).all()) for t in state(model, *trainer.objectives).values())
    assert differing(before, state(model)) != []


def test_small_gradients_do_not_underflow_between_parts():
    """dL/dh of 1e-9 is zero in half precision; scaled, it must reach the first part as in one backward."""
    model, plain = perceptron(), perceptron()
    plain.load_state_dict(model.state_dict())
    x, y = rows()

    def tiny(output: Tensor, y: Tensor) -> Tensor:
        return 1e-7 * F.cross_entropy(output, y)

    optimizers = {"optimizer": lambda p: torch.optim.SGD(p, lr=1e6)}
    trainer = trainer_of(model, M.Backprop(), ("0", "1"), x, loss=tiny, precision=torch.float16, **optimizers)
    before = state(model)
    trainer.step(x, y)
    scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD(plain.parameters(), lr=1e6)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = tiny(plain(x), y)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    assert differing(state(model), state(plain)) == []
    assert len(differing(before, state(model))) == len(before)


def hundredfold(output: Tensor, y: Tensor) -> Tensor:
    return 100 * F.cross_entropy(output, y)


def test_an_overflow_leaves_a_step_out_and_lowers_the_scale():
    """Gradients that are too large only because they are scaled are the scaler's business, not an error."""
    model, (x, y) = perceptron(), rows()
    trainer = trainer_of(model, M.Backprop(), ("0", "1"), x, precision=torch.float16, loss=hundredfold)
    before = state(model)
    trainer.step(x, y)
    assert differing(before, state(model)) == []
    scales = {part: scaler.get_scale() for part, scaler in trainer.updater.scalers.items()}
    assert scales == dict.fromkeys((0, 1, 2), 2.0**15)
    for _ in range(12):
        trainer.step(x, y)
    assert differing(before, state(model)) != []
    assert all(bool(torch.isfinite(t).all()) for t in state(model).values())


@pytest.mark.parametrize("method", [M.DGL(classes=CLASSES), M.SyntheticGradients(classes=CLASSES)], ids=name_of)
def test_clipping_in_half_precision_sees_unscaled_gradients(method):
    """A plain step of length one moves a part by the norm that its gradient is clipped to."""
    model, (x, y) = perceptron(), rows()
    trainer = trainer_of(
        model,
        method,
        ("0", "1"),
        x,
        precision=torch.float16,
        clip_norm=1e-3,
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
    )
    last = list(trainer.partition.part(2).parameters())
    before = [p.detach().clone() for p in last]
    trainer.step(x, y)
    moved = torch.cat([(p.detach() - b).flatten() for p, b in zip(last, before, strict=True)])
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-2)


class Overflow(torch.autograd.Function):
    """Passes a weight on; its gradient has overflowed."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, to: float) -> Tensor:
        ctx.to = to
        return weight.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return torch.full_like(gradient, ctx.to), None


class Overflowing(nn.Linear):
    to = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, Overflow.apply(self.weight, self.to), self.bias)


@pytest.mark.parametrize("to", [float("inf"), float("nan")])
@pytest.mark.parametrize("method", [M.DGL(classes=CLASSES), M.Backprop()], ids=name_of)
def test_an_overflow_of_one_gradient_spoils_no_other_that_is_clipped_with_it(method, to):
    """DGL clips a part and its head together, and steps the other parts; backpropagation clips all parts together."""
    model, (x, y) = nn.Sequential(Overflowing(6, 6), nn.Linear(6, 8), nn.Linear(8, CLASSES)), rows()
    model[0].to = to
    trainer = trainer_of(model, method, ("0", "1"), x, precision=torch.float16, clip_norm=1.0)
    held = [model if isinstance(method, M.Backprop) else model[0], trainer.objectives[0]]
    before = state(*held)
    trainer.step(x, y)
    assert differing(before, state(*held)) == []
    assert trainer.updater.scalers[0].get_scale() == 2.0**15
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_a_loss_that_is_not_finite_stops_a_step_in_half_precision_too():
    model, (x, y) = perceptron(), rows()
    trainer = trainer_of(model, M.DGL(classes=CLASSES), ("0", "1"), x, precision=torch.float16)
    with pytest.raises(mw.errors.NonFiniteLossError, match="part 0"):
        trainer.step(x * float("nan"), y)


def test_frozen_features_are_made_in_the_precision_of_training():
    """In sequential the parts below run as they did while they learned."""
    model, seen = grouped(), []
    x, y = images()
    model.stem.register_forward_hook(lambda m, a, out: seen.append((m.training, out.dtype)))
    trainer = trainer_of(model, M.DGL(classes=CLASSES), CUTS, x, precision=torch.bfloat16)
    seen.clear()
    trainer.fit([(x, y)], epochs=1, schedule=mw.schedules.sequential)
    assert seen == [(True, torch.bfloat16), *[(False, torch.bfloat16)] * 3]
