"""`modulewise bench transfer`: do scores rank parts as training on them does?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..compare.running import threads_set
from ..report.transfer import transfer_svgs
from ..workflow.transfer.running import Which, run
from ..workflow.transfer.table import HEADINGS, agreement_cells, groups
from . import options as o
from .tables import print_table

__all__ = ["app"]

app = typer.Typer(
    name="bench",
    help="Benchmarks of what the library claims.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _bench() -> None:
    """Keeps `transfer` a command of its own, while it is the only one."""


@app.command("transfer")
def transfer(
    only: Annotated[str, typer.Option(help="experiments, comma-separated")] = "binary,mnist,cifar10,tiny-imagenet",
    quick: Annotated[bool, typer.Option("--quick", help="small settings, minutes on one core, marked as such")] = False,
    data: Annotated[Path, typer.Option(help="folder that holds cifar10/, mnist/, tiny-imagenet/")] = Path(
        "../shared/data"
    ),
    out: Annotated[Path, typer.Option(help="file of results, JSON lines; pictures lie beside it")] = Path(
        "results/transfer.jsonl"
    ),
    seed: Annotated[int, typer.Option(help="of tasks, weights and choices")] = 0,
    threads: o.Threads = None,
) -> None:
    """Rank parts by every score without training, and compare with the accuracy of heads trained on them."""
    which = o.listed("--only", only, Which, f"some of {','.join(Which)}")
    with threads_set(threads):
        rows = run(which, data=data, out=out, quick=quick, seed=seed, told=lambda text: typer.echo(text, err=True))
    for (experiment, group, _), own in groups(rows).items():
        facts = next(row for row in own if row["kind"] == "setting")
        typer.echo(f"\n{experiment}, parts up to {group}; one epoch of head training {facts['epoch_seconds']:.2f} s\n")
        print_table(HEADINGS, agreement_cells(own), right=range(1, len(HEADINGS)))
        for shown, text in transfer_svgs(own).items():
            name = "-".join([out.stem, *experiment.replace(":", "").split(), group, shown])
            picture = out.with_name(f"{name}.svg")
            picture.write_text(text, encoding="utf-8")
            typer.echo(f"picture: {picture}")
    typer.echo(f"\nresults: {out}")
