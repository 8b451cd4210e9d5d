"""`modulewise train --launch K`: torchrun for the user, one progress view, one log, one timeline."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from ..engine.ranks.timeline import Timeline

__all__ = ["LOG", "RESTARTS", "note", "rank_here", "show_timeline", "start", "words_of"]

LOG = "log.txt"
RESTARTS = 3
"""How often torchrun starts all ranks again after one has died."""


def rank_here() -> int | None:
    """This process's rank, where torchrun started it; else None."""
    return int(os.environ["RANK"]) if {"RANK", "WORLD_SIZE"} <= os.environ.keys() else None


def words_of(context: typer.Context) -> list[str]:
    """The words that a command was given, made again from the values that are not defaults."""
    words = []
    for parameter in context.command.params:
        name = parameter.name
        if name is None or name not in context.params:
            continue
        value: Any = context.params[name]
        if value is None or value == parameter.get_default(context):
            continue
        if value is True or value is False:
            words.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        else:
            words += [parameter.opts[0], str(value)]
    return words


def start(context: typer.Context, *, ranks: int) -> int:
    """Run this command on so many ranks of this machine, over the loopback interface; torchrun's exit code.

    Args:
        context: of the command.
        ranks: how many processes, >= 1.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(ranks)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    command += ["--max-restarts", str(RESTARTS), "--monitor-interval", "0.2"]
    command += ["-m", "modulewise", str(context.info_name), *words_of(context)]
    environment = dict(os.environ)
    # One thread a rank, and the wires between them on this machine alone, unless the user says otherwise.
    environment.setdefault("OMP_NUM_THREADS", "1")
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    process = subprocess.Popen(command, env=environment)
    # torchrun ends its ranks when it is told to; by itself it would outlive us.
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        return process.wait()
    except KeyboardInterrupt:
        # torchrun has been interrupted as well, and ends its ranks.
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        if process.poll() is None:
            process.terminate()
            process.wait()


def note(folder: Path, text: str) -> None:
    """A line in the log that all ranks share."""
    folder.mkdir(parents=True, exist_ok=True)
    rank = rank_here()
    line = f"{datetime.now().isoformat(timespec='milliseconds')} rank {0 if rank is None else rank}: {text}\n"
    with (folder / LOG).open("a") as log:
        log.write(line)


def show_timeline(timeline: Timeline, path: Path) -> None:
    """Write the trace and print what every rank did with its time."""
    timeline.write_trace(path)
    table = Table("rank", "from part", "compute", "wait", "send", "reduce", "save")
    for share in timeline.shares():
        parts = (share.compute, share.wait, share.send, share.reduce, share.save)
        table.add_row(str(share.rank), str(share.part), *(f"{100 * value:.1f} %" for value in parts))
    console = Console()
    console.print(table)
    for line in timeline.slow():
        console.print(line)
    console.print(f"timeline: {path} (open it in chrome://tracing or Perfetto)")
