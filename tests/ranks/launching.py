"""Start a few processes on this machine for a case, and collect what they say; for tests.

As a program: `python launching.py MODULE FOLDER CASE WORLD ...` imports once, then runs each case on WORLD forks.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIMIT = 120.0
"""Seconds after which every process of a case is ended."""


def environment(**more: str) -> dict[str, str]:
    """One thread, loopback, our own sources, no torchrun around."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TORCHELASTIC", "GROUP_"))}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        kept.pop(name, None)
    paths = [str(HERE.parents[1] / "src"), str(HERE), str(HERE.parent)]
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONWARNINGS": "error",
        **more,
    }


def launch(module: str, cases: dict[str, int], *, folder: Path, limit: float = LIMIT) -> dict[str, list[Any]]:
    """Run cases, one after another, on so many ranks each; what each rank returned, or its error and message.

    The processes form a session of their own, which is ended as a whole when time is up.
    """
    counted = [str(word) for pair in cases.items() for word in pair]
    words = [sys.executable, str(HERE / "launching.py"), module, str(folder), *counted]
    process = subprocess.Popen(words, env=environment(), stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        process.wait(limit)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return {
        case: [json.loads(path.read_text()) if path.exists() else {"error": "nothing said"} for path in paths]
        for case, world in cases.items()
        for paths in [[folder / case / f"said-{rank}.json" for rank in range(world)]]
    }


def _rank(module: str, case: str, rank: int, world: int, folder: Path) -> None:
    import torch.distributed as dist

    said: Any
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=timedelta(seconds=60)
        )
        said = getattr(importlib.import_module(module), case)(rank, folder)
    except BaseException as error:
        if not type(error).__module__.startswith("modulewise"):
            traceback.print_exc()
        said = {"error": type(error).__name__, "message": str(error)}
    (folder / f".said-{rank}").write_text(json.dumps(said))
    (folder / f".said-{rank}").replace(folder / f"said-{rank}.json")
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads that wait for a dead peer are not waited for.
    os._exit(0)


def _run(module: str, case: str, world: int, folder: Path, attempt: int = 0) -> None:
    """Fork the ranks of a case; where one is killed, end the others and start all of them again, as torchrun does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "store").unlink(missing_ok=True)
    os.environ["ATTEMPT"] = str(attempt)
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            _rank(module, case, rank, world, folder)
        children.append(child)
    until, killed = time.monotonic() + LIMIT / 3, False
    while children and not killed and time.monotonic() < until:
        for child in list(children):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                children.remove(child)
                killed |= os.WIFSIGNALED(status)
        time.sleep(0.02)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if killed and attempt < 9:
        _run(module, case, world, folder, attempt + 1)


def main() -> None:
    module, folder, *words = sys.argv[1:]
    importlib.import_module(module)
    for case, world in zip(words[::2], words[1::2], strict=True):
        _run(module, case, int(world), Path(folder) / case)


if __name__ == "__main__":
    main()
