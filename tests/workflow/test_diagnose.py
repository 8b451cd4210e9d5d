"""A network looked at part by part: planted faults are named, and looking changes nothing."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_networks import Residual, differing, images, perceptron, rows, seeded, sgd, state, trainer_of
from torch import nn

import modulewise as mw
from modulewise.errors import DataError, MethodError, ModulewiseError
from modulewise.workflow import Advice, Diagnosis, Kind, Measures, PartState, Record, Thresholds, diagnose, find
from modulewise.workflow.inspection.boundaries import read
from modulewise.workflow.inspection.pictured import FEATURES, kept_features
from modulewise.workflow.inspection.recording import RECORDS, append_to, records
from modulewise.workflow.inspection.stepping import part_costs, trial_step

QUICK = Measures(decoder_steps=0, costs=False)
CUTS = ["fc1", "fc2", "fc3"]


def digits(count=900):
    split = mw.data.load("digits").train
    scale = mw.data.normalization(split)
    cut = [mw.data.Split(split.x[a:b], split.y[a:b]) for a, b in ((0, 300), (300, 600), (600, count))]
    fitted, held, rest = (mw.data.Loader(s, batch_size=64, shuffle=i == 2, normalize=scale) for i, s in enumerate(cut))
    return fitted, held, rest


class Net(nn.Module):
    """Four parts; the second is as wide as asked for."""

    def __init__(self, width):
        super().__init__()
        self.fc1 = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU())
        self.fc2 = nn.Sequential(nn.Linear(64, width), nn.ReLU())
        self.fc3 = nn.Sequential(nn.Linear(width, 64), nn.ReLU())
        self.out = nn.Linear(64, 10)

    def forward(self, x):
        return self.out(self.fc3(self.fc2(self.fc1(x))))


def trained(width=48):
    fitted, held, rest = digits()
    trainer = trainer_of(seeded(lambda: Net(width)), mw.methods.DGL(classes=10), CUTS, torch.zeros(8, 1, 8, 8))
    trainer.fit(rest, epochs=4)
    return trainer, fitted, held


def look(trainer, fitted, held):
    return find(diagnose(trainer.partition, fitted, held, measures=QUICK), samples=300)


def test_a_sound_network_loses_nothing():
    """No part is said to lose information or to have dead units."""
    kinds = {finding.kind for finding in look(*trained())}
    assert kinds.isdisjoint({Kind.LOSES_INFORMATION, Kind.DEAD_UNITS, Kind.COLLAPSED, Kind.NO_GRADIENT})


def test_a_part_that_was_made_too_narrow_is_named_first_and_told_to_be_wider():
    """Two units in the second part, with a network around them that is trained as usual."""
    first = look(*trained(width=2))[0]
    assert (first.part, first.name, first.kind) == (1, "fc2", Kind.LOSES_INFORMATION)
    assert first.advice[0] is Advice.WIDER_PART
    assert Advice.ANOTHER_CUT in first.advice
    assert "fc1" in first.evidence


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_part_whose_units_are_dead_is_named_first(part):
    """A bias far below zero: what follows is at the level of chance, and only the dead part is to blame."""
    trainer, fitted, held = trained()
    with torch.no_grad():
        trainer.partition.module(CUTS[part])[-2].bias.fill_(-1000.0)
    first, *others = look(trainer, fitted, held)
    assert (first.part, first.kind, first.advice[0]) == (part, Kind.LOSES_INFORMATION, Advice.CALMER_TRAINING)
    assert Kind.DEAD_UNITS in {finding.kind for finding in others if finding.part == part}
    assert Kind.LOSES_INFORMATION not in {finding.kind for finding in others}
    record = Diagnosis(trainer, fitted, held, measures=QUICK).records[0]
    stuck = [f.part for f in find(record.states, samples=record.samples) if f.kind is Kind.NO_GRADIENT]
    assert stuck == [part]


def test_a_narrow_part_is_named_among_maps_too():
    """One channel of 2 x 2 between convolutions, with batch normalisation, trained by another method."""
    fitted, held, rest = digits()
    model = seeded(
        lambda: nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()),
            nn.Sequential(nn.Conv2d(12, 1, 3, padding=1), nn.BatchNorm2d(1), nn.ReLU(), nn.AvgPool2d(4)),
            nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()),
            nn.Sequential(nn.Flatten(), nn.Linear(48, 10)),
        )
    )
    trainer = trainer_of(model, mw.methods.PredSim(classes=10), ["0", "1", "2"], torch.zeros(8, 1, 8, 8))
    trainer.fit(rest, epochs=2)
    first = look(trainer, fitted, held)[0]
    assert (first.part, first.kind, first.advice[0]) == (1, Kind.LOSES_INFORMATION, Advice.WIDER_PART)


def test_a_part_that_repeats_what_enters_it_adds_nothing():
    """The identity; the input itself is not compared with part 0 for gain."""
    trainer, fitted, held = trained()
    copy = nn.Sequential(nn.Identity(), nn.ReLU())
    model = nn.Sequential(trainer.partition.model.fc1, copy, nn.Linear(64, 10))
    partition = mw.Partition(model, cuts=["0", "1"], example=torch.zeros(8, 1, 8, 8))
    found = find(diagnose(partition, fitted, held, measures=QUICK), samples=300)
    assert [(f.part, f.kind) for f in found if f.part < 2] == [(1, Kind.ADDS_NOTHING)]


def states(*probes, **more):
    return [PartState(part=i, name=str(i), probe=p, **more) for i, p in enumerate(probes)]


def test_a_drop_counts_beyond_the_threshold_and_beyond_two_standard_errors():
    """0.6 to 0.5: ten points are noise on 100 samples, 2 sqrt(0.24 / 100 + 0.25 / 100) = 0.14, and not on 10,000."""
    kinds = [[f.kind for f in find(states(0.6, 0.5), samples=n)] for n in (100, 10_000)]
    assert kinds == [[Kind.ADDS_NOTHING], [Kind.LOSES_INFORMATION]]
    assert Kind.LOSES_INFORMATION not in {f.kind for f in find(states(0.6, 0.57), samples=10**6)}
    better = [PartState(part=0, name="a", probe=0.9), PartState(part=1, name="b", probe=0.5, neighbours=0.9)]
    assert Kind.LOSES_INFORMATION not in {f.kind for f in find(better, samples=10**6)}


def test_the_lowest_part_that_loses_information_comes_first():
    """Before any other finding; the part that loses more may be above it."""
    found = find([*states(0.9, 0.8, 0.3), PartState(part=3, name="3", dead=1.0)], samples=10**6)
    assert [(f.part, f.kind.name) for f in found] == [
        (1, "LOSES_INFORMATION"),
        (2, "LOSES_INFORMATION"),
        (3, "DEAD_UNITS"),
    ]
    assert find(states(None, None), samples=10) == ()
    with pytest.raises(ModulewiseError, match="out of range"):
        Thresholds(drop=0)
    stuck = find([PartState(part=0, name="0", gradient_norm=0.0)], samples=10)
    assert [f.kind for f in stuck] == [Kind.NO_GRADIENT]
    assert "part 0 (0) gets no gradient" in str(stuck[0])


def test_all_outputs_come_from_one_pass_and_are_those_of_the_parts():
    """Against the modules called one by one in eval mode, over two batches of different size; modes are put back."""
    model = seeded(lambda: Residual(dropout=0.5)).train()
    model.one[0].eval()
    modes = [m.training for m in model.modules()]
    x, y = images(10)
    partition = mw.Partition(model, cuts=["stem", "one", "two"], example=x)
    reading = read(partition, [(x[:6], y[:6]), (x[6:], y[6:])])
    assert [m.training for m in model.modules()] == modes
    model.eval()
    h = x
    with torch.no_grad():
        for stage, found in zip(model.stages(), reading.outputs, strict=True):
            h = stage(h)
            torch.testing.assert_close(found, h)
    assert torch.equal(reading.input, x)
    assert torch.equal(reading.labels, y)


def test_what_cannot_be_read_is_left_out_or_refused_in_a_line():
    """Labels that are no classes, no batch, values that are not finite."""
    x, y = rows(12)
    partition = mw.Partition(seeded(perceptron), cuts=["0", "1"], example=x)
    found = diagnose(partition, [(x, y.float())], [(x, y.float())], measures=QUICK)
    assert {s.probe for s in found} == {None}
    assert None not in {s.effective_rank for s in found}
    with pytest.raises(DataError, match="no batch"):
        diagnose(partition, [], [])
    with pytest.raises(DataError, match="output of part 0 is not finite"):
        diagnose(partition, [(x / 0, y)], [(x, y)])
    with pytest.raises(MethodError, match="twin of 1 parts"):
        diagnose(partition, [(x, y)], [(x, y)], twin=mw.Partition(seeded(perceptron), cuts=[], example=x))
    with pytest.raises(MethodError, match="neighbours=0"):
        Measures(neighbours=0)


def test_gradient_norms_and_objectives_of_backprop_are_those_of_plain_torch():
    """On the same batch, and the trainer is as before, batch normalisation's statistics and momentum included."""
    x, y = images(12)
    trainer = trainer_of(seeded(Residual), mw.methods.Backprop(), ["stem", "one", "two"], x)
    trainer.partition.model.train()
    trainer.step(x, y)
    before = state(trainer.partition.model)
    trainer.partition.model.eval()
    step = trial_step(trainer, x, y)
    assert differing(before, state(trainer.partition.model)) == []
    assert not any(m.training for m in trainer.partition.model.modules())
    model = trainer.partition.model.train()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    for part in trainer.partition.parts:
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in part.parameters()))
        assert step.gradient_norms[part.index] == pytest.approx(norm, rel=1e-4)
    assert step.objectives[3] == pytest.approx(loss.item(), rel=1e-5)


def test_costs_say_which_part_is_large_and_leave_buffers_alone():
    """A part with ten times the layers takes most of the time and memory; the running statistics do not move."""
    deep = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()) for _ in range(10)])
    model = nn.Sequential(nn.Linear(64, 64), deep, nn.Linear(64, 2))
    partition = mw.Partition(model, cuts=["0", "1"], example=torch.randn(256, 64))
    before = state(model)
    costs = part_costs(partition, torch.randn(256, 64))
    assert differing(before, state(model)) == []
    assert costs[1].bytes > 5 * max(costs[0].bytes, costs[2].bytes)
    assert costs[1].seconds > max(costs[0].seconds, costs[2].seconds)
    own = 256 * 64 * 4  # the input and the output of part 0; its gradients: 64 x 64 weights, 64 biases
    assert costs[0].bytes >= 2 * own + (64 * 64 + 64) * 4


@pytest.mark.parametrize("schedule", [mw.schedules.simultaneous, mw.schedules.sequential])
def test_training_with_a_look_after_every_pass_ends_in_the_same_numbers(schedule, tmp_path):
    """Bit for bit, with dropout, batch normalisation and momentum; one record before, and one a pass."""
    ended = []
    for looking in (False, True):
        x, y = images(12)
        trainer = trainer_of(seeded(lambda: Residual(dropout=0.3)), mw.methods.DGL(classes=4), ["stem", "one"], x)
        loader = mw.data.Loader(mw.data.Split(x, y), batch_size=4)
        quick = Measures(decoder_steps=2)
        callbacks = [Diagnosis(trainer, [(x, y)], [(x, y)], measures=quick, folder=tmp_path)] if looking else []
        trainer.fit(loader, epochs=2, schedule=schedule, callbacks=callbacks)
        ended.append(state(trainer.partition.model, *trainer.objectives))
    assert differing(*ended) == []
    passes = 2 if schedule is mw.schedules.simultaneous else 6
    held = records(tmp_path)
    assert held == callbacks[0].records
    assert [record.passes for record in held] == list(range(passes + 1))
    last = held[-1]
    assert set(last.losses) == ({0, 1, 2} if passes == 2 else {2})
    assert [state.part for state in last.states] == [-1, 0, 1, 2]
    nothing = {name for state in last.states[1:] for name, value in vars(state).items() if value is None}
    assert nothing == {"cka_twin"}
    kept = kept_features(tmp_path)
    assert kept.names == ("stem", "one", "output")
    assert [tuple(h.shape) for h in kept.features] == [(12, 384), (12, 512), (12, 4)]


def test_a_resumed_run_goes_on_in_the_same_file(tmp_path):
    """The records of a run in two halves are those of a run in one, a line torn in between is dropped."""

    def trainer():
        return trainer_of(seeded(perceptron), mw.methods.DGL(classes=4), ["0", "1"], rows(12)[0])

    def run(made, epochs, folder):
        loader = mw.data.Loader(mw.data.Split(*rows(12)), batch_size=4)
        if (folder / "checkpoint").exists():
            made.load(folder / "checkpoint", loader=loader)
        look = Diagnosis(made, [rows(12)], [rows(12)], measures=QUICK, folder=folder)
        made.fit(loader, epochs=epochs, callbacks=[look], checkpoint=folder / "checkpoint")
        return look

    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run(trainer(), 3, whole)
    run(trainer(), 1, halves)
    with (halves / RECORDS).open("ab") as file:
        file.write(b'{"format": 1, "pass')
    run(trainer(), 3, halves)
    assert records(halves) == records(whole)
    assert len((halves / RECORDS).read_text().splitlines()) == 4
    with pytest.raises(ModulewiseError, match="up to step 9 and the trainer is at step 0"):
        Diagnosis(trainer(), [rows(12)], [rows(12)], folder=halves)


def test_damaged_records_are_refused_with_their_line(tmp_path):
    """A line in the middle, a newer format, damaged features; a later record of the same step wins."""
    record = Record(passes=0, part=None, step=0, losses={1: 0.5}, states=tuple(states(0.5)), samples=3)
    append_to(tmp_path, record)
    append_to(tmp_path, replace(record, samples=4))
    assert [r.samples for r in records(tmp_path)] == [4]
    for line in (b"{]\n", json.dumps({"format": 9}).encode() + b"\n", b'{"format": 1}\n'):
        (tmp_path / RECORDS).write_bytes(line)
        with pytest.raises(ModulewiseError, match="line 1 cannot be read"):
            records(tmp_path)
    (tmp_path / FEATURES).write_bytes(b"nothing")
    with pytest.raises(ModulewiseError, match="damaged"):
        kept_features(tmp_path)


def test_a_twin_is_the_same_network_trained_by_backpropagation():
    """Bit for bit as if it had been trained by itself; the trainer, its model and the loader are as before."""
    x, y = images(12)

    def made(method):
        trainer = trainer_of(seeded(Residual), method, ["stem", "one"], x)
        return trainer, mw.data.Loader(mw.data.Split(x, y), batch_size=4)

    trainer, loader = made(mw.methods.DGL(classes=4))
    before = state(trainer.partition.model)
    twin = mw.workflow.train_twin(trainer, loader, epochs=2)
    assert differing(before, state(trainer.partition.model)) == []
    assert (loader.epoch, trainer.steps) == (0, 0)
    alone, again = made(mw.methods.Backprop())
    alone.fit(again, epochs=2)
    assert differing(state(twin.model), state(alone.partition.model)) == []
    found = diagnose(twin, [(x, y)], [(x, y)], twin=twin, measures=QUICK)
    assert [s.cka_twin for s in found[1:]] == pytest.approx([1, 1, 1])
    trainer.step(x, y)
    with pytest.raises(MethodError, match="made 1 steps"):
        mw.workflow.train_twin(trainer, loader, epochs=1)


def test_other_kinds_of_methods_are_looked_at_as_far_as_they_go():
    """One with its own update has no gradients, one that wants all samples no trial step; recurrent windows work."""
    x, y = rows(8)
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)))
    partition = mw.Partition(model, cuts=["1"], example=x)
    trainer = mw.Trainer(partition, mw.methods.BCD(), loss=F.cross_entropy)
    assert trial_step(trainer, x, y) is None
    rnn = seeded(lambda: mw.models.rnn_rows((1, 8, 8), 4))
    sequence = torch.randn(8, 1, 8, 8)
    windows = mw.TimePartition(rnn, windows=2, example=sequence)
    recurrent = mw.Trainer(windows, mw.methods.Backprop(), loss=F.cross_entropy, optimizer=sgd)
    look = Diagnosis(recurrent, [(sequence, y)], [(sequence, y)], measures=Measures(decoder_steps=1))
    assert [s.part for s in look.records[0].states] == [-1, 0, 1]
