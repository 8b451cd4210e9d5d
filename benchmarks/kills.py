"""Fifty `kill -9` of random ranks at random moments, under torchrun: nothing is lost, and no number differs.

`python -m benchmarks.kills` takes about eight minutes (a restart imports torch anew), `--kills 3` is a try-out; it is
ended after 20 minutes in any case. Writes `results/bench-kills.jsonl` where all kills were made.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import torch
from torch import Tensor, nn

import modulewise as mw
from benchmarks.common import SEED, report, row, sgd
from modulewise.engine.ranks.saving import newest

KILLS, RANKS, LIMIT = 50, 2, 1200.0
SAMPLES, BATCH, EPOCHS, EVERY, PAUSE = 256, 16, 120, 8, 0.02


class Ledger:
    """A loader that notes which samples it hands out in which step, and takes its time over it."""

    def __init__(self, loader: mw.data.Loader, path: Path | None, attempt: int, step: int) -> None:
        self.loader, self.path, self.attempt, self.step = loader, path, attempt, step

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for indices, x, y in self.loader.with_indices():
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps([self.attempt, self.step, indices.tolist()]) + "\n")
                sleep(PAUSE)
            self.step += 1
            yield x, y


def loader() -> mw.data.Loader:
    """Random images, shuffled."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(SAMPLES, 3, 8, 8, generator=generator)
    return mw.data.Loader(mw.data.Split(x, torch.arange(SAMPLES) % 4), batch_size=BATCH, seed=SEED)


def trainer(ranks: mw.Ranks | None) -> mw.Trainer:
    """Four parts with dropout."""
    torch.manual_seed(SEED)
    block = [[nn.Conv2d(n, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1)] for n in (3, 8, 8)]
    top = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    model = nn.Sequential(*(nn.Sequential(*layers) for layers in block), top)
    partition = mw.Partition(model, cuts=["0", "1", "2"], example=torch.randn(4, 3, 8, 8))
    method = mw.methods.DGL(classes=4)
    return mw.Trainer(partition, method, loss=nn.functional.cross_entropy, optimizer=sgd, seed=SEED, ranks=ranks)


def work(folder: Path) -> None:
    """One rank under torchrun."""
    torch.set_num_threads(1)
    rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    ranks, batches = trainer(mw.Ranks(timeout=60)), loader()
    if newest(folder / "state") is not None:
        ranks.load(folder / "state", loader=batches)
    noted = Ledger(batches, folder / "ledger.jsonl" if rank == 0 else None, attempt, ranks.steps)
    (folder / f"pid-{attempt}-{rank}").write_text(f"{os.getpid()} {ranks.steps}")
    ranks.fit(noted, epochs=EPOCHS, schedule=mw.schedules.pipelined, checkpoint=folder / "state", every=EVERY)
    torch.save(ranks.partition.model.state_dict(), folder / f"end-{rank}.pt")
    ranks.close()


def kill(process: subprocess.Popen, folder: Path, *, kills: int) -> list[dict[str, int]]:
    """Kill a random rank of every attempt a random moment after it has started to train."""
    draw, until, done = random.Random(SEED), monotonic() + LIMIT, []
    while process.poll() is None and monotonic() < until and len(done) < kills:
        pids = [folder / f"pid-{len(done)}-{rank}" for rank in range(RANKS)]
        if not all(path.exists() and path.read_text() for path in pids):
            sleep(0.05)
            continue
        sleep(draw.uniform(0.0, 1.5))
        rank = draw.randrange(RANKS)
        pid, step = map(int, pids[rank].read_text().split())
        os.kill(pid, signal.SIGKILL)
        done.append({"rank": rank, "from_step": step})
    return done


def lineage(path: Path) -> dict[int, list[int]]:
    """The samples of every step that counts: of the last attempt that made it."""
    steps: dict[int, tuple[int, list[int]]] = {}
    for line in path.read_text().splitlines():
        attempt, step, indices = json.loads(line)
        steps[step] = max(steps.get(step, (-1, [])), (attempt, indices))
    return {step: indices for step, (_, indices) in sorted(steps.items())}


def run(folder: Path, kills: int) -> dict[str, Any]:
    """All kills, and what came of it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(RANKS)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--monitor-interval", "0.05"]
    command += ["--max-restarts", str(kills + 5), "-m", "benchmarks.kills", "--work", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    start = monotonic()
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        done = kill(process, folder, kills=kills)
        process.wait(max(1.0, LIMIT - (monotonic() - start)))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    torch.set_num_threads(1)  # as the ranks have: with two threads sums are made in another order
    one = trainer(None)
    one.fit(loader(), epochs=EPOCHS)
    ends = [torch.load(folder / f"end-{rank}.pt") for rank in range(RANKS)]
    expected = one.partition.model.state_dict()
    different = sum(not torch.equal(end[name], expected[name]) for end in ends for name in expected)
    steps = lineage(folder / "ledger.jsonl")
    passes = SAMPLES // BATCH
    once = all(
        sorted(i for step in range(epoch * passes, (epoch + 1) * passes) for i in steps[step]) == list(range(SAMPLES))
        for epoch in range(EPOCHS)
    )
    return {
        "kills": len(done),
        "different_tensors": different,
        "tensors": len(ends) * len(expected),
        "every_sample_once_an_epoch": once,
        "killed": done,
        "wall_seconds": round(monotonic() - start, 1),
    }


def main() -> None:
    """The whole test, or one rank of it."""
    if "--work" in sys.argv:
        work(Path(sys.argv[sys.argv.index("--work") + 1]))
        return
    kills = int(sys.argv[sys.argv.index("--kills") + 1]) if "--kills" in sys.argv else KILLS
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), kills)
    print(json.dumps(found))
    lost = found["different_tensors"] + (not found["every_sample_once_an_epoch"])
    assert found["kills"] == kills, "the run ended before all kills were made"
    assert lost == 0, "something was lost"
    if kills == KILLS:
        case = f"{KILLS} kills of {RANKS} ranks under torchrun, tensors that differ from an undisturbed run"
        report("kills", [row("kills", case, "tensors", lost, found["tensors"], 0.0, **found)])


if __name__ == "__main__":
    main()
