"""Fifty random kills of parts on Ray, one after another: at the end the numbers are those of one undisturbed process.

    python -m benchmarks.actor_kills --kills 50     # about six minutes on two idle cores

Parts train at lag 0 (a queue, every batch once); a thread kills the process of a random part at random moments, by the
id that the part's own forward has written down. Ends with 1 where a single bit differs; writes
`results/bench-actor-kills.jsonl`.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import modulewise as mw
from benchmarks.common import SEED, report, row, sgd
from modulewise.buffers import OldestFirst
from modulewise.schedules import Actors, Asynchronous, simultaneous

PARTS = 2


class Signed(nn.Module):
    """Identity that writes down which process ran it, and takes a moment."""

    def __init__(self, folder: Path, part: int) -> None:
        super().__init__()
        self.path, self.home = folder / f"pid-{part}", os.getpid()

    def forward(self, h: Tensor) -> Tensor:
        """The input."""
        if os.getpid() != self.home:
            self.path.write_text(str(os.getpid()))
            time.sleep(0.02)
        return h


def trainer(folder: Path) -> mw.Trainer:
    """Two parts with dropout and batch normalisation."""
    torch.manual_seed(SEED)
    model = nn.Sequential(
        nn.Sequential(nn.Linear(8, 16), Signed(folder, 0), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2)),
        nn.Sequential(nn.Linear(16, 16), Signed(folder, 1), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4)),
    )
    partition = mw.Partition(model, cuts=["0"], example=torch.randn(8, 8))
    method = mw.methods.DGL(4, head=mw.heads.linear)
    return mw.Trainer(partition, method, loss=functional.cross_entropy, optimizer=sgd, seed=SEED)


class Killer(threading.Thread):
    """Kills parts until there are enough kills; `passes` end only then."""

    def __init__(self, folder: Path, kills: int) -> None:
        super().__init__(daemon=True)
        self.folder, self.kills, self.done = folder, kills, 0
        self.draws, self.last = random.Random(SEED), dict.fromkeys(range(PARTS), "")

    def run(self) -> None:
        """One kill after another, each of a process that has not been killed yet."""
        while self.done < self.kills:
            time.sleep(self.draws.uniform(0.0, 1.0))
            part = self.draws.randrange(PARTS)
            with suppress(OSError):
                pid = (self.folder / f"pid-{part}").read_text()
                if pid and pid != self.last[part]:
                    os.kill(int(pid), signal.SIGKILL)
                    self.last[part], self.done = pid, self.done + 1
                    print(f"kill {self.done}: part {part}", flush=True)


def main() -> None:
    """Run with kills, then without, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how many")
    kills = parser.parse_args().kills
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(64, 8, 8, generator=generator)
    batches = [(x[i], torch.arange(8) % 4) for i in range(64)]
    with tempfile.TemporaryDirectory() as name:
        folder, passes = Path(name), 0
        killer, killed = Killer(folder, kills), trainer(folder)

        class EnoughError(Exception):
            """All kills are done."""

        def passed(epoch: mw.Epoch) -> None:
            nonlocal passes
            passes = epoch.epoch + 1
            if killer.done >= kills:
                raise EnoughError

        actors = Actors(folder=folder, every=8, restarts=kills + 1, timeout=120.0)
        killer.start()
        with suppress(EnoughError):
            schedule = Asynchronous(policy=OldestFirst(), actors=actors)
            killed.fit(batches, epochs=1_000_000, schedule=schedule, callbacks=[passed])
        plain = trainer(folder)
        plain.fit(batches, epochs=passes, schedule=simultaneous)
    ours, theirs = killed.partition.model.state_dict(), plain.partition.model.state_dict()
    different = [key for key in ours if not torch.equal(ours[key], theirs[key])]
    print(f"{killer.done} kills, {passes} passes of {len(batches)} batches; different: {different or 'nothing'}")
    case = f"{killer.done} kills of actors under Ray, tensors that differ from an undisturbed run"
    facts = {"kills": killer.done, "passes": passes, "batches": len(batches)}
    report("actor-kills", [row("actor-kills", case, "tensors", len(different), len(ours), 0.0, **facts)])
    raise SystemExit(bool(different))


if __name__ == "__main__":
    main()
