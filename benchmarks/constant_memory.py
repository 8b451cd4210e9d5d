"""Memory of training that does not grow with depth: one part in memory, every other part in a folder.

A residual MLP of 16 and of 64 blocks is trained by Adam, out of core and by end-to-end backpropagation, each in a child
process. Counted is anonymous resident memory (heap, not the page cache) above what the process had after a warm-up, as
the parent reads it from /proc every millisecond. The children out of core run under a cap on their data segment
(`RLIMIT_DATA`) of a tenth of the deep model's parameters and optimiser state above what the warm process had: an
allocation beyond it fails. All children run with glibc's `MALLOC_MMAP_THRESHOLD_` at 1 MiB, so that memory that was
freed goes back to the system and is not counted.

Where a control group can be made, each child trains in one of its own, those out of core under the same cap, page cache
included: the kernel drops the cache as the cap comes near, and ends a process that needs more than that.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import modulewise as mw
from benchmarks.common import SEED, report, row
from benchmarks.control_group import ControlGroup, join
from modulewise.outofcore import DiskCache, HostCache, Recompute

WIDTH, CLASSES, SAMPLES, BATCH = 1448, 10, 512, 64
BLOCKS = (16, 64)
SOURCES = {"host": HostCache(), "disk": DiskCache(), "recompute": Recompute(batches=8)}


class Block(nn.Module):
    """h + W2 relu(W1 norm(h)); 16 MiB of parameters at width 1448."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        """The next hidden state (N, width)."""
        return h + self.two(functional.relu(self.one(self.norm(h))))


def network(blocks: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, width), *(Block(width) for _ in range(blocks)), nn.Linear(width, CLASSES))


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


def data() -> mw.data.Loader:
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(SAMPLES, 64, generator=generator)
    return mw.data.Loader(mw.data.Split(x, x[:, :CLASSES].argmax(1)), batch_size=BATCH, seed=SEED)


def status(pid: int | str, field: str) -> int:
    """Bytes of a field of /proc/PID/status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    return 0


def train(kind: str, blocks: int, width: int, folder: Path) -> float:
    """One epoch; the last loss."""
    if kind == "E2EBP":
        torch.manual_seed(SEED)
        model = network(blocks, width)
        optimizer, loss = adam(model.parameters()), torch.zeros(())
        for x, y in data():
            optimizer.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        return float(loss.detach())
    with torch.device("meta"):
        model = network(blocks, width)
    cuts = [str(index) for index in range(1, blocks + 1)]
    partition = mw.Partition(model, cuts=cuts, example=torch.zeros(BATCH, 64))
    run = mw.OutOfCore(
        partition,
        mw.methods.DGL(classes=CLASSES, head=mw.heads.linear),
        folder=folder,
        loss=functional.cross_entropy,
        optimizer=adam,
        seed=SEED,
    )
    history = run.fit(data(), epochs=1, features=SOURCES[kind])
    assert len(history) == blocks + 1
    return history[-1].losses[blocks]


def child(kind: str, blocks: int, width: int, cap: int, group: str) -> None:
    """Warm up on a small model, put the cap on, train; what was found goes out as JSON."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as small, tempfile.TemporaryDirectory() as folder:
        train(kind, 2, 8, Path(small))
        before = status("self", "RssAnon")
        if cap:
            limit = status("self", "VmData") + cap
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        if group:
            join(Path(group))
        print(json.dumps({"before": before}), flush=True)
        started = time.perf_counter()
        loss = train(kind, blocks, width, Path(folder))
        print(json.dumps({"loss": loss, "seconds": round(time.perf_counter() - started, 1)}), flush=True)


def watched(kind: str, blocks: int, width: int, cap: int) -> dict[str, Any]:
    """Peak anonymous bytes of a child above those it had after its warm-up."""
    with ControlGroup(f"{kind}-{blocks}", cap=cap) as group:
        return _watched(kind, blocks, width, cap, group)


def _watched(kind: str, blocks: int, width: int, cap: int, group: ControlGroup) -> dict[str, Any]:
    words = [sys.executable, "-m", "benchmarks.constant_memory", kind, str(blocks), str(width), str(cap)]
    words.append("" if group.path is None else str(group.path))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        before, peak, grouped = json.loads(process.stdout.readline())["before"], 0, 0
        while process.poll() is None:
            try:
                peak = max(peak, status(process.pid, "RssAnon"))
                grouped = max(grouped, group.anonymous())
            except FileNotFoundError:
                break
            time.sleep(0.001)
        found = json.loads(process.stdout.read() or "{}")
    if process.returncode != 0:
        raise SystemExit(f"{kind} with {blocks} blocks failed under a cap of {cap} bytes")
    kept = {} if group.path is None else {"group_anonymous_peak": grouped, "group_peak": group.peak()}
    return {"peak": peak - before, "before": before, **kept, **found}


def main(width: int = WIDTH, depths: tuple[int, int] = BLOCKS) -> None:
    shallow, deep = depths
    state = 3 * 4 * sum(p.numel() for p in network(deep, width).parameters())
    cap, rows = state // 10, []
    for kind in (*SOURCES, "E2EBP"):
        runs = {blocks: watched(kind, blocks, width, 0 if kind == "E2EBP" else cap) for blocks in depths}
        name = "E2EBP" if kind == "E2EBP" else f"out of core, features: {kind}"
        details = {"blocks": list(depths), "width": width, "cap": cap, "parameters_and_state": state}
        rows.append(
            row(
                "constant-memory",
                f"{name}: {deep} blocks to {shallow}",
                "peak",
                runs[deep]["peak"],
                runs[shallow]["peak"],
                None if kind == "E2EBP" else 1.1,
                runs={str(blocks): found for blocks, found in runs.items()},
                **details,
            )
        )
        both = [runs[blocks].get("group_anonymous_peak") for blocks in (deep, shallow)]
        if all(both):
            target = None if kind == "E2EBP" else 1.1
            case = f"{name}: {deep} blocks to {shallow}, as its control group counts"
            rows.append(row("constant-memory", case, "peak", *both, target, **details))
        if kind != "E2EBP":
            rows.append(
                row("constant-memory", f"{name}, {deep} blocks: to parameters and Adam's state", "peak",
                    runs[deep]["peak"], state, 0.1, capped=True, **details)
            )  # fmt: skip
    report("constant-memory", rows)


if __name__ == "__main__":
    if len(sys.argv) == 6:
        child(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        main()
