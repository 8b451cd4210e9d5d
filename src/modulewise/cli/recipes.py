"""`modulewise recipe list` and `modulewise recipe run`: published settings, and what they come to here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .. import recipes
from ..compare import Watcher
from ..errors import ModulewiseError
from ..recipes.running import DEFAULT_OUT
from ..recipes.summary import DETAIL, LISTING
from . import options as o
from .progress import Bars
from .tables import print_table

__all__ = ["app"]

app = typer.Typer(
    name="recipe",
    help="Run published settings, and see the published figure beside the reached one.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Out = Annotated[Path, typer.Option(help="file of results, JSON lines")]


@app.command("list")
def show(out: Out = DEFAULT_OUT) -> None:
    """List the recipes: what they prove, what they cost, what was published and what was reached."""
    found = [recipes.load(name) for name in recipes.names()]
    print_table(LISTING, recipes.listing(found, recipes.Book(out).records()), right=(4,))
    typer.echo("\npublished and reached: end-to-end / the method; runs with --quick are never mixed with full ones")


@app.command("run")
def execute(
    name: Annotated[str | None, typer.Argument(help="a recipe of the list, or a file NAME.toml of your own")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N; what the recipe is meant for if left out, cpu if quick")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="instead of the recipe's own")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="fewer examples and epochs, marked as such")] = False,
    data: Annotated[Path | None, typer.Option(help="folder that holds mnist/, cifar10/, tiny-imagenet/")] = None,
    seeds: Annotated[str | None, typer.Option(help="instead of the recipe's own, as in 0,1,2")] = None,
    threads: o.Threads = None,
    out: Out = DEFAULT_OUT,
    every: Annotated[bool, typer.Option("--all", help="all recipes whose device is there, quickest first")] = False,
    hours: Annotated[float | None, typer.Option(help="with --all: start nothing after so many hours")] = None,
) -> None:
    """Run a recipe, or what is left of it; print the published figures beside the reached ones.

    Every finished run is written down at once, and the same command goes on from there.
    """
    if every == (name is not None) or (hours is not None and not every):
        raise ModulewiseError("expected the name of a recipe, or --all, with --hours only beside it")
    orders = recipes.Orders(
        device=device,
        epochs=epochs,
        quick=quick,
        data=data,
        seeds=o.numbers("--seeds", seeds) if seeds is not None else None,
        threads=threads,
        out=out,
    )
    try:
        if name is None:
            _every(orders, hours)
        else:
            recipe = recipes.read(name) if name.endswith(".toml") else recipes.load(name)
            _present(recipe, orders, recipes.run(recipe, orders, watchers=_watchers))
    except KeyboardInterrupt:
        typer.echo(f"interrupted; finished runs are kept in {out}, and the same command goes on from there", err=True)
        raise typer.Exit(130) from None


def _watchers() -> Sequence[Watcher]:
    return [Bars()]


def _every(orders: recipes.Orders, hours: float | None) -> None:
    found = [recipes.load(name) for name in recipes.names()]
    left_out = recipes.run_all(
        found, orders, hours=hours, watchers=_watchers, told=lambda recipe: typer.echo(f"{recipe.name} ...", err=True)
    )
    print_table(LISTING, recipes.listing(found, recipes.Book(orders.out).records()), right=(4,))
    for reason in dict.fromkeys(reason for _, reason in left_out):
        names = [recipe.name for recipe, why in left_out if why == reason]
        typer.echo(f"\n{reason}, so not run: {', '.join(names)}")


def _present(recipe: recipes.Recipe, orders: recipes.Orders, made: Sequence[recipes.Record]) -> None:
    records = recipes.Book(orders.out).records()
    typer.echo(f"{recipe.title}\n{recipe.paper}, {recipe.link}\nfigures in % {recipe.measure.value}\n")
    print_table(DETAIL, recipes.detail(recipe, records), right=(1, 2, 3))
    if orders.epochs is not None or orders.device is not None:
        for record in made:
            figure = "failed" if record.figure is None else f"{record.figure:.2f}"
            kind = "quick, " if record.quick else ""
            typer.echo(
                f"{record.method}, seed {record.seed}, {kind}{record.epochs} epochs on {record.device}: {figure}"
            )
    for sentence in recipe.departures:
        typer.echo(f"departs from the paper: {sentence}")
    typer.echo(f"\nresults: {orders.out}")
