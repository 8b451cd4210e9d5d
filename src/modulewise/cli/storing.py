"""`modulewise store` and `modulewise check`: parts on a shelf, and whether they still do what they did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .. import data
from ..compare.running import threads_set
from ..compare.summary import bytes_text
from ..errors import StoreError
from ..workflow import Quantity, Store, markdown
from ..workflow.store.checking import check as checked
from ..workflow.store.checking import thresholds_of
from ..workflow.store.filling import save_run
from ..workflow.store.rendering import bounds_text
from . import options as o
from .tables import print_table

__all__ = ["app", "check"]

app = typer.Typer(
    name="store",
    help="Keep parts of trained networks by name and version, with a card of what they are.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Address = Annotated[str, typer.Option("--store", help="a folder, hf://OWNER/NAME, s3://... or what fsspec knows")]
Name = Annotated[str, typer.Argument(help="NAME for the latest version, or NAME@VERSION")]
AtLeast = Annotated[str, typer.Option(help="bounds, as in proxy=0.5,probe_accuracy=0.9")]
AtMost = Annotated[str, typer.Option(help="bounds, as in latency=0.01 (seconds for 128 samples)")]
DEFAULT = "store"


@app.command("list")
def show_all(store: Address = DEFAULT) -> None:
    """List every stored part: latest version, what it takes and gives, where it comes from, what was measured."""
    cards = Store(store).cards()
    if not cards:
        typer.echo(f"{store} holds no part; `modulewise store save RUN NAME` stores one")
        return
    rows = []
    for card in cards:
        measured = [card.figure(quantity) for quantity in (Quantity.PROXY, Quantity.PROBE_ACCURACY)]
        figures = ["" if figure is None else f"{figure.value:.3f}" for figure in measured]
        part = f"{card.model.name} {card.part} of {len(card.cuts) + 1}"
        trained = (card.data or "", _word(card.method))
        rows.append((card.label, part, str(card.input), str(card.output), *trained, *figures, bytes_text(card.bytes)))
    headings = ("part", "of", "takes", "gives", "data", "method", "proxy", "probe", "bytes")
    print_table(headings, rows, right=(6, 7, 8))


@app.command()
def show(
    name: Name, store: Address = DEFAULT, as_json: Annotated[bool, typer.Option("--json", help="as it lies")] = False
) -> None:
    """Print the card of a stored part."""
    card = Store(store).card(name)
    typer.echo(json.dumps(card.to_json(), indent=1) if as_json else markdown(card).rstrip())


@app.command()
def save(
    run: Annotated[Path, typer.Argument(help="folder that `modulewise train` wrote")],
    name: Annotated[str, typer.Argument(help="to store it under, as its next version")],
    part: Annotated[int, typer.Option(help="index of the part")] = 0,
    below: Annotated[bool, typer.Option("--below", help="together with the parts below it")] = False,
    at_least: AtLeast = "",
    at_most: AtMost = "",
    licence: Annotated[str | None, typer.Option(help="of the weights, as in CC-BY-4.0")] = None,
    notes: Annotated[str, typer.Option(help="free text for the card")] = "",
    store: Address = DEFAULT,
) -> None:
    """Store a part of a finished training run; its proxy value and probe accuracy are measured on the test split."""
    thresholds = thresholds_of(at_least, at_most)
    card = save_run(
        Store(store), run, name, part=part, below=below, thresholds=thresholds, licence=licence, notes=notes
    )
    measured = ", ".join(f"{figure.quantity.value} {figure.value:.3f}" for figure in card.figures)
    typer.echo(f"{card.label}: {card.input} -> {card.output}, {card.parameters:,} parameters, {measured}")


@app.command()
def load(
    name: Name,
    out: Annotated[Path, typer.Option(help="new or empty folder for part.safetensors, card.json and card.md")],
    store: Address = DEFAULT,
) -> None:
    """Write a stored part and its card to a folder."""
    typer.echo(f"{name}: {Store(store).export(name, out)}")


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="NAME for all its versions, or NAME@VERSION")], store: Address = DEFAULT
) -> None:
    """Remove a stored part, and its weights where no other card names them."""
    typer.echo(f"removed {', '.join(Store(store).remove(name))}")


@app.command()
def verify(store: Address = DEFAULT) -> None:
    """Read every version of every part and compare hashes; exit code 1 where something is damaged."""
    opened = Store(store)
    problems = opened.verify()
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{sum(len(opened.versions(name)) for name in opened.names())} versions, all as they were stored")


def check(
    part: Name,
    store: Address = DEFAULT,
    source: Annotated[
        str | None, typer.Option("--data", help="what to measure on; what the card says if left out")
    ] = None,
    at_least: AtLeast = "",
    at_most: AtMost = "",
    trust_code: Annotated[bool, typer.Option("--trust-code", help="run the code that the card names")] = False,
    threads: o.Threads = None,
) -> None:
    """Hold a stored part to the thresholds on its card, or to others; exit code 1 where one is missed."""
    loaded = Store(store).load(part, trust_code=trust_code)
    name = source or loaded.card.data
    if name is None:
        raise StoreError(f"the card of {loaded.card.label} names no data; give --data")
    thresholds = thresholds_of(at_least, at_most) or loaded.card.thresholds
    with threads_set(threads):
        outcomes = checked(loaded, thresholds, dataset=data.load(name))
    rows = [
        (
            outcome.threshold.quantity.value,
            f"{outcome.value:.4g}",
            bounds_text(outcome.threshold),
            "ok" if outcome.passed else "missed",
        )
        for outcome in outcomes
    ]
    print_table((loaded.card.label, "measured", "must be", ""), rows, right=(1,))
    if not all(outcome.passed for outcome in outcomes):
        raise typer.Exit(1)


def _word(value: object) -> str:
    if isinstance(value, dict):
        return str(value.get("type", ""))
    return "" if value is None else str(value)
