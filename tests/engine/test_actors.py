"""The asynchronous schedule on Ray, one small instance on the loopback: kills, hangs, and equality with one process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_networks import differing, seeded, sgd, state
from torch import Tensor, nn

import modulewise as mw
from modulewise.buffers import OldestFirst
from modulewise.engine.actors.starting import started
from modulewise.errors import ActorError
from modulewise.schedules import Actors, Asynchronous, simultaneous
from modulewise.wires import Packet, Wire

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

STORE = 100_000_000


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    """Two CPUs, 100 MB, 127.0.0.1; gone at the end, whatever happens."""
    import small_networks

    here = __import__(__name__)
    with started(Actors(cpus=2, object_store_bytes=STORE), 2):
        for module in (here, small_networks):
            ray.cloudpickle.register_pickle_by_value(module)
        yield


class Mortal(nn.Module):
    """Identity, which ends or holds up its own process once: when it has been called so often, forward or backward.

    With `always` it ends it at every call from when the file `name` is there.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        after: int = 0,
        backward: bool = False,
        seconds: float = 0.0,
        always: bool = False,
    ) -> None:
        super().__init__()
        self.mark, self.after, self.backward, self.seconds = folder / name, after, backward, seconds
        self.always = always
        self.calls, self.home = 0, os.getpid()

    def strike(self) -> None:
        if self.calls > self.after and self.mark.exists() == self.always:
            self.mark.touch()
            if self.seconds:
                time.sleep(self.seconds)
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    def forward(self, h: Tensor) -> Tensor:
        self.calls += os.getpid() != self.home
        if not self.backward:
            self.strike()
        elif h.requires_grad and self.calls > self.after:
            h.register_hook(lambda gradient: self.strike())
        return h


class MortalSGD(torch.optim.SGD):
    """Ends its process once where its state is read for a checkpoint: of the last part, in the second pass."""

    def __init__(self, parameters: Any, mark: Path, home: int) -> None:
        super().__init__(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)
        self.mark, self.home = mark, home

    def state_dict(self) -> dict[str, Any]:
        if os.getpid() != self.home and self.param_groups[0]["lr"] < 0.05 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().state_dict()


@dataclass(frozen=True)
class MortalWire(Wire):
    """As it is; ends the process of the writer once, when it has written so often."""

    mark: Path
    home: int
    after: int

    def encode(self, h: Tensor, *, channel_axis: int = 1, memory: Any = None) -> tuple[Packet, Any]:
        times = int(memory["times"]) if memory else 0
        if os.getpid() != self.home and times == self.after and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Packet({"h": h}, tuple(h.shape), h.dtype), {"times": torch.tensor(times + 1)}

    def decode(self, packet: Packet) -> Tensor:
        return packet.tensors["h"]


def network(*mortals: nn.Module) -> nn.Module:
    """Two parts with batch normalisation and dropout, each with a place to die at."""

    def make() -> nn.Module:
        return nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), mortals[0], nn.ReLU(inplace=True), nn.Dropout(0.2)),
            nn.Sequential(nn.Flatten(), nn.Linear(4 * 16, 12), mortals[1], nn.Dropout(0.2), nn.Linear(12, 4)),
        )

    return seeded(make)


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 1, 6, 6, generator=generator), torch.arange(8) % 4) for _ in range(count)]


def fresh(model: nn.Module, mode: Any = sgd) -> mw.Trainer:
    partition = mw.Partition(model, cuts=["0"], example=batches(1)[0][0])
    method = mw.methods.DGL(classes=4, head=mw.heads.linear)
    halving = lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5)  # noqa: E731
    return mw.Trainer(partition, method, loss=F.cross_entropy, optimizer=mode, scheduler=halving, seed=4)


def test_nothing_listens_beyond_the_loopback() -> None:
    """Ray has no authentication: every listening socket of this process and its children is on 127.0.0.1."""
    psutil = pytest.importorskip("psutil", reason="lists sockets")
    me = psutil.Process()
    sockets = [socket for process in (me, *me.children(recursive=True)) for socket in process.net_connections()]
    listening = [socket.laddr.ip for socket in sockets if socket.status == "LISTEN"]
    assert len(listening) >= 3
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}


def test_killed_at_four_places_the_numbers_are_those_of_one_process(tmp_path: Path) -> None:
    """Parts die by their process id in forward, in backward, while sending and while saving: weights, statistics,
    heads, momenta and rates are those of `simultaneous` bit for bit, every sample entered once, no batch was used
    twice."""
    plain = fresh(network(nn.Identity(), nn.Identity()))
    plain.fit(batches(9), epochs=2, schedule=simultaneous)
    mortals = Mortal(tmp_path, "first", after=5), Mortal(tmp_path, "second", after=7, backward=True)
    actors = Actors(folder=tmp_path, every=4, timeout=50, restarts=3)
    model, home = network(*mortals), os.getpid()
    killed = fresh(model, lambda parameters: MortalSGD(parameters, tmp_path / "saving", home))
    schedule = Asynchronous(policy=OldestFirst(), actors=actors, wire=MortalWire(tmp_path / "sending", home, 11))
    history = killed.fit(batches(9), epochs=2, schedule=schedule)
    assert {"first", "second", "sending", "saving"} <= {path.name for path in tmp_path.iterdir()}
    assert history[-1].flow is not None
    assert history[-1].flow.restarted == (0, 1)
    assert [(e.flow.samples, e.flow.most_used, e.flow.updates) for e in history] == [(72, 1, {0: 9, 1: 9})] * 2
    assert killed.partition.model is model
    one, two = (state(t.partition.model, *t.objectives) for t in (plain, killed))
    assert differing(one, two) == []
    assert (plain.steps, plain.updater.steps) == (killed.steps, killed.updater.steps)
    for key, optimizer in plain.updater.optimizers.items():
        other = killed.updater.optimizers[key]
        assert optimizer.param_groups[0]["lr"] == other.param_groups[0]["lr"]
        pairs = zip(optimizer.state.values(), other.state.values(), strict=True)
        assert all(torch.equal(a["momentum_buffer"], b["momentum_buffer"]) for a, b in pairs)


def test_the_part_above_learns_on_while_the_part_below_is_started_again(tmp_path: Path) -> None:
    """Reuse stays under its cap, and the pass ends with every sample entered once; in the next one part 1 dies more
    often than it may, which ends the run with its name, and what the first pass came to is in the trainer."""
    actors = Actors(folder=tmp_path, every=3, timeout=150, restarts=1)
    mortals = Mortal(tmp_path, "first", after=6), Mortal(tmp_path, "armed", always=True)
    trainer = fresh(network(*mortals))
    history, states = [], []

    def passed(epoch: mw.Epoch) -> None:
        history.append(epoch)
        states.append(state(trainer.partition.model, *trainer.objectives))
        (tmp_path / "armed").touch()

    schedule = Asynchronous(capacity=4, reuse=30, actors=actors)
    with pytest.raises(ActorError, match="the process of part 1 died after 1 restarts") as caught:
        trainer.fit(batches(12), epochs=2, schedule=schedule, callbacks=[passed])
    assert caught.value.part == 1
    flow = history[0].flow
    assert flow is not None
    assert flow.restarted == (0,)
    assert flow.updates[0] == 12
    assert flow.updates[1] >= 12 + 60  # it had at least 5 batches, nothing else to do, and seconds of time
    assert 10 < flow.most_used <= 30
    assert flow.samples == 96
    assert differing(states[0], state(trainer.partition.model, *trainer.objectives)) == []


def test_a_part_that_hangs_ends_in_an_error_with_its_name(tmp_path: Path) -> None:
    trainer = fresh(network(nn.Identity(), Mortal(tmp_path, "second", after=2, seconds=100)))
    begun = time.monotonic()
    with pytest.raises(ActorError, match=r"part 1 has not finished an update for \d+ s \(timeout=20\)") as caught:
        trainer.fit(batches(9), epochs=1, schedule=Asynchronous(actors=Actors(timeout=20)))
    assert caught.value.part == 1
    assert time.monotonic() - begun < 95
