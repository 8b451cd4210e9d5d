"""From a store to a ranking: parts as they were stored, scored for a data set by the command."""

from __future__ import annotations

import json

import torch

from modulewise import cli, data, models, scores
from modulewise.partition import Partition
from modulewise.workflow import ModelSpec, Store
from modulewise.workflow.ranking.tasks import balanced


def test_stored_parts_are_scored_on_their_own_features_of_their_own_normalisation(tmp_path, capsys):
    digits = data.load("digits")
    spec = ModelSpec(name="cnn", shape=digits.shape, classes=digits.classes)
    store, normalize = Store(str(tmp_path / "store")), data.Normalize(mean=(0.3,), std=(0.2,))
    chosen, expected = balanced(digits.train, 100), {}
    for name, seed in (("first", 0), ("second", 1)):
        torch.manual_seed(seed)
        model = models.build(spec.name, shape=spec.shape, classes=spec.classes)
        part = Partition(model, cuts=["flatten"], example=torch.zeros(4, 1, 8, 8)).part(0)
        store.save(part, name, model=spec, normalize=normalize)
        model.eval()
        with torch.no_grad():
            expected[name] = scores.LogME()(part(normalize(chosen.x)).flatten(1), chosen.y)
    words = ["score", "--store", str(tmp_path / "store"), "--data", "digits", "--scores", "logme", "--samples", "100"]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert {row["part"]: row["value"] for row in rows} == expected
    assert [row["part"] for row in rows] == sorted(expected, key=lambda name: -expected[name])
    assert "first" in capsys.readouterr().out
