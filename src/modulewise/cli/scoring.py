"""`modulewise score`: which stored part fits a data set; one forward pass a part, no training."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .. import data as data_sets
from ..compare.assembling import device_of
from ..compare.results import git_state, versions
from ..errors import ModulewiseError
from ..report.ranking import ranking_svg
from ..scores import SCORES, named
from ..workflow import Store
from ..workflow.ranking.features import AveragePool
from ..workflow.ranking.ranking import Scored, rank_store
from . import options as o
from .tables import print_table

__all__ = ["score"]

_USUAL = ",".join(name for name, one in SCORES.items() if not one.reads_source)


def score(
    store: Annotated[str, typer.Option(help="folder or address of the store")],
    data: o.Data,
    out: Annotated[Path, typer.Option(help="folder for scores.jsonl and scores.svg")],
    scores: Annotated[str, typer.Option(help="comma-separated; the first one orders the table")] = _USUAL,
    samples: Annotated[int, typer.Option(help="training samples that are looked at, balanced")] = 2000,
    parts: Annotated[str | None, typer.Option(help="names of stored parts; all if left out")] = None,
    pool: Annotated[int | None, typer.Option(help="average positions to this size, 1 for global")] = None,
    device: o.Device = None,
    seed: Annotated[int, typer.Option(help="of the choice of samples")] = 0,
) -> None:
    """Rank stored parts for a data set: one forward pass a part, a table, scores.jsonl and a picture; no training."""
    chosen = named(o.words(scores))
    if not chosen:
        raise ModulewiseError(f"--scores is empty, expected some of {', '.join(SCORES)}")
    if out.exists() and (not out.is_dir() or any(entry.name not in _FILES for entry in out.iterdir())):
        raise ModulewiseError(f"{out} is in use by something else, expected a new folder or one of earlier scores")
    place = device_of(o.default_device(device))
    shelf = Store(store)
    entries = rank_store(
        shelf,
        data_sets.load(data),
        scores=chosen,
        samples=samples,
        names=None if parts is None else o.words(parts),
        device=place,
        pool=None if pool is None else AveragePool(pool),
        seed=seed,
        told=lambda text: typer.echo(text, err=True),
    )
    facts = {"data": data, "seed": seed, "device": str(place), "versions": versions(), "git": git_state()}
    _write(out, "scores.jsonl", "".join(json.dumps({**asdict(entry), **facts}) + "\n" for entry in entries))
    _write(out, "scores.svg", ranking_svg(entries))
    _show(entries, [one.name for one in chosen])
    typer.echo(f"\n{entries[0].samples} samples; {out / 'scores.jsonl'}, {out / 'scores.svg'}")


_FILES = ("scores.jsonl", "scores.svg", ".draft-scores.jsonl", ".draft-scores.svg")


def _write(folder: Path, name: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".draft-{name}"
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / name)


def _show(entries: Sequence[Scored], names: Sequence[str]) -> None:
    """One row a part, one column a score, then seconds."""
    values = {(entry.part, entry.score): entry for entry in entries}
    rows = []
    for place, part in enumerate(dict.fromkeys(entry.part for entry in entries), 1):
        own = [values[part, name] for name in names]
        cells = ["-" if entry.value is None else f"{entry.value:.4g}" for entry in own]
        beyond = sum(entry.seconds for entry in own)
        seconds = (f"{own[0].pass_seconds:.2f}", f"{beyond:.2f}", f"{own[0].pass_seconds + beyond:.2f}")
        rows.append((str(place), part, *cells, f"{own[0].parameters:,}", *seconds))
    headings = ("#", "part", *names, "parameters", "pass, s", "beyond, s", "total, s")
    print_table(headings, rows, right=(0, *range(2, len(headings))))
    for reason in dict.fromkeys(f"{entry.score}: {entry.refused}" for entry in entries if entry.refused):
        typer.echo(reason)
