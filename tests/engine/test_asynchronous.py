"""The asynchronous schedule in one process: lag 0 is the simultaneous schedule bit for bit, and the books are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_networks import CUTS, Residual, Skipping, differing, images, rows, seeded, sgd, state, trainer_of
from torch import Tensor, nn

import modulewise as mw
from modulewise.buffers import LeastUsed, OldestFirst, WhenFull
from modulewise.checks import example_problem, linear_problem
from modulewise.errors import DataError, MethodError
from modulewise.method import Method, SolverMethod
from modulewise.schedules import Asynchronous, simultaneous
from modulewise.wires import BFloat16, Int8, ProductQuantization

ARGUMENTS = {"classes": 3, "outputs": 3, "method": mw.methods.DGL(classes=3)}


def made(name: str) -> Method:
    cls = getattr(mw.methods, name)
    given = {f.name: ARGUMENTS[f.name] for f in fields(cls) if f.name in ARGUMENTS}
    return cls(**given)


def alone(name: str) -> bool:
    """Whether a method lets every part learn from what is sent along with the batch alone."""
    cls = getattr(mw.methods, name)
    return str(cls.locality) == "strict" and not issubclass(cls, SolverMethod)


STRICT = [name for name in mw.methods.__all__ if alone(name)]
OTHERS = [name for name in mw.methods.__all__ if not alone(name)]
LAG_0 = [
    Asynchronous(capacity=1, slow_down=(1.0, 1.7, 0.6)),
    Asynchronous(capacity=3, policy=OldestFirst(), slow_down=(2.0, 1.0, 1.0), jitter=0.4),
]


def halved(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)


def fitted(method: Method, schedule: Any, data: Sequence[Any], problem: Any, **settings: Any) -> mw.Trainer:
    settings = {"optimizer": sgd, "scheduler": halved, "seed": 4, **settings}
    trainer = mw.Trainer(problem.partition(), method, loss=F.cross_entropy, **settings)
    trainer.history = trainer.fit(data, epochs=2, schedule=schedule)
    return trainer


def twelve(problem: Any, views: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Five different batches of a problem, the last one smaller."""
    batches = [(problem.x + 0.1 * i, problem.y.roll(i)) for i in range(5)]
    return [*batches[:4], tuple(t[:6] for t in batches[4])]


@pytest.mark.parametrize("schedule", LAG_0, ids=["one in the buffer", "a queue of three"])
@pytest.mark.parametrize("name", STRICT)
def test_lag_0_is_simultaneous_bit_for_bit(name: str, schedule: Asynchronous) -> None:
    """Parameters, buffers, heads, losses: with dropout, batch normalisation, momentum and learning rates by epoch."""
    method = made(name)
    for problem in (example_problem(), linear_problem()):
        try:
            one = fitted(method, simultaneous, [*Viewed(twelve(problem), method.views)], problem)
        except MethodError:
            continue  # the method takes no such layers
        except DataError:
            one = fitted(method, simultaneous, Viewed(twelve(problem), method.views), problem)
        two = fitted(method, schedule, Viewed(twelve(problem), method.views), problem)
        assert differing(state(one.partition.model, *one.objectives), state(two.partition.model, *two.objectives)) == []
        assert [epoch.losses for epoch in one.history] == [epoch.losses for epoch in two.history]
        assert (one.steps, one.updater.steps) == (two.steps, two.updater.steps)
        return
    pytest.fail(f"{name} takes neither problem")


class Viewed:
    """Batches with so many views of every sample stacked."""

    def __init__(self, batches: Sequence[tuple[Tensor, Tensor]], views: int) -> None:
        self.batches, self.views = batches, views

    def __iter__(self) -> Any:
        for x, y in self.batches:
            yield torch.cat([x + 0.01 * view for view in range(self.views)]), y


@pytest.mark.parametrize("name", OTHERS)
def test_methods_that_need_messages_are_refused_by_name(name: str) -> None:
    """In one line, before anything has changed."""
    try:
        method = made(name)
    except KeyError:
        pytest.skip("takes arguments of its own")
    for problem in (example_problem(), linear_problem()):
        try:
            trainer = mw.Trainer(
                problem.partition(),
                method,
                loss=F.cross_entropy,
                optimizer=None if isinstance(method, SolverMethod) else sgd,
            )
        except MethodError:
            continue
        before = state(trainer.partition.model)
        with pytest.raises(MethodError, match=name) as caught:
            trainer.fit([(problem.x, problem.y)], epochs=1, schedule=Asynchronous())
        assert "\n" not in str(caught.value)
        assert differing(before, state(trainer.partition.model)) == []


def test_the_network_with_dropout_in_half_precision_and_the_one_with_skips_are_the_same_too() -> None:
    for model, method, cuts, make, settings in (
        (lambda: Residual(dropout=0.3), mw.methods.PredSim(classes=4), CUTS, images, {"precision": torch.bfloat16}),
        (Skipping, mw.methods.DGL(classes=4, head=mw.heads.linear), "abc", rows, {"clip_norm": 0.1}),
    ):
        results = []
        for schedule in (simultaneous, Asynchronous(capacity=1, slow_down=(1.0, 3.0, 1.0, 0.5))):
            data = [make(8, seed) for seed in range(4)]
            trainer = trainer_of(seeded(model), method, cuts, data[0][0], **settings)
            trainer.fit(data, epochs=2, schedule=schedule)
            results.append(state(trainer.partition.model, *trainer.objectives))
        assert differing(*results) == []


def trained(**changes: Any) -> tuple[mw.Trainer, list[mw.Epoch]]:
    data = [rows(8, seed) for seed in range(12)]
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)))
    trainer = trainer_of(model, mw.methods.DGL(classes=4, head=mw.heads.linear), ("0", "1"), data[0][0])
    return trainer, trainer.fit(data, epochs=2, schedule=Asynchronous(**changes))


def test_the_flow_says_who_did_how_much_how_late() -> None:
    """A slow middle: the part above reuses, the buffer below is stale by its fill."""
    _, history = trained(slow_down=(1.0, 3.0, 1.0), capacity=2, reuse=3, policy=LeastUsed())
    flow = history[0].flow
    assert flow is not None
    assert flow.updates[0] == 12
    assert flow.updates[1] >= 12
    assert flow.most_used in (2, 3)
    assert flow.samples == 96
    assert flow.dropped == {0: 0, 1: 0}
    assert flow.busy[1] > 0.9
    assert flow.busy[0] < 0.5
    assert 0 < flow.staleness[1] <= flow.most_stale[1] <= 12
    assert all(0 <= share <= 1 for share in flow.busy.values())
    assert abs(sum(epoch.flow.duration for epoch in history) - 2 * flow.duration) < 1.0


def test_dropping_lets_the_fast_part_run_on() -> None:
    _, history = trained(slow_down=(1.0, 3.0, 1.0), capacity=2, when_full=WhenFull.DROP)
    flow = history[0].flow
    assert flow is not None
    assert flow.dropped[0] > 3
    assert flow.updates[0] == 12 == flow.updates[1] + flow.dropped[0]


def test_two_runs_of_a_seed_are_the_same_and_another_seed_differs() -> None:
    lagging = {"capacity": 3, "reuse": 2, "jitter": 0.5}
    one, two, other = (trained(**lagging, seed=seed)[0].partition.model for seed in (1, 1, 2))
    assert differing(state(one), state(two)) == []
    assert differing(state(one), state(other)) != []


def test_what_crosses_is_counted_to_the_byte_and_x_goes_only_where_it_is_read() -> None:
    """Boundary, labels and ids of 96 samples a pass, 8 bytes a label and an id; x where an objective reads it."""
    _, history = trained()
    labels = 96 * 16
    hollow = 12 * 4
    assert history[0].flow.bytes == {0: 96 * 8 * 4 + labels + hollow, 1: 96 * 8 * 4 + labels + hollow}
    _, history = trained(wire=BFloat16())
    assert history[0].flow.bytes[0] == 96 * 8 * 2 + labels + hollow
    data = [images(8, seed) for seed in range(3)]
    reads = trainer_of(seeded(Residual), mw.methods.InfoPro(classes=4), CUTS, data[0][0])
    (epoch,) = reads.fit(data, epochs=1, schedule=Asynchronous())
    assert epoch.flow.bytes[0] == 24 * (6 + 3) * 64 * 4 + 24 * 16


@pytest.mark.parametrize("wire", [BFloat16(), Int8(), ProductQuantization(groups=2, codewords=8)])
def test_a_wire_rounds_what_the_part_above_sees_and_nothing_else(wire: Any) -> None:
    """Part 0 is as without it, bit for bit; part 1 is not."""
    exact, _ = trained(capacity=1)
    rounded, _ = trained(capacity=1, wire=wire)
    names = differing(state(exact.partition.model), state(rounded.partition.model))
    assert names
    assert not any(name.startswith("0.0.") for name in names)


def test_a_run_stopped_after_an_epoch_goes_on_bit_for_bit(tmp_path: Any) -> None:
    """The end of a pass holds nothing under way; in between, saving is refused."""
    schedule = Asynchronous(capacity=1, slow_down=(1.0, 2.0, 1.0))

    def begun() -> mw.Trainer:
        return trainer_of(seeded(Residual), mw.methods.DGL(classes=4), ("stem", "one"), images()[0])

    data = [images(8, seed) for seed in range(3)]
    whole = begun()
    whole.fit(data, epochs=3, schedule=schedule)

    class StopError(Exception):
        pass

    def stop(epoch: mw.Epoch) -> None:
        if epoch.epoch == 1:
            raise StopError

    with pytest.raises(StopError):
        begun().fit(data, epochs=3, schedule=schedule, callbacks=[stop], checkpoint=tmp_path)
    resumed = begun().load(tmp_path)
    resumed.fit(data, epochs=3, schedule=schedule)
    assert differing(state(whole.partition.model), state(resumed.partition.model)) == []
    with pytest.raises(MethodError, match="every=2"):
        begun().fit(data, epochs=1, schedule=schedule, every=2, checkpoint=tmp_path)


def test_an_empty_loader_and_accumulation_are_refused() -> None:
    trainer = trainer_of(seeded(Residual), mw.methods.DGL(classes=4), CUTS, images()[0])
    with pytest.raises(DataError, match="no batch"):
        trainer.fit([], epochs=1, schedule=Asynchronous())
    slicing = trainer_of(seeded(Residual), mw.methods.DGL(classes=4), CUTS, images()[0], accumulate=2)
    with pytest.raises(MethodError, match="accumulate=2"):
        slicing.fit([images()], epochs=1, schedule=Asynchronous())


def test_our_loader_is_counted_by_its_own_ids() -> None:
    """Every sample of the split enters the first buffer once in each pass, in whatever order."""
    x, y = rows(20)
    loader = mw.data.Loader(mw.data.Split(x, y), batch_size=6, seed=3)
    cuts, model = ("0",), nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    trainer = trainer_of(model, mw.methods.DGL(classes=4, head=mw.heads.linear), cuts, x)
    history = trainer.fit(loader, epochs=3, schedule=Asynchronous())
    assert [epoch.flow.samples for epoch in history] == [20, 20, 20]
