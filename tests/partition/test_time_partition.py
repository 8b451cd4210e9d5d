"""Partitions over time: windows share their parameters, and backpropagation over them is that through time."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from small_networks import differing, seeded, state
from torch import Tensor, nn

import modulewise as mw
from modulewise.models import Recurrent, RecurrentNetwork
from modulewise.partition.unrolled import window_lengths

M = mw.methods
LAYERS = pytest.mark.parametrize("layer", [nn.RNN, nn.GRU, nn.LSTM])
EVERY = pytest.mark.parametrize("every", [False, True], ids=["last", "every"])


def network(layer=nn.GRU, *, every: bool, depth: int = 1) -> nn.Module:
    made = seeded(lambda: RecurrentNetwork(layer(3, 5, num_layers=depth, batch_first=True), outputs=4, every=every))
    return made.double()


def task(*, every: bool, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (6, 10) if every else (6,), generator=generator)
    return torch.randn(6, 10, 3, generator=generator, dtype=torch.float64), y


def loss(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, -2), y.flatten())


def sgd(parameters) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def trainer_of(model, method, windows, x, **settings) -> mw.Trainer:
    partition = mw.TimePartition(model, windows=windows, example=x)
    return mw.Trainer(partition, method, **{"loss": loss, "optimizer": sgd, **settings})


@LAYERS
@EVERY
@pytest.mark.parametrize("windows", [1, 4, 10])
@pytest.mark.parametrize("method", [M.Backprop(), M.Checkpointed()], ids=["kept", "recomputed"])
def test_backprop_over_windows_is_backpropagation_through_time(layer, every, windows, method):
    model = network(layer, every=every, depth=2)
    plain = copy.deepcopy(model)
    trainer = trainer_of(model, method, windows, task(every=every)[0])
    optimizer = sgd(plain.parameters())
    for step in range(3):
        x, y = task(every=every, seed=step)
        losses = trainer.step(x, y)
        optimizer.zero_grad()
        whole = loss(plain(x), y)
        whole.backward()
        optimizer.step()
        total = sum(losses.values()) if every else losses[windows - 1]
        torch.testing.assert_close(total, whole.detach(), rtol=1e-12, atol=0)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@EVERY
def test_truncated_windows_follow_their_own_loss_alone(every):
    """The sum of the windows' losses with every window's first state cut off, in plain torch."""
    x, y = task(every=every)
    model, plain = network(every=every), network(every=every)
    trainer_of(model, M.SyntheticBPTT(bridged=False), 4, x, optimizer=lambda p: torch.optim.SGD(p, lr=0.1)).step(x, y)
    hidden, total, start, output = None, 0.0, 0, None
    for length in (3, 3, 2, 2):
        output, hidden = plain.window(x[:, start : start + length], None if hidden is None else hidden.detach())
        if every:
            total = total + length / 10 * loss(output, y[:, start : start + length])
        start += length
    (total if every else loss(output, y)).backward()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter -= 0.1 * parameter.grad
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_there_is_one_parameter_set_one_optimiser_and_one_head():
    x, y = task(every=True)
    trainer = trainer_of(network(every=True), M.SyntheticBPTT(width=8), 4, x)
    trainer.step(x, y)
    assert set(trainer.updater.optimizers) == {(0, mw.Role.PART), (0, mw.Role.FEEDBACK)}
    predictors = {id(o.inner.predictor) for o in trainer.objectives[:-1]}
    assert len(predictors) == 1
    assert trainer.updater.steps == {0: 1}
    assert [len(part.parameter_names) for part in trainer.partition.parts] == [6, 0, 0, 0]


def test_saved_and_resumed_equals_straight_on(tmp_path):
    batches, models = [task(every=True, seed=s) for s in range(4)], []
    for resumed in (False, True):
        model = network(every=True)
        trainer = trainer_of(model, M.SyntheticBPTT(width=8), 4, batches[0][0])
        for step, (x, y) in enumerate(batches):
            if resumed and step == 2:
                trainer.save(tmp_path)
                model = network(nn.GRU, every=True)
                trainer = trainer_of(model, M.SyntheticBPTT(width=8), 4, x).load(tmp_path)
            trainer.step(x, y)
        models.append(model)
    assert differing(state(models[0]), state(models[1])) == []


class Tempered(nn.Module):
    """A loss with a temperature that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.heat = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        return loss(self.heat * output, y)


@EVERY
def test_the_parameters_of_a_loss_learn_from_all_windows(every):
    (x, y), given, own = task(every=every), Tempered(), Tempered()
    model, plain = network(every=every), network(every=every)
    trainer_of(model, M.Backprop(), 4, x, loss=given).step(x, y)
    own(plain(x), y).backward()
    sgd(own.parameters()).step()
    torch.testing.assert_close(given.heat, own.heat, rtol=1e-12, atol=0)
    assert given.heat.grad is None


def test_windows_have_one_scale_in_half_precision():
    """A gradient is summed over windows: lowered for one, the scale must be lowered for all."""
    x, y = task(every=False)
    models = [network(every=False).float() for _ in range(2)]
    for model, scale in zip(models, (2.0**16, 2.0**10), strict=True):
        trainer = trainer_of(model, M.Backprop(), 4, x.float(), precision=torch.float16)
        trainer.updater.scaler(0, "cpu").load_state_dict({**torch.amp.GradScaler("cpu").state_dict(), "scale": scale})
        trainer.step(x.float(), y)
        assert set(trainer.updater.scalers) == {0}
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_an_audit_of_backpropagation_through_time_sees_that_it_is_global():
    x, y = task(every=False)
    trainer = trainer_of(network(every=False), M.Backprop(), 3, x)
    assert str(mw.checks.locality(trainer, x, y)) == "declared global, observed global"


def test_a_local_method_over_time_says_that_windows_share_what_they_move():
    x, y = task(every=False)
    trainer = trainer_of(network(every=False), M.DGL(classes=4), 3, x)
    assert trainer.locality == mw.Locality(mw.Reach.GRADIENTS)
    assert mw.checks.locality(trainer, x, y).ok


def test_windows_are_as_even_as_can_be():
    assert [window_lengths(10, k) for k in (1, 3, 10)] == [[10], [4, 3, 3], [1] * 10]


class Forgetful(Recurrent):
    """Keeps something beside its state."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.kept = nn.Linear(3, 3), None

    def window(self, moments: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        output = self.layer(moments) * moments.shape[1]
        return output, output[:, -1]


class TimeFirst(Recurrent):
    """Its state has samples along axis 1."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.RNN(3, 4, batch_first=True)

    def window(self, moments: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.layer(moments, state)


class TestRefused:
    def test_a_feed_forward_model(self):
        with pytest.raises(mw.errors.PartitionError, match=r"Sequential was given.*window\(moments, state\)"):
            mw.TimePartition(nn.Sequential(nn.Linear(3, 3)), windows=2, example=torch.zeros(2, 4, 3))

    @pytest.mark.parametrize("windows", [0, 11])
    def test_more_windows_than_moments(self, windows):
        with pytest.raises(mw.errors.PartitionError, match=f"windows={windows} was given for 10 moments"):
            mw.TimePartition(network(every=True), windows=windows, example=task(every=True)[0])

    def test_a_network_that_remembers_more_than_its_state(self):
        with pytest.raises(mw.errors.PartitionError, match="do not give the model's own output"):
            mw.TimePartition(Forgetful(), windows=2, example=torch.randn(2, 4, 3))

    def test_a_state_without_samples_first(self):
        with pytest.raises(mw.errors.PartitionError, match=r"state is \(1, 2, 4\) for 2 samples"):
            mw.TimePartition(TimeFirst(), windows=2, example=torch.randn(2, 4, 3))

    def test_a_sequence_of_another_length(self):
        x, y = task(every=True)
        with pytest.raises(mw.errors.DataError, match=r"sequence of 9 moments was given, .* made for 10"):
            trainer_of(network(every=True), M.Backprop(), 2, x).step(x[:, :9], y[:, :9])

    @pytest.mark.parametrize("setting", [{"accumulate": 2}, {"compile": True}, {"recompute": True}], ids=str)
    def test_what_windows_cannot_have(self, setting):
        with pytest.raises(mw.errors.MethodError, match="given with a partition over time"):
            trainer_of(network(every=True), M.Backprop(), 2, task(every=True)[0], **setting)

    @pytest.mark.parametrize("method", [M.DDG(), M.FeaturesReplay()], ids=["ddg", "replay"])
    def test_windows_that_would_learn_late(self, method):
        with pytest.raises(mw.errors.MethodError, match="a method with delayed gradients was given with a partition"):
            trainer_of(network(every=True), method, 2, task(every=True)[0])

    def test_one_window_after_the_other(self):
        x, y = task(every=True)
        with pytest.raises(mw.errors.MethodError, match="needs later parts in the same step"):
            trainer_of(network(every=True), M.Backprop(), 2, x).fit(
                [(x, y)], epochs=1, schedule=mw.schedules.sequential
            )

    def test_a_method_with_its_own_update(self):
        with pytest.raises(mw.errors.MethodError, match="BCD has its own update and takes no partition over time"):
            mw.Trainer(
                mw.TimePartition(network(every=True), windows=2, example=task(every=True)[0]), M.BCD(), loss=loss
            )

    @pytest.mark.parametrize("method", [M.SyntheticBPTT(), M.TargetPropThroughTime()], ids=["bptt", "tptt"])
    def test_a_recurrent_method_on_a_feed_forward_model(self, method):
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        partition = mw.Partition(model, cuts=["1"], example=torch.zeros(2, 3))
        with pytest.raises(mw.errors.MethodError, match=r"part 0 is no window of time: .* TimePartition"):
            mw.Trainer(partition, method, loss=F.cross_entropy, optimizer=sgd)

    def test_a_layer_with_two_directions(self):
        with pytest.raises(mw.errors.ModulewiseError, match="expected batch_first=True, one direction"):
            RecurrentNetwork(nn.GRU(3, 4, batch_first=True, bidirectional=True), outputs=2, every=True)
