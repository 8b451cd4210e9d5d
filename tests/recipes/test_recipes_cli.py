"""`modulewise recipe` on the command line."""

import json

import pytest
from digits_recipe import TEXT

from modulewise import recipes
from modulewise.cli import main
from modulewise.cli import recipes as commands


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch):
    """Collecting garbage before memory is measured would take most of the time."""
    monkeypatch.setattr("gc.collect", lambda *_: 0)


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(TEXT)
    return str(path)


def test_run_prints_published_beside_reached_and_writes_lines(mine, tmp_path, capsys):
    out = tmp_path / "r.jsonl"
    assert main(["recipe", "run", mine, "--quick", "--seeds", "3", "--threads", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    rows = {line.split()[0]: line.split() for line in printed.out.splitlines() if "quick:" in line}
    assert list(rows) == ["backprop", "dgl:head=linear"]
    assert rows["dgl:head=linear"][1:3] == ["1.50", "quick:"]
    assert "departs from the paper: It is small." in printed.out
    assert [json.loads(line)["seed"] for line in out.read_text().splitlines()] == [3, 3]


def test_runs_with_other_epochs_are_printed_by_themselves(mine, tmp_path, capsys):
    words = ["recipe", "run", mine, "--epochs", "1", "--seeds", "0", "--device", "cpu", "--out", str(tmp_path / "r")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "not run yet" in printed
    assert "dgl:head=linear, seed 0, 1 epochs on cpu: " in printed


def test_list_shows_every_recipe_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "none.jsonl"
    assert main(["recipe", "list", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = [name for name in recipes.names() for _ in recipes.load(name).proves]
    assert [line.split()[0] for line in lines[1 : 1 + len(expected)]] == expected
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["run"], "expected the name of a recipe, or --all"),
        (["run", "gim-mnist", "--all"], "expected the name of a recipe, or --all"),
        (["run", "gim-mnist", "--hours", "1"], "with --hours only beside it"),
        (["run", "nothing"], "unknown recipe 'nothing'"),
        (["run", "none.toml"], "none.toml: No such file"),
        (["run", "predsim-mlp-mnist", "--data", "nowhere"], "--data DIR"),
        (["run", "predsim-mlp-mnist", "--seeds", "one"], "--seeds 'one' is malformed"),
        (["run", "predsim-mlp-mnist", "--epochs", "0"], "epochs=0, expected at least 1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, complaint, capsys):
    assert main(["recipe", *words]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1


def test_an_interruption_says_what_is_kept(mine, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands.recipes, "run", interrupted)
    assert main(["recipe", "run", mine]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_all_says_which_recipes_need_a_gpu(mine, tmp_path, capsys, monkeypatch):
    recipe = recipes.read(mine)
    far = recipes.load("dgl-resnet110-cifar10-k2")
    monkeypatch.setattr(commands.recipes, "names", lambda: ["a", "b"])
    monkeypatch.setattr(commands.recipes, "load", {"a": recipe, "b": far}.get)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    out = tmp_path / "r.jsonl"
    assert main(["recipe", "run", "--all", "--hours", "1", "--seeds", "0", "--epochs", "1", "--out", str(out)]) == 0
    assert "no GPU, so not run: dgl-resnet110-cifar10-k2" in capsys.readouterr().out
    assert len(out.read_text().splitlines()) == 2
