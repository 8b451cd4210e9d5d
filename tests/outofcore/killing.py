"""Runs that are killed at a moment and go on: `python killing.py FOLDER FIRST STRIDE KIND`.

The process runs once to the end and ends its reading thread, so that children start warm and with one thread. A moment
is an event of a run: a flush to the disk, a rename, a step, a run of rows written to the cache. A child is killed right
before event number `moment`; another one then goes on in the same folder. Children write what they came to.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from runs import EPOCHS, loader, out_of_core
from safetensors.torch import save_file
from torch import nn

import modulewise.checkpoint
import modulewise.outofcore.caching
import modulewise.outofcore.shards
from modulewise.outofcore import DiskCache, HostCache, Recompute
from modulewise.outofcore.caching import DiskStore
from modulewise.outofcore.learning import Learner

SOURCES = {"disk": DiskCache(), "host": HostCache(), "again": Recompute(batches=3)}
EVERY = {"disk": 2, "host": 100, "again": 2}


def network() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2)),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2)),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 4)),
    )


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


def fit(folder: Path, kind: str) -> Any:
    run = out_of_core(folder, network, cuts=("0", "1"), optimizer=adam)
    run.fit(loader(), epochs=EPOCHS, features=SOURCES[kind], every=EVERY[kind])
    return run


def outcome(folder: Path, kind: str) -> None:
    """Go on to the end and write it down."""
    run = fit(folder, kind)
    values = {f"{part}.{name}": t for part in range(3) for name, t in run.tensors(part).items()}
    heads = {f"head.{part}.{name}": t for part in range(2) for name, t in run.objective(part).state_dict().items()}
    save_file(values | heads | {"steps": torch.tensor(run.learner.steps)}, folder.with_suffix(".end"))
    run.reader.close()


def counting(before: Callable[[], None]) -> None:
    """Call `before` at every event, in this process from now on."""

    def noted(call: Callable[..., Any]) -> Callable[..., Any]:
        def event(*args: Any, **kwargs: Any) -> Any:
            before()
            return call(*args, **kwargs)

        return event

    for module in (modulewise.checkpoint, modulewise.outofcore.shards, modulewise.outofcore.caching):
        module.flush = noted(module.flush)
    for kind, name in ((Path, "replace"), (Path, "rename"), (Learner, "step"), (DiskStore, "_append")):
        setattr(kind, name, noted(getattr(kind, name)))


def in_child(work: Callable[[], None]) -> int:
    """The status of a child that does the work."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def killed_at(moment: int, folder: Path, kind: str) -> bool:
    """Whether a run was killed before event number `moment`; not where it ends earlier."""

    def work() -> None:
        left = [moment]

        def event() -> None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        counting(event)
        fit(folder, kind)

    status = in_child(work)
    assert status == 0 or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL), status
    return status != 0


def main() -> None:
    top, first, stride, kind = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    # What a killed process wrote is the kernel's already; waiting for the disk is for when the power fails.
    os.fsync = lambda descriptor: None
    outcome(top / "never", kind)
    moment = first
    while killed_at(moment, folder := top / f"at-{moment:04d}", kind):
        # Killed a second time, a little later, before it may end.
        killed_at(7, folder, kind)
        assert in_child(lambda folder=folder: outcome(folder, kind)) == 0
        moment += stride
    print(moment)


if __name__ == "__main__":
    main()
