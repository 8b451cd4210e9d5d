"""Growing part by part, swapping a module, recalibrating and averaging: against plain torch, bit for bit."""

import copy

import pytest
import torch
import torch.nn.functional as F
from small_networks import Residual, differing, images, perceptron, rows, seeded, sgd, state, trainer_of
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import modulewise as mw
from modulewise.errors import DataError, MethodError, PartitionError
from modulewise.workflow import PartAverages, grow, recalibrate, swapped, train_part
from modulewise.workflow.changing.growing import saturated


def blocks(count=3, dropout=0.2):
    sizes = [6, *[12] * count]
    return [
        seeded(lambda k=k: nn.Sequential(nn.Linear(*sizes[k : k + 2]), nn.ReLU(), nn.Dropout(dropout)), seed=k)
        for k in range(count)
    ]


def output(boundary):
    return seeded(lambda: nn.Linear(boundary.channels, 4), seed=9)


def loader(seed=0):
    return mw.data.Loader(mw.data.Split(*rows(24)), batch_size=8, seed=seed)


def grown(made, batches=None, method=None, **settings):
    usual = {"output": output, "loss": F.cross_entropy, "optimizer": sgd, "held": [rows(16, seed=8)], "epochs": 2}
    method = method or mw.methods.DGL(classes=4)
    return grow(made, method=method, loader=batches or loader(), example=rows(24)[0], **{**usual, **settings})


def test_parts_trained_one_by_one_are_the_sequential_schedule_bit_for_bit():
    """With dropout, batch normalisation and momentum; every module's own mode is put back."""
    ended = []
    for alone in (False, True):
        x, y = images(12)
        trainer = trainer_of(seeded(lambda: Residual(dropout=0.3)), mw.methods.DGL(classes=4), ["stem", "one"], x)
        batches = mw.data.Loader(mw.data.Split(x, y), batch_size=4)
        trainer.partition.model.one.eval()
        modes = [m.training for m in trainer.partition.model.modules()]
        if alone:
            history = [e for k in range(3) for e in train_part(trainer, batches, part=k, epochs=2)]
        else:
            history = trainer.fit(batches, epochs=2, schedule=mw.schedules.sequential)
        assert [m.training for m in trainer.partition.model.modules()] == modes
        ended.append((state(trainer.partition.model, *trainer.objectives), [(e.part, e.losses) for e in history]))
    assert differing(ended[0][0], ended[1][0]) == []
    assert ended[0][1] == ended[1][1]


def test_one_part_alone_refuses_what_needs_the_others():
    """A method with messages, a part that is not there, an empty loader; `enough` ends it early."""
    x, y = rows(8)
    backprop = trainer_of(seeded(perceptron), mw.methods.Backprop(), ["0"], x)
    with pytest.raises(MethodError, match="Backprop needs other parts"):
        train_part(backprop, [(x, y)], part=0, epochs=1)
    trainer = trainer_of(seeded(perceptron), mw.methods.DGL(classes=4), ["0"], x)
    with pytest.raises(MethodError, match="part=2"):
        train_part(trainer, [(x, y)], part=2, epochs=1)
    with pytest.raises(DataError, match="no batch"):
        train_part(trainer, [], part=0, epochs=1)
    assert len(train_part(trainer, [(x, y)], part=0, epochs=9, enough=lambda epoch: epoch.epoch == 2)) == 3


def test_growing_without_an_end_is_the_sequential_schedule_on_the_whole_network():
    """Bit for bit, with dropout and momentum, and with the trained heads of all parts."""
    growth = grown(blocks(), least_gain=-9.0)
    assert (growth.kept, growth.saturated, len(growth.values)) == (3, False, 3)
    made = blocks()
    model = nn.Sequential(*made, output(mw.Boundary("2", (2, 12))))
    whole = trainer_of(model, mw.methods.DGL(classes=4), ["0", "1", "2"], rows(24)[0])
    whole.fit(loader(), epochs=2, schedule=mw.schedules.sequential)
    assert differing(state(growth.model, *growth.trainer.objectives), state(model, *whole.objectives)) == []
    assert [e.part for e in growth.history] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_growing_ends_where_the_proxy_of_a_new_part_saturates():
    """Given values: 0.5, 0.7, then 0.705; the third block is dropped and the output put on the second."""
    values = iter([0.5, 0.7, 0.705, 0.9])
    growth = grown(blocks(4), proxy=lambda features, labels: next(values), least_gain=0.01)
    assert growth.values == (0.5, 0.7, 0.705)
    assert (growth.kept, growth.saturated) == (2, True)
    assert len(growth.model) == 3
    two = grown(blocks(2), least_gain=-9.0)
    first = {k: v for k, v in state(growth.model).items() if k.startswith(("0.0", "0.1"))}
    assert differing(first, {k: v for k, v in state(two.model).items() if k in first}) == []
    assert saturated([0.5], least_gain=1.0) is False


def test_a_part_that_cannot_help_is_not_kept():
    """The third block gives the same for every sample, so that its proxy is at the level of chance."""
    made = blocks(3)
    made[2] = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Dropout(0.0))
    nn.init.zeros_(made[2][0].weight)
    nn.init.constant_(made[2][0].bias, -1.0)
    growth = grown(made, least_gain=0.0, method=mw.methods.KernelProxy(), epochs=4)
    assert growth.kept < 3
    assert growth.saturated


def test_a_part_ends_early_once_its_own_proxy_settles():
    """Values over passes: 0.2, 0.4, 0.45: the second pass rose by less than 0.1."""
    values = iter([0.2, 0.4, 0.45, 0.45])
    growth = grown(blocks(1), proxy=lambda features, labels: next(values), least_progress=0.1, epochs=7)
    assert [e.part for e in growth.history] == [0] * 2 + [1] * 7


def test_growing_refuses_what_it_cannot_use():
    """No block, labels that are no classes."""
    with pytest.raises(MethodError, match="no block"):
        grown([])
    x, y = rows(16)
    with pytest.raises(DataError, match="one class a sample"):
        grown(blocks(1), held=[(x, y.float())])


def test_a_swapped_output_learns_and_no_other_weight_moves():
    """The other parts share their tensors, which are the same bit for bit after training the new output."""
    x, y = images(12)
    model = seeded(Residual)
    partition = mw.Partition(model, cuts=["stem", "one", "two"], example=x)
    before = state(model)
    other = swapped(partition, "head", nn.Linear(12, 7))
    trainer = mw.Trainer(other, mw.methods.DGL(classes=7), loss=F.cross_entropy, optimizer=sgd)
    new = other.model.head.weight.detach().clone()
    train_part(trainer, mw.data.Loader(mw.data.Split(x, y), batch_size=4), part=3, epochs=2)
    assert not torch.equal(new, other.model.head.weight)
    assert differing(before, state(model)) == []
    shared = dict(model.named_parameters())
    assert [n for n, p in other.model.named_parameters() if p is not shared.get(n)] == ["head.weight", "head.bias"]
    assert other.model(x).shape == (12, 7)
    assert model(x).shape == (12, 4)
    for name in ("", "heads"):
        with pytest.raises(PartitionError, match="no module"):
            swapped(partition, name, nn.Identity())


def shifted(n=64):
    x, y = images(n)
    return [(3 * x[i : i + 16] + 2, y[i : i + 16]) for i in range(0, n, 16)]


def test_recalibration_of_one_part_is_that_of_torch():
    """`update_bn` on the whole model, bit for bit; weights, momenta and modes stay."""
    ours, theirs = seeded(Residual), seeded(Residual)
    ours.stem.eval()
    modes = [m.training for m in ours.modules()]
    count = recalibrate(mw.Partition(ours, cuts=[], example=images()[0]), shifted())
    update_bn(shifted(), theirs)
    assert differing(state(ours), state(theirs)) == []
    assert [m.training for m in ours.modules()] == modes
    assert count == sum(isinstance(m, nn.BatchNorm2d) for m in ours.modules())
    assert {m.momentum for m in ours.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_recalibration_feeds_every_part_what_it_will_meet():
    """Part 1 sees part 0 in eval mode with its new statistics: written out for two parts."""
    model = seeded(Residual).eval()
    plain = copy.deepcopy(model)
    partition = mw.Partition(model, cuts=["stem"], example=images()[0])
    recalibrate(partition, shifted())
    stem, rest = plain.stem, nn.Sequential(plain.one, plain.two)
    update_bn(shifted(), stem)
    stem.eval()
    with torch.no_grad():
        update_bn([stem(x) for x, _ in shifted()], rest)
    assert differing(state(model), state(plain)) == []


def test_recalibration_of_some_parts_leaves_the_others_and_dropout_draws_nothing():
    """Statistics of part 0 stay where part 1 alone is asked for; generators are where they were."""
    model = seeded(lambda: Residual(dropout=0.5)).train()
    partition = mw.Partition(model, cuts=["stem"], example=images()[0])
    before, generator = state(model), torch.get_rng_state()
    recalibrate(partition, shifted(), parts=[1])
    changed = differing(before, state(model))
    assert changed
    assert all((name.startswith(("0.one", "0.two")) and "running" in name) or "batches" in name for name in changed)
    assert torch.equal(generator, torch.get_rng_state())
    before = state(model)
    with pytest.raises(DataError, match="no batch"):
        recalibrate(partition, iter(()))
    assert differing(before, state(model)) == []


def test_averages_of_all_parts_are_those_of_torch():
    """`AveragedModel` with the same decay after every step, bit for bit; the model's own weights come back."""
    x, y = rows(24)
    trainer = trainer_of(seeded(perceptron), mw.methods.DGL(classes=4), ["0", "1"], x)
    averages = PartAverages(trainer.partition, decay=0.9)
    theirs = AveragedModel(trainer.partition.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    with averages.following(trainer):
        for _ in range(5):
            trainer.step(x, y)
            theirs.update_parameters(trainer.partition.model)
    own = state(trainer.partition.model)
    with averages.applied():
        assert differing(state(trainer.partition.model), state(theirs.module)) == []
    assert differing(own, state(trainer.partition.model)) == []
    trainer.step(x, y)
    assert averages.updates == {0: 5, 1: 5, 2: 5}
    with pytest.raises(RuntimeError, match="stop"), averages.applied():
        raise RuntimeError("stop")
    assert set(differing(own, state(trainer.partition.model))) == set(own)  # the sixth step, and no average


def test_under_the_sequential_schedule_every_part_averages_over_its_own_updates():
    """2 passes of 3 batches a part, and the average of a part that has ended stays as it was."""
    trainer = trainer_of(seeded(perceptron), mw.methods.DGL(classes=4), ["0", "1"], rows(24)[0])
    averages, seen = PartAverages(trainer.partition, decay=0.5), []
    with averages.following(trainer):
        trainer.fit(
            loader(),
            epochs=2,
            schedule=mw.schedules.sequential,
            callbacks=[lambda e: seen.append({**averages.updates})],
        )
    assert seen[-1] == {0: 6, 1: 6, 2: 6}
    assert seen[1] == {0: 6, 1: 0, 2: 0}
    with pytest.raises(MethodError, match="decay=1"):
        PartAverages(trainer.partition, decay=1.0)
    with (
        pytest.raises(MethodError, match="same partition"),
        averages.following(trainer_of(seeded(perceptron), mw.methods.DGL(classes=4), ["0", "1"], rows(24)[0])),
    ):
        pass
