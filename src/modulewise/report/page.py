"""The page itself: a template, filled with the table, the figures, the command and the versions."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..compare import Experiment, Folder, Result, summarise
from ..compare.summary import HEADINGS, Row, cells
from ..errors import ModulewiseError
from . import figures
from .drawing import style, svg

__all__ = ["command_line", "render", "write"]


@dataclass(frozen=True)
class Picture:
    """One figure of the page."""

    title: str
    caption: str
    svg: str


def command_line(experiment: Experiment, *, out: str | Path | None = None) -> str:
    """The command that makes this experiment; options at their defaults are left out.

    >>> command_line(Experiment(methods=("dgl",), epochs=2))
    'modulewise compare --data digits --model cnn --parts 2 --methods dgl --epochs 2 --seeds 0'
    """
    said = ("data", "model", "parts", "cuts", "methods", "epochs", "seeds")
    words = ["modulewise", "compare"]
    defaults = {field.name: field.default for field in fields(Experiment)}
    for name in (*said, *(name for name in defaults if name not in said)):
        value = getattr(experiment, name)
        always = name in said and value is not None and not (name == "parts" and experiment.cuts is not None)
        if not always and (value == defaults[name] or defaults[name] is MISSING or name == "parts"):
            continue
        words += _flag(name, value)
    return shlex.join([*words, "--out", str(out)] if out is not None else words)


def _flag(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, tuple):
        return [f"--{flag}", ",".join(map(str, value))]
    if isinstance(value, torch.dtype):
        return [f"--{flag}", str(value).removeprefix("torch.")]
    return [f"--{flag}", value.value if isinstance(value, StrEnum) else str(value)]


def _pictures(rows: Sequence[Row]) -> list[Picture]:
    made = [
        (
            "Accuracy against cost",
            "Upper left is better. Small marks are runs, the large one is their mean. Memory, time and operations are "
            "those of one training step at the batch size of the runs.",
            figures.cost(rows),
        ),
        (
            "Where the memory goes",
            "Bytes alive at the moment of the peak. Parts that learn one by one never hold the activations or the "
            "gradients of all parts at once.",
            figures.memory(rows),
        ),
        (
            "Linear probe on every part",
            "A ridge classifier on the pooled output of every part, fitted to training samples and scored on training "
            "samples that no run trains on. The last part's is fitted to the model's own output.",
            figures.probes(rows),
        ),
        (
            "Angle to end-to-end backpropagation",
            "Between the direction in which the method moves a part and the one in which the chain rule through all "
            "parts would, at the same weights and on the same training batch; 90 degrees is no agreement. A method "
            "that takes the whole training set at once is measured before training alone.",
            figures.angles(rows),
        ),
        (
            "Loss of every part",
            "Each part shows the loss that it minimises; losses of different methods are on different scales. A part "
            "that follows a gradient and has no loss of its own, as in backprop, shows the norm of that gradient.",
            figures.losses(rows),
        ),
        (
            "Error against the number of parts",
            "Bars are one standard deviation over seeds.",
            figures.error_against_parts(rows),
        ),
    ]
    return [Picture(title, text, svg(drawn, title=title)) for title, text, drawn in made if drawn is not None]


def render(results: Sequence[Result], experiment: Experiment, *, command: str | None = None) -> str:
    """The page as HTML; it refers to nothing outside itself.

    Args:
        results: finished runs, at least one.
        experiment: what they belong to.
        command: what was typed; made from the experiment where left out.

    Raises:
        ModulewiseError: there is no result.
    """
    if not results:
        raise ModulewiseError("there is no finished run to report, expected at least one; run the experiment first")
    rows = summarise(results)
    with style():
        pictures = _pictures(rows)
    environment = Environment(
        loader=PackageLoader("modulewise"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    facts = experiment.to_json()
    parts = sorted({result.parts for result in results})
    return environment.get_template("report.html.j2").render(
        title=f"{experiment.model} on {experiment.data}, {' and '.join(map(str, parts))} parts",
        experiment=facts,
        rate=experiment.rate,
        runs=len(results),
        headings=HEADINGS,
        rows=[{"first": row.first, "cells": cells(row)[1:]} for row in rows],
        cuts={result.parts: list(result.cuts) for result in results},
        failures=[(result.label, result.parts, result.seed, result.error) for result in results if result.error],
        pictures=pictures,
        command=command or command_line(experiment),
        versions=results[-1].versions,
        git=results[-1].git,
        batch_size=experiment.batch_size,
    )


def write(folder: Folder, *, command: str | None = None) -> Path:
    """Write `report.html` about what a folder holds so far.

    Raises:
        ModulewiseError: it holds no experiment, or no finished run.
    """
    return folder.write("report.html", render(folder.results(), folder.experiment(), command=command))
