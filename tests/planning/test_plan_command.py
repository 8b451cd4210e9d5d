"""`modulewise plan`: what it prints is the plan's, and it refuses what it cannot plan in one line."""

from __future__ import annotations

import pytest

from modulewise.cli import main

SMALL = ["plan", "cnn", "--batch", "16", "--input", "3,16,16", "--classes", "4", "--method", "dgl:head=linear"]


def test_one_device_gets_the_fewest_parts_beside_the_controls(capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of the parts, the cuts to use, and E2EBP."""
    assert main([*SMALL, "--memory", "12MiB"]) == 0
    printed = capsys.readouterr().out
    assert "--cuts " in printed
    assert "beside it, on one device" in printed
    assert "E2EBP, checkpointed" in printed


def test_devices_get_a_row_for_every_way_of_training(capsys: pytest.CaptureFixture[str]) -> None:
    """Local schedules and pipelines at the same cut."""
    assert main([*SMALL, "--devices", "2x1GiB"]) == 0
    printed = capsys.readouterr().out
    for way in ("pipelined", "asynchronous", "GPipe", "1F1B", "zero-bubble (ZB-H1)", "E2EBP, data parallel"):
        assert way in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "exactly one"),
        (["--memory", "much"], "no size"),
        (["--memory", "1KiB"], "fits 1 KiB in no number of parts"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, nothing on standard output."""
    assert main([*SMALL, *words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
