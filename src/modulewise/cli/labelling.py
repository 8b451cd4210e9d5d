"""`modulewise labels`: accuracy against the number of labelled examples."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated

import typer

from ..compare.running import threads_set
from ..recipes.places import FOLDERS, data_place
from ..report.label_curve import label_picture
from ..workflow.labels.curve import label_curve, verdict
from ..workflow.labels.rows import HEADINGS, LabelFolder, LabelRow, table_rows
from ..workflow.labels.settings import FewLabels, OutputLoss, quicker
from . import options as o
from .tables import print_table

__all__ = ["labels"]


def labels(
    data: o.Data = "digits",
    model: o.Model = "cnn",
    cuts: Annotated[
        str | None, typer.Option(help="module names, the last right below the last layer; that one alone if left out")
    ] = None,
    proxy: Annotated[str, typer.Option(help="kernel-proxy[:key=value,...]")] = "kernel-proxy",
    pairs: Annotated[
        Path | None, typer.Option(help="parquet of first, second, same, instead of pairs from all labels")
    ] = None,
    per_class: Annotated[str, typer.Option(help="labelled examples a class")] = "1,2,5,10,50,100",
    draws: Annotated[int, typer.Option(help="of the labelled examples")] = 20,
    epochs: o.Epochs = 20,
    batch_size: o.BatchSize = 128,
    lr: Annotated[float, typer.Option(help="learning rate of SGD, for every network")] = 0.05,
    pairs_lr: Annotated[float | None, typer.Option(help="of the training on pairs; --lr if left out")] = None,
    weight_decay: o.WeightDecay = 5e-4,
    augment: o.Augment = "",
    normalize: o.Normalize = True,
    scratch_draws: Annotated[
        int | None, typer.Option(help="draws for E2EBP on the labelled examples alone; --draws if left out")
    ] = None,
    scratch_steps: Annotated[int, typer.Option(help="updates there")] = 1000,
    scratch_batch: Annotated[int, typer.Option(help="samples a step there")] = 32,
    scratch_lr: Annotated[float | None, typer.Option(help="learning rate there; --lr if left out")] = None,
    output: Annotated[OutputLoss, typer.Option(help="what the output layer minimises")] = OutputLoss.CROSS_ENTROPY,
    penalty: Annotated[float, typer.Option(help="on the weights of the output layer")] = 1e-3,
    held_out: Annotated[
        int | None, typer.Option(help="score on so many last training samples instead, to choose settings")
    ] = None,
    train_limit: o.TrainLimit = None,
    test_limit: o.TestLimit = None,
    seed: Annotated[int, typer.Option(help="of weights, orders and draws")] = 0,
    device: o.Device = None,
    threads: o.Threads = None,
    quick: Annotated[bool, typer.Option("--quick", help="fewer samples, epochs and draws, marked as such")] = False,
    out: Annotated[Path | None, typer.Option(help="folder for rows, plot and networks [default: under runs/]")] = None,
) -> None:
    """Train hidden parts on pairs and the output on few labels; print the curve beside end-to-end backpropagation.

    Every finished row is written down at once, and the same command goes on from there.
    """
    settings = FewLabels(
        data=data_place(data) if data in FOLDERS else data,
        model=model,
        cuts=o.words(cuts),
        proxy=proxy,
        pairs=None if pairs is None else str(pairs),
        per_class=o.numbers("--per-class", per_class),
        draws=draws,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        pairs_lr=pairs_lr,
        weight_decay=weight_decay,
        augment=o.words(augment),
        normalize=normalize,
        scratch_draws=scratch_draws,
        scratch_steps=scratch_steps,
        scratch_batch=scratch_batch,
        scratch_lr=scratch_lr,
        output=output,
        penalty=penalty,
        held_out=held_out,
        train_limit=train_limit,
        test_limit=test_limit,
        seed=seed,
        device=o.default_device(device),
    )
    settings = quicker(settings) if quick else settings
    folder = LabelFolder(out if out is not None else _default_folder(settings))
    try:
        with threads_set(threads):
            rows = label_curve(settings, out=folder.path, finished=_said)
    except KeyboardInterrupt:
        typer.echo(
            f"interrupted; finished rows are kept in {folder.path}, the same command goes on from there", err=True
        )
        raise typer.Exit(130) from None
    _present(rows, settings, folder)


def _default_folder(settings: FewLabels) -> Path:
    key = hashlib.blake2b(json.dumps(settings.to_json(), sort_keys=True).encode(), digest_size=4).hexdigest()
    return Path("runs") / f"labels-{key}"


def _said(row: LabelRow) -> None:
    (cells,) = table_rows([row])
    typer.echo(f"{row.arm}, {cells[1]} labels a class: {cells[4]} %", err=True)


def _present(rows: list[LabelRow], settings: FewLabels, folder: LabelFolder) -> None:
    print_table(HEADINGS, table_rows(rows), right=(1, 2, 3, 4, 5, 6, 7))
    typer.echo("\nwhich labels each arm has seen:")
    for arm, seen in dict.fromkeys((row.arm, row.seen) for row in rows):
        typer.echo(f"  {arm}: {seen}")
    scored = f"the last {settings.held_out} training samples" if settings.held_out else "the test split"
    quick = "; a quick run, no figure to report" if settings.quick else ""
    typer.echo(f"\n{verdict(rows)}; scored on {scored}{quick}")
    picture = folder.write("labels.svg", label_picture(rows))
    typer.echo(f"\nrows: {folder.rows_file}\nplot: {picture}")
