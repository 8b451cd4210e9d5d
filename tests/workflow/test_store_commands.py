"""`modulewise store` and `modulewise check`: from a training run to a checked part, and what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import modulewise as mw
from modulewise.checkpoint import read
from modulewise.cli import main
from modulewise.workflow import Quantity, Store

TRAIN = "train --method kernel-proxy@sequential --model cnn --parts 3 --epochs 1 --train-limit 400 --device cpu"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "out"
    assert main([*TRAIN.split(), "--out", str(folder)]) == 0
    return folder


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


def test_save_fills_the_card_from_the_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights are the checkpoint's, facts the run's, figures those of the test split, measured independently here."""
    where = ["--store", str(tmp_path)]
    assert main(["store", "save", str(run), "mid", "--part", "1", "--licence", "CC0-1.0", *where]) == 0
    assert main(["store", "save", str(run), "both", "--part", "1", "--below", "--at-least", "proxy=0", *where]) == 0
    assert "mid@1: (N, " in capsys.readouterr().out
    store = Store(tmp_path)
    mid, both = store.card("mid"), store.card("both")
    assert (mid.data, mid.method, mid.schedule, mid.seed) == ("digits", "kernel-proxy", "sequential", 0)
    assert (mid.part, both.part, len(both.cuts), both.licence, mid.licence) == (1, 0, 1, None, "CC0-1.0")
    facts, groups = read(run / "checkpoint", ("model",))
    assert list(mid.cuts) == facts["identity"]["cuts"]
    tensors = dict(store.load("mid").named_tensors())
    assert all(torch.equal(tensor, groups["model"][name]) for name, tensor in tensors.items())
    digits = mw.data.load("digits")
    part = store.load("both")
    assert part.card.normalize is not None
    proxy = mw.expect(part).proxy(mw.methods.KernelProxy(), on=digits).value
    for card in (mid, both):
        figure = card.figure(Quantity.PROXY)
        assert figure is not None
        assert figure.value == pytest.approx(proxy, abs=1e-6)
        assert "test split of digits, 360 samples" in figure.on
        accuracy = card.figure(Quantity.PROBE_ACCURACY)
        assert accuracy is not None
        assert 0.5 < accuracy.value <= 1


def test_list_show_load_verify_remove(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command of the store, on one part."""
    where = ["--store", str(tmp_path / "store")]
    assert main(["store", "list", *where]) == 0
    assert "holds no part" in capsys.readouterr().out
    assert main(["store", "save", str(run), "low", *where]) == 0
    capsys.readouterr()
    assert main(["store", "list", *where]) == 0
    (line,) = capsys.readouterr().out.splitlines()[1:]
    assert line.split()[0] == "low@1"
    assert "kernel-proxy" in line
    assert main(["store", "show", "low", *where]) == 0
    assert capsys.readouterr().out.startswith("# low@1")
    assert main(["store", "show", "low", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == 1
    assert main(["store", "load", "low@1", "--out", str(tmp_path / "out"), *where]) == 0
    assert (tmp_path / "out" / "part.safetensors").is_file()
    assert main(["store", "verify", *where]) == 0
    assert "1 versions, all as they were stored" in capsys.readouterr().out
    (blob,) = (tmp_path / "store" / "blobs").iterdir()
    blob.write_bytes(blob.read_bytes()[:-1])
    assert main(["store", "verify", *where]) == 1
    assert "damaged or were altered" in capsys.readouterr().out
    assert main(["store", "remove", "low", *where]) == 0
    assert "removed low@1" in capsys.readouterr().out
    assert Store(tmp_path / "store").names() == ()


def test_check_ends_with_0_1_or_2(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Within bounds, out of bounds, or not to be measured."""
    where = ["--store", str(tmp_path)]
    assert main(["store", "save", str(run), "low", "--at-least", "proxy=-1,probe_accuracy=0.1", *where]) == 0
    assert main(["check", "low", *where]) == 0
    assert capsys.readouterr().out.count(" ok") == 2
    assert main(["check", "low", "--at-least", "probe_accuracy=1.5", "--data", "digits", *where]) == 1
    assert "missed" in capsys.readouterr().out
    assert main(["store", "save", str(run), "bare", *where]) == 0
    assert "holds no thresholds" in refused(["check", "bare", *where], capsys)
    assert "no part 'none'" in refused(["check", "none", *where], capsys)


def test_bad_input_is_one_line_and_2(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is written by any of them."""
    where = ["--store", str(tmp_path / "store")]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no experiment" in refused(["store", "save", str(empty), "low", *where], capsys)
    assert "part 7" in refused(["store", "save", str(run), "low", "--part", "7", *where], capsys)
    assert "expected letters" in refused(["store", "save", str(run), "a/b", *where], capsys)
    assert "malformed" in refused(["store", "save", str(run), "low", "--at-least", "x=1", *where], capsys)
    assert "something else" in refused(["store", "list", "--store", str(run)], capsys)
    assert not (tmp_path / "store").exists()
    compared = tmp_path / "compared"
    words = "compare --methods dgl --model mlp --epochs 1 --train-limit 60 --device cpu --out"
    assert main([*words.split(), str(compared)]) == 0
    assert "no checkpoint" in refused(["store", "save", str(compared), "low", *where], capsys)
