"""`modulewise inspect`: which part of a trained network is the weak one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..compare import Folder
from ..compare.running import threads_set
from ..errors import ModulewiseError
from ..report.inspection import Look, render_look, state_table
from ..workflow.inspection.pictured import kept_features
from ..workflow.inspection.runs import inspected
from . import options as o
from .tables import print_table

__all__ = ["inspect"]


def inspect(
    folder: Annotated[Path, typer.Argument(help="what `modulewise train --out` or `compare --out` wrote")],
    twin: Annotated[
        bool, typer.Option("--twin", help="compare with the same network trained end to end (trained now, and kept)")
    ] = False,
    only: Annotated[str, typer.Option(help="of several runs those whose name has this in it")] = "",
    projections: Annotated[bool, typer.Option(help="draw features of every part in two dimensions")] = True,
    threads: o.Threads = None,
) -> None:
    """Look inside a run, part by part: print the last state and what is the matter, write inspect.html.

    A run trained with --inspect has a record of every pass; of any other the last checkpoint is looked at.
    """
    held = Folder(folder)
    experiment = held.experiment()
    with threads_set(threads):
        runs = [run for run in inspected(held, twin=twin) if only in run.name]
    if not runs:
        raise ModulewiseError(f"--only {only} was given and no run in {folder} has it in its name; leave it out")
    features = kept_features(runs[0].folder) if projections and len(runs) == 1 else None
    looks = [Look(title=run.name, records=run.records, features=features) for run in runs]
    for look in looks:
        headings, rows = state_table(look.records[-1])
        typer.echo(f"{look.title}, after {look.records[-1].passes} passes")
        print_table(headings, rows, right=(0, *range(2, len(headings))))
        for finding in look.findings:
            typer.echo(str(finding))
        if not look.findings:
            typer.echo("no part loses information that simple probes can read")
    words = ["modulewise", "inspect", str(folder), *(["--twin"] if twin else []), *(["--only", only] if only else [])]
    facts = [f"{len(looks)} {'run' if len(looks) == 1 else 'runs'}", f"{experiment.epochs} epochs a part"]
    page = render_look(
        looks, title=f"{experiment.model} on {experiment.data}, looked inside", facts=facts, command=shlex.join(words)
    )
    typer.echo(f"\nreport: {held.write('inspect.html', page)}")
