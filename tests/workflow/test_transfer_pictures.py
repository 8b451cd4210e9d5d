"""The maps of the benchmark of scores."""

from __future__ import annotations

from modulewise.report.transfer import transfer_svgs


def test_every_part_and_task_is_on_both_maps_with_its_value():
    rows = [
        {"kind": "setting"},
        {
            "kind": "target",
            "target": "cat / dog",
            "sources": ["first", "second"],
            "accuracy": [0.91, 0.62],
            "scores": {"alignment": [0.41, 0.13], "logme": [1.0, 2.0]},
        },
        {
            "kind": "target",
            "target": "ship / frog",
            "sources": ["first", "second"],
            "accuracy": [0.73, 0.84],
            "scores": {"alignment": [0.25, 0.36], "logme": [1.0, 2.0]},
        },
    ]
    made = transfer_svgs(rows)
    assert made == transfer_svgs(rows)
    assert sorted(made) == ["accuracy", "alignment"]
    for name, values in (
        ("accuracy", ("0.91", "0.62", "0.73", "0.84")),
        ("alignment", ("0.41", "0.13", "0.25", "0.36")),
    ):
        for word in ("first", "second", "cat / dog", "ship / frog", *values):
            assert f">{word}<" in made[name] or f"<!-- {word} -->" in made[name]
