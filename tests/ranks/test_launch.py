"""`modulewise train --launch`: torchrun for the user, stopped and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

from launching import environment

from modulewise.cli import main

WORDS = ("--data", "digits", "--model", "mlp", "--parts", "2", "--epochs", "20", "--batch-size", "64", "--threads", "1")
LIMIT = 200.0


def started(out: Path, *words: str) -> subprocess.Popen:
    """`modulewise train` with DGL, in processes that can be ended together."""
    command = [sys.executable, "-m", "modulewise", "train", "--method", "dgl", *WORDS, "--out", str(out), *words]
    return subprocess.Popen(
        command,
        env=environment(PYTHONWARNINGS="default"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen) -> str:
    """What it printed, once it has ended by itself and well."""
    try:
        said, _ = process.communicate(timeout=LIMIT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0, said
    return said


def test_launched_stopped_and_gone_on_with_is_one_process_undisturbed(tmp_path):
    """Told to stop after the second epoch; the same command goes on from there to the figures of one process."""
    log = tmp_path / "ranks" / "log.txt"
    first = started(tmp_path / "ranks", "--launch", "2", "--schedule", "pipelined")
    until = monotonic() + LIMIT
    while first.poll() is None and monotonic() < until and not (log.exists() and "epoch 2 ended" in log.read_text()):
        sleep(0.01)
    assert first.poll() is None, first.communicate()[0]
    first.terminate()
    first.communicate(timeout=LIMIT)
    said = ended(started(tmp_path / "ranks", "--launch", "2", "--schedule", "pipelined"))
    assert main(["train", "--method", "dgl", *WORDS, "--out", str(tmp_path / "one")]) == 0
    ours, theirs = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("ranks", "one"))
    assert ours == theirs
    begun = [line for line in log.read_text().splitlines() if "from step" in line]
    assert len(begun) == 4
    assert sum(not line.endswith("from step 0") for line in begun) == 2
    assert "compute" in said
    assert "wait" in said
    events = json.loads((tmp_path / "ranks" / "trace.json").read_text())["traceEvents"]
    assert {event["tid"] for event in events if event["ph"] == "X"} == {0, 1}
