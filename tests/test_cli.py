"""The command line: what is printed, written and returned, and that bad input is one line and exit code 2."""

import shlex
import subprocess
import sys

import pytest
import torch

from modulewise import cli, compare, registry
from modulewise.cli import comparing, main
from modulewise.compare import Descent, Experiment, Folder, RateSchedule
from modulewise.report import command_line

TINY = ["--model", "mlp", "--epochs", "1", "--train-limit", "100", "--batch-size", "32"]


def test_compare_prints_a_table_and_writes_results_and_report(tmp_path, capsys):
    out = tmp_path / "out"
    words = [
        "compare",
        *TINY,
        "--parts",
        "3",
        "--methods",
        "backprop,deeply-supervised,dgl:head=linear",
        "--seeds",
        "0,1",
    ]
    assert main([*words, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert printed.err == ""
    assert [line.split()[0] for line in lines[1:4]] == [
        "backprop@simultaneous",
        "deeply-supervised(dgl:head=linear)@simultaneous",
        "dgl:head=linear@simultaneous",
    ]
    assert all("audit ok" in line and "±" in line for line in lines[1:4])
    assert {path.name for path in out.iterdir()} == {
        "experiment.json",
        "measurements.json",
        "report.html",
        "results.jsonl",
    }
    assert len(Folder(out).results()) == 6
    assert f"--out {out}" in (out / "report.html").read_text()
    assert main(["report", str(out), "--markdown"]) == 0
    assert capsys.readouterr().out.count("\n|") == 4


def test_an_interrupted_compare_says_what_is_kept_and_ends_with_130(tmp_path, capsys, monkeypatch):
    def interrupted(experiment, *, out, watchers):
        raise KeyboardInterrupt

    monkeypatch.setattr(comparing, "run", interrupted)
    assert main(["compare", *TINY, "--methods", "dgl", "--out", str(tmp_path)]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_the_command_of_an_experiment_makes_that_experiment(monkeypatch):
    experiments = [
        Experiment(methods=("backprop", "predsim:beta=0,decoder_features=8@sequential"), device="cpu"),
        Experiment(
            methods=("dgl",),
            data="some folder",
            model="lenet5",
            parts=(2, 4),
            seeds=(0, 3),
            epochs=7,
            batch_size=16,
            optimizer=Descent.ADAM,
            lr=0.3,
            momentum=0.5,
            weight_decay=0.0,
            schedule_lr=RateSchedule.CONSTANT,
            augment=("crop:2", "flip"),
            normalize=False,
            precision=torch.bfloat16,
            train_limit=9,
            recompute=True,
            probe=False,
            threads=2,
        ),
        Experiment(methods=("dgl",), cuts=("a", "b.c"), parts=(3,)),
    ]
    seen = []

    def noted(experiment, *, out, watchers):
        seen.append(experiment)
        raise KeyboardInterrupt

    monkeypatch.setattr(comparing, "run", noted)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for experiment in experiments:
        assert main(shlex.split(command_line(experiment))[1:]) == 130
    assert seen == experiments


BAD = {
    "method": (["compare", "--methods", "dlg"], "did you mean 'dgl'"),
    "model": (["compare", "--model", "cn"], "did you mean 'cnn'"),
    "data": (["compare", "--data", "digit"], "did you mean 'digits'"),
    "cut": (["compare", "--cuts", "conv9"], "did you mean 'conv"),
    "schedule": (["compare", "--methods", "dgl@sequental"], "did you mean 'sequential'"),
    "no parts": (["compare", "--parts", "0"], "at least 1"),
    "too many parts": (["compare", "--parts", "40"], "40 parts"),
    "malformed parts": (["compare", "--parts", "2,x"], "2 or 2,4"),
    "parts and cuts": (["compare", "--parts", "2", "--cuts", "conv1,conv2"], "drop --parts"),
    "malformed seeds": (["compare", "--seeds", ""], "whole numbers"),
    "sequential feedback": (["compare", "--methods", "dgl,backprop@sequential"], "backprop@simultaneous"),
    "bcd on a cnn": (["compare", "--methods", "bcd"], "bcd"),
    "no heads": (["compare", "--methods", "backprop,deeply-supervised"], "none is listed"),
    "optimizer": (["compare", "--optimizer", "sdg"], "sgd"),
    "not a number": (["compare", "--epochs", "many"], "epochs"),
    "option": (["compare", "--epoch", "3"], "--epoch"),
    "augmentation": (["compare", "--augment", "crp"], "did you mean 'crop'"),
    "device": (["compare", "--device", "tpu"], "expected cpu, cuda"),
    "command": (["comprae"], "comprae"),
    "several methods to train": (["train", "--method", "dgl,predsim"], "one method"),
    "deeply-supervised alone": (["train", "--method", "deeply-supervised"], "deeply-supervised(dgl)"),
    "parts of no model": (["parts", "cn"], "did you mean 'cnn'"),
    "malformed input": (["parts", "cnn", "--input", "3,x"], "--input"),
    "flat input": (["parts", "cnn", "--input", "3,32"], "C,H,W"),
    "no experiment": (["report", "nowhere"], "no experiment"),
}
if not torch.cuda.is_available():
    BAD["cuda"] = (["compare", "--device", "cuda"], "has none")


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2_and_nothing_is_written(case, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, part = BAD[case]
    if words[0] in ("compare", "train"):
        words = [*words, "--out", "out"]
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("modulewise: ")
    assert printed.err.count("\n") == 1
    assert part in printed.err
    assert list(tmp_path.iterdir()) == []


def test_another_experiments_folder_is_refused(tmp_path, capsys):
    words = ["--model", "mlp", "--method", "dgl", "--train-limit", "100", "--batch-size", "32", "--out", str(tmp_path)]
    assert main(["train", *words, "--epochs", "1"]) == 0
    assert main(["train", *words, "--epochs", "2"]) == 2
    assert "epochs is 1, not 2" in capsys.readouterr().err


def test_train_saves_a_checkpoint_and_goes_on_from_it(tmp_path, capsys):
    out = tmp_path / "out"
    words = ["train", *TINY, "--method", "predsim:beta=0@sequential", "--parts", "3", "--out", str(out)]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert "test accuracy" in first
    assert (out / "checkpoint" / "latest").exists()
    assert main(words) == 0
    assert capsys.readouterr().out == first


def test_methods_lists_every_method(capsys):
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["method", *registry.known()]
    assert main(["methods", "--markdown"]) == 0
    assert capsys.readouterr().out.strip() == registry.markdown()


def test_parts_lists_every_slice_and_its_parameters(capsys):
    assert main(["parts", "lenet5", "--input", "1,28,28", "--batch", "2"]) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.split("\n\n")[0].splitlines()[1:]]
    assert len(rows) == 5
    assert sum(int(row[-9].replace(",", "")) for row in rows) == 61_706
    assert "up to 5 parts" in printed


def test_help_and_version_end_with_0(capsys):
    assert main([]) == 0
    assert "compare" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("modulewise ")
    for command in ("compare", "train", "parts", "methods", "report"):
        assert main([command, "--help"]) == 0


def test_a_process_shows_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "modulewise", "compare", "--methods", "dlg", "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "modulewise: unknown method 'dlg'; did you mean 'dgl'?; `modulewise methods` lists them"
    ]


def test_public_names_exist():
    assert all(hasattr(cli, name) for name in cli.__all__)
    assert compare.Experiment is Experiment
