"""Two ranks that train the same two parts on halves of every batch: parts whole on both, and in pieces.

Seconds are medians over rounds in which both ways have their turns in the same two processes, with one thread each.
Bytes are those of weights and optimiser states that a rank holds between steps; peaks are of processes of their own,
the most memory that was ever resident less what was there before the model.

`python -m benchmarks.pieces` takes about a minute; `--quick` is a try-out that writes nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
import torch.distributed as dist
import torch.distributed.fsdp
from torch import Tensor, nn
from torch.nn import functional

import modulewise as mw
from benchmarks.common import SEED, report, row

WIDTH, LAYERS, BATCH = 1024, 6, 64
STEPS, ROUNDS = 8, 5
WAYS = {"whole": False, "pieces": True}


def trainer(*, shard: bool) -> mw.Trainer:
    """Two parts of linear layers, with Adam."""
    torch.manual_seed(SEED)
    parts = [[m for _ in range(LAYERS) for m in (nn.Linear(WIDTH, WIDTH), nn.ReLU())] for _ in range(2)]
    model = nn.Sequential(nn.Sequential(*parts[0]), nn.Sequential(*parts[1], nn.Linear(WIDTH, 10)))
    return mw.Trainer(
        mw.Partition(model, cuts=["0"], example=torch.randn(2, WIDTH)),
        mw.methods.DGL(classes=10, head=mw.heads.linear),
        loss=functional.cross_entropy,
        optimizer=torch.optim.Adam,
        seed=SEED,
        ranks=mw.Ranks(data=2, timeout=120, shard=shard),
    )


def held(subject: mw.Trainer) -> int:
    """Bytes of weights and of what the optimisers keep for parts and heads, on this rank."""
    weights = [*subject.partition.model.parameters(), *subject.updater.pieces.values()]
    weights += [p for objective in subject.objectives for p in objective.parameters()]
    states = [t for o in subject.updater.optimizers.values() for s in o.state.values() for t in s.values()]
    local = [t.to_local() if hasattr(t, "to_local") else t for t in (*weights, *states) if isinstance(t, Tensor)]
    return sum(t.numel() * t.element_size() for t in local)


def resident(word: str) -> int:
    """A line of this process's status, in bytes."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(word)]
    return int(line.split()[1]) * 1024


def measure(rank: int, folder: Path, ways: list[str], *, steps: int, rounds: int) -> None:
    """Some ways in turn on one rank; rank 0 writes what it found."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    x, y = torch.randn(BATCH, WIDTH), torch.arange(BATCH) % 10
    before = resident("VmRSS")
    subjects = {way: trainer(shard=WAYS[way]) for way in ways}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, subject in subjects.items():
            dist.barrier()
            start = perf_counter()
            for _ in range(steps if turn else 1):
                subject.step(x, y)
            if turn:
                seconds[way].append((perf_counter() - start) / steps)
    found = {"seconds": seconds, "held": {way: held(subject) for way, subject in subjects.items()}}
    if rank == 0:
        (folder / "found.json").write_text(json.dumps({**found, "peak": resident("VmHWM") - before}))
    dist.barrier()
    os._exit(0)


def started(ways: list[str], *, quick: bool) -> dict:
    """Two processes that go through some ways; what they found."""
    # Memory that was freed goes back at once, so that a peak is what was in use.
    returned = {"MALLOC_MMAP_THRESHOLD_": "500000", "MALLOC_ARENA_MAX": "2"} if len(ways) == 1 else {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **returned}
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "benchmarks.pieces", "--rank", folder, str(int(quick)), *ways]
        children = [subprocess.Popen([*words, str(rank)], env=environment) for rank in range(2)]
        try:
            for child in children:
                child.wait(300)
        finally:
            for child in children:
                child.kill()
        return json.loads((Path(folder) / "found.json").read_text())


def rows(both: dict, alone: dict[str, dict]) -> list[dict]:
    """In pieces beside whole: seconds a step, bytes held, peaks."""
    case = f"{2 * LAYERS} layers of {WIDTH} units, Adam, batch {BATCH}, pieces / whole parts"
    times = {way: median(own) for way, own in both["seconds"].items()}
    made = [
        row("pieces", f"{case}: weights and states", "bytes", both["held"]["pieces"], both["held"]["whole"], None),
        row("pieces", f"{case}: peak", "bytes", alone["pieces"]["peak"], alone["whole"]["peak"], None),
        row("pieces", f"{case}: step", "seconds", times["pieces"], times["whole"], None),
    ]
    return [{**one, "device": "cpu (2 processes, 1 thread each)"} for one in made]


def main() -> None:
    """Start both ranks, or be one of them."""
    if "--rank" in sys.argv:
        folder, quick, *ways, rank = sys.argv[sys.argv.index("--rank") + 1 :]
        few = bool(int(quick))
        measure(int(rank), Path(folder), ways, steps=2 if few else STEPS, rounds=1 if few else ROUNDS)
        return
    quick = "--quick" in sys.argv
    made = rows(started(list(WAYS), quick=quick), {way: started([way], quick=quick) for way in WAYS})
    if quick:
        for one in made:
            print(f"{one['case']:<80} ratio {one['ratio']:.3f}")
        return
    report("pieces", made)


if __name__ == "__main__":
    main()
