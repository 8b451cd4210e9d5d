"""Parts on processes: the numbers of one process, whatever the method; and what happens when a rank stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launching import HERE, environment, launch

import modulewise as mw

CASES = {"every_method": 2, "whole_runs": 2, "four_ranks": 4, "mismatches": 2, "hangs": 2, "stops": 2}
REFUSED = {
    "a feedback phase": {"DTPDRL", "DirectDTP", "GaussNewtonTargets", "LocalDRL", "NodePerturbation"},
    "a delay": {"DDG", "FeaturesReplay"},
    "a layer rule that learns": {"KolenPollack", "SignSymmetry", "WeightMirror"},
    "the weights of a neighbouring part": {"MAN"},
    "a partition over time": {"SyntheticBPTT", "TargetPropThroughTime"},
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What every rank of every case says; one start for all."""
    found = launch("cases", CASES, folder=tmp_path_factory.mktemp("ranks"))
    broken = {case: rank for case, ranks in found.items() for rank in ranks if "error" in rank}
    assert not broken
    return found


def test_every_method_gives_the_numbers_of_one_process_or_is_refused_by_name(said):
    """Three steps, weights and heads bit for bit; the same answer on both ranks."""
    first, second = said["every_method"]
    assert first == second
    assert set(first) == set(mw.methods.__all__)
    assert not {name: answer for name, answer in first.items() if answer.startswith("differs")}
    refused = {name: answer for name, answer in first.items() if answer.startswith("refused")}
    for why, names in REFUSED.items():
        assert {name for name, answer in refused.items() if why in answer} == names
    solvers = {name for name in mw.methods.__all__ if issubclass(getattr(mw.methods, name), mw.SolverMethod)}
    assert set(refused) == set.union(*REFUSED.values()) | solvers
    assert first["Backprop"] == first["LoCo"] == first["SyntheticGradients"] == first["FeedbackAlignment"] == "equal"


@pytest.mark.parametrize("name", ["DGL", "SGR"])
def test_two_passes_with_dropout_and_augmentation_equal_one_process(said, name):
    """Weights, heads, losses and validation, on every rank; only rank 0 has data."""
    for rank in said["whole_runs"]:
        assert rank[f"{name} weights"] == []
        assert rank[f"{name} losses"]
    assert [rank[f"{name} own"] for rank in said["whole_runs"]] == [[0, 1], [2, 3]]


def test_a_run_resumed_in_the_middle_of_a_pass_equals_one_that_was_not_stopped(said):
    assert [rank["resumed"] for rank in said["whole_runs"]] == [[], []]


def test_checkpoints_go_from_ranks_to_one_process_and_back(said):
    for rank in said["whole_runs"]:
        assert rank["saved"] == rank["loaded from one process"] == []
        assert "MethodError: parts of other ranks are not here yet" in rank["stale"]


def test_a_group_that_was_there_is_left(said):
    assert all(rank["group still there"] and rank["timeline"] == [0, 1] for rank in said["whole_runs"])


@pytest.mark.parametrize("name", ["DGL", "Backprop"])
def test_four_parts_on_four_ranks_with_skips_equal_one_process(said, name):
    assert all(rank[f"{name} over ports"] == [] for rank in said["four_ranks"])


@pytest.mark.parametrize("name", ["DGL", "Backprop"])
def test_slices_on_two_ranks_equal_accumulation_in_one_process(said, name):
    """A mesh of 2 x 2: the same global batch, dropout included, but for the order of sums; all ranks end alike."""
    for rank in said["four_ranks"]:
        assert rank[f"{name} on a mesh"] < 1e-6
        assert rank[f"{name} losses"] < 1e-6
        assert rank[f"{name} moved"] > 1e-3
    assert len({rank[f"{name} alike"] for rank in said["four_ranks"]}) == 1


def test_objectives_that_compare_samples_take_no_slices(said):
    assert all("compares samples with one another" in rank["pairwise"] for rank in said["four_ranks"])
    assert all("expected 2 at most" in rank["too many"] for rank in said["four_ranks"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("seed", "rank 0 and rank 1 differ in seed: 0 and 1"),
        ("cuts", "rank 0 and rank 1 differ in cuts"),
        ("method", "rank 0 and rank 1 differ in method"),
        ("weights", "rank 0 and rank 1 differ in initial weights"),
        ("accumulate", "leave accumulate=2 out"),
        ("clip", "leave global clip_norm out"),
        ("schedule", "expected schedules.pipelined"),
    ],
)
def test_ranks_that_were_not_made_alike_are_refused_at_the_start(said, name, message):
    assert all(message in rank[name] for rank in said["mismatches"])


def test_a_rank_that_hangs_is_named_when_time_is_up(said):
    """The waiting rank says whom it waited for, and for how long; nobody waits for ever."""
    slow, waiting = said["hangs"]
    assert "rank 1 (part 2) has been waiting for rank 0 (parts 0 to 1) for 1.5 s in vain" in waiting["message"]
    assert "hangs, is too slow" in waiting["message"]
    assert waiting["seconds"] < 3.5
    assert "rank 0 (parts 0 to 1)" in slow["message"]
    assert "rank 1 (part 2)" in slow["message"]


def test_a_value_that_is_not_finite_stops_at_the_boundary(said):
    first, second = said["stops"]
    assert first["message"].startswith("NonFiniteBoundaryError: boundary 0, the output of part 0, is not finite")
    assert "rank 0 (part 0) stopped: NonFiniteBoundaryError: boundary 0" in second["message"]
    assert second["seconds"] < 10
    assert first["steps"] == second["steps"] == 2


def test_kills_in_forward_backward_saving_and_sending_lose_nothing(tmp_path):
    """Five kills of either rank: the end equals an undisturbed run in one process, and old states are cleared."""
    (ranks,) = launch("killing", {"killed": 2}, folder=tmp_path).values()
    for rank in ranks:
        assert rank["differing"] == []
        assert (rank["attempt"], rank["steps"]) == (5, 24)
        assert rank["began"] >= 12
        # The rank below may be two saves ahead of the one above, and keeps the newest state that both have.
        assert all(len(states) <= 3 and "state-00000024" in states for states in rank["left"])


def test_torchrun_restarts_a_killed_rank_and_the_numbers_are_the_same(tmp_path):
    """The same under torchrun itself, which starts all ranks again; here after one kill."""
    words = ["-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2", "--max-restarts", "2"]
    words += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--monitor-interval", "0.05"]
    process = subprocess.Popen(
        [sys.executable, *words, str(HERE / "killing.py"), str(tmp_path)],
        env=environment(KILLS="1", PYTHONWARNINGS="default"),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=100)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0, errors
    assert [(tmp_path / f"said-{rank}.txt").read_text() for rank in range(2)] == ["[]1", "[]1"]


def test_a_trace_is_what_a_browser_reads(tmp_path):
    """One complete event a span, in microseconds from the first, one row a rank."""
    doing = mw.engine.ranks.timeline.Doing
    span = mw.engine.ranks.timeline.Span
    spans = [span(0, doing.COMPUTE, 0, 4, 10.0, 0.5, 0.1), span(1, doing.WAIT, 2, 4, 10.25, 0.25)]
    timeline = mw.Timeline(spans)
    timeline.write_trace(tmp_path / "trace.json")
    events = [e for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if e["ph"] == "X"]
    assert [(e["tid"], e["ts"], e["dur"], e["args"]["step"]) for e in events] == [(0, 0, 5e5, 4), (1, 2.5e5, 2.5e5, 4)]
    assert [(share.compute, share.wait) for share in timeline.shares()] == [(0.8, 0.0), (0.0, 0.5)]
    assert "rank 0 (from part 0) computes 2.00 x" in timeline.slow()[0]


def test_a_folder_that_holds_something_else_is_not_written_to(tmp_path: Path):
    """And what is no share's folder does not count as one."""
    complete = mw.engine.ranks.saving.complete
    for name in ("share-0-of-2/state-00000004", "share-1-of-2/state-00000004", "share-1-of-2/state-00000006"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "share-0-of-2/.writing-00000006").mkdir()
    (tmp_path / "share-0-of-3/state-00000009").mkdir(parents=True)
    assert complete(tmp_path) == {2: [4], 3: []}
