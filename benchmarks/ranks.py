"""Two parts on two ranks beside two independent processes, and beside torch's own 1F1B at the same cut.

Two processes with one thread each stay alive and go through all candidates in turn, several rounds, so that all of them
see the same minutes of a noisy machine. Ratios are of seconds a batch, medians over rounds; below 1 is faster.

`python -m benchmarks.ranks` takes about two minutes; `--quick` is a try-out that writes nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.nn import functional

import modulewise as mw
from benchmarks.common import SEED, PlainLoop, report, row, sgd, trainer

WIDTH, BLOCKS, SIZE = 64, 4, 16
BATCH, STEPS, ROUNDS = 64, 24, 5
MICRO = {4: 1.2, 8: 1.1}
"""Numbers of micro-batches of 1F1B, and how many times its throughput is the goal."""
LINEAR = partial(mw.heads.linear, pool=1)


def cnn() -> nn.Sequential:
    """Two parts of the same blocks; what the stem costs, the classifier and its pooling cost about as much less."""
    torch.manual_seed(SEED)

    def blocks() -> list[nn.Module]:
        layers: list[nn.Module] = []
        for _ in range(BLOCKS):
            layers += [nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()]
        return layers

    stem = [nn.Conv2d(3, WIDTH, 1, bias=False)]
    top = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 10)]
    return nn.Sequential(nn.Sequential(*stem, *blocks()), nn.Sequential(*blocks(), *top))


def batch() -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W) and labels (N,)."""
    return torch.randn(BATCH, 3, SIZE, SIZE), torch.arange(BATCH) % 10


class Pair:
    """All candidates on one of two ranks; each gives the seconds that `steps` batches took here."""

    def __init__(self, rank: int) -> None:
        torch.set_num_threads(1)
        self.rank, (self.x, self.y) = rank, batch()
        self.plain, self.partition = PlainLoop(cnn()), mw.Partition(cnn(), cuts=["0"], example=self.x[:2])
        self.ranks = trainer(self.partition, mw.methods.DGL(classes=10, head=LINEAR), ranks=mw.Ranks(timeout=120))
        self.pipes = {count: self._pipe(count) for count in MICRO}

    def _pipe(self, count: int) -> Callable[[], None]:
        part = cnn()[self.rank]
        stage = PipelineStage(part, self.rank, 2, torch.device("cpu"))
        schedule = Schedule1F1B(stage, n_microbatches=count, loss_fn=functional.cross_entropy)
        optimizer = sgd(part.parameters())

        def step() -> None:
            if self.rank == 0:
                schedule.step(self.x)
            else:
                schedule.step(target=self.y, losses=[])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def independent(self, steps: int) -> float:
        """End-to-end backpropagation on the whole network, each process by itself."""
        start = perf_counter()
        for _ in range(steps):
            self.plain.step(self.x, self.y)
        return perf_counter() - start

    def sliced(self, steps: int, *, count: int) -> float:
        """The same in as many micro-batches as 1F1B has: what small batches cost without any pipeline."""
        start = perf_counter()
        for _ in range(steps):
            for x, y in zip(self.x.chunk(count), self.y.chunk(count), strict=True):
                (functional.cross_entropy(self.plain.model(x), y) / count).backward()
            self.plain.optimizer.step()
            self.plain.optimizer.zero_grad(set_to_none=True)
        return perf_counter() - start

    def pipelined(self, steps: int) -> float:
        """Parts on ranks, local losses: filling of the pipeline included, the gathering of weights at the end not."""
        self.ranks.crew.recorder.spans.clear()
        start = perf_counter()
        loop = self.ranks.passes([(self.x, self.y)] * steps, 1, mw.schedules.pipelined, None)
        self.partition.model.train()
        for _ in range(steps):
            next(loop)
        seconds = perf_counter() - start
        for _ in loop:
            pass
        self.ranks.progress = None
        return seconds

    def pipe(self, steps: int, *, count: int) -> float:
        """Torch's 1F1B on the same cut and global batch."""
        start = perf_counter()
        for _ in range(steps):
            self.pipes[count]()
        return perf_counter() - start

    def candidates(self) -> dict[str, Callable[[int], float]]:
        """By name."""
        found: dict[str, Callable[[int], float]] = {"independent": self.independent, "pipelined": self.pipelined}
        for count in MICRO:
            found[f"1F1B {count}"] = partial(self.pipe, count=count)
            found[f"sliced {count}"] = partial(self.sliced, count=count)
        return found


def measure(rank: int, folder: Path, *, steps: int, rounds: int) -> None:
    """All rounds on one rank; rank 0 writes what both measured."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    pair = Pair(rank)
    seconds: dict[str, list[list[float]]] = {}
    shares = []
    for turn in range(rounds + 1):
        for name, run in pair.candidates().items():
            dist.barrier()
            own = run(steps if turn else 2)
            both: list[float] = [0.0, 0.0]
            dist.all_gather_object(both, own)
            if turn:
                seconds.setdefault(name, []).append(both)
            if name == "pipelined":
                shares = [vars(share) for share in pair.ranks.crew.timeline().shares()]
    if rank == 0:
        (folder / "seconds.json").write_text(json.dumps({"seconds": seconds, "shares": shares}))
    dist.barrier()
    os._exit(0)


def started(folder: Path, *, quick: bool) -> dict:
    """Run both processes; what they measured."""
    words = [sys.executable, "-m", "benchmarks.ranks", "--rank"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    children = [subprocess.Popen([*words, str(k), str(folder), str(int(quick))], env=environment) for k in range(2)]
    try:
        for child in children:
            child.wait(900)
    finally:
        for child in children:
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)
        sleep(0.1)
    return json.loads((folder / "seconds.json").read_text())


def rows(found: dict, steps: int) -> list[dict]:
    """Seconds a batch of the pipelined ranks beside everything else, and what explains it."""
    seconds = found["seconds"]
    # Two processes by themselves do two batches in the time of one; a pipeline does one in the slower rank's time.
    independent = [1 / sum(steps / s for s in both) for both in seconds["independent"]]
    ours = [max(both) / steps for both in seconds["pipelined"]]
    label = f"CNN of 2 x {BLOCKS} blocks, batch {BATCH}"
    details = {"steps": steps, "rounds": len(ours), "shares": found["shares"]}
    made = [_row(f"{label}, 2 ranks / 2 independent E2EBP processes", ours, independent, 1 / 0.95, **details)]
    for count, goal in MICRO.items():
        theirs = [max(both) / steps for both in seconds[f"1F1B {count}"]]
        small = [1 / sum(steps / s for s in both) for both in seconds[f"sliced {count}"]]
        bound = 1 + 1 / count
        name = f"1F1B, {count} micro-batches"
        made.append(_row(f"{label}, 2 ranks / {name}", ours, theirs, 1 / goal, bubble_bound=1 / bound))
        made.append(_row(f"{label}, {name} / 2 independent E2EBP processes", theirs, independent, None))
        made.append(_row(f"{label}, {count} micro-batches without a pipeline / whole batch", small, independent, None))
    return made


def _row(case: str, values: list[float], references: list[float], target: float | None, **details: object) -> dict:
    ratio = median(v / r for v, r in zip(values, references, strict=True))
    found = row("ranks", case, "seconds", ratio * median(references), median(references), target, **details)
    return {**found, "device": "cpu (2 processes, 1 thread each)"}


def main() -> None:
    """Start both ranks, or be one of them."""
    if "--rank" in sys.argv:
        rank, folder, quick = sys.argv[sys.argv.index("--rank") + 1 :]
        few = bool(int(quick))
        measure(int(rank), Path(folder), steps=6 if few else STEPS, rounds=2 if few else ROUNDS)
        return
    quick = "--quick" in sys.argv
    with tempfile.TemporaryDirectory() as folder:
        made = rows(started(Path(folder), quick=quick), 6 if quick else STEPS)
    if quick:
        for r in made:
            print(f"{r['case']:<80} ratio {r['ratio']:.3f} target {r['target']}")
        return
    report("ranks", made)


if __name__ == "__main__":
    main()
