"""Start a few processes on this machine for a case, and collect what they say; for tests.

As a program: `python launching.py MODULE CASE WORLD FOLDER` imports once, then forks WORLD ranks that run CASE.
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


def launch(module: str, case: str, *, world: int, folder: Path, limit: float = LIMIT) -> list[Any]:
    """Run a case on so many ranks; what each returned, or an error's class and message.

    The processes form a session of their own, which is ended as a whole when time is up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, str(HERE / "launching.py"), module, case, str(world), str(folder)]
    process = subprocess.Popen(words, env=environment(), stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        process.wait(limit)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return [json.loads((folder / f"said-{rank}.json").read_text()) for rank in range(world)]


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


def main() -> None:
    module, case, world, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    importlib.import_module(module)
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            _rank(module, case, rank, world, folder)
        children.append(child)
    until = time.monotonic() + LIMIT - 5
    while children and time.monotonic() < until:
        children = [child for child in children if os.waitpid(child, os.WNOHANG) == (0, 0)]
        time.sleep(0.02)
    for child in children:
        os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    main()
