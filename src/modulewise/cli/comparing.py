"""`modulewise compare` and `modulewise report`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated

import typer

from .. import registry, report
from ..compare import Balancing, Descent, Experiment, Folder, RateSchedule, Result, TensorBoard, Watcher, run, summarise
from ..compare.summary import HEADINGS, cells, markdown
from ..workflow.inspection.watching import Looking
from . import options as o
from .progress import Bars
from .tables import print_table

__all__ = ["compare", "show"]

_METHODS = "backprop,checkpointed,deeply-supervised,dgl,predsim,kernel-proxy"


def compare(
    data: o.Data = "digits",
    model: o.Model = "cnn",
    parts: Annotated[str | None, typer.Option(help="number of parts, or several as in 2,4 [default: 2]")] = None,
    cuts: o.Cuts = None,
    methods: Annotated[
        str, typer.Option(help="METHOD[:key=value,...][@SCHEDULE], comma-separated; see `modulewise methods`")
    ] = _METHODS,
    epochs: o.Epochs = 5,
    seeds: Annotated[str, typer.Option(help="one run each, as in 0,1,2")] = "0",
    out: Annotated[Path | None, typer.Option(help="folder for results and report [default: under runs/]")] = None,
    batch_size: o.BatchSize = 128,
    optimizer: o.Optimizer = Descent.SGD,
    lr: o.LearningRate = None,
    last_lr: o.LastLearningRate = None,
    feedback_lr: o.FeedbackLearningRate = None,
    momentum: o.Momentum = 0.9,
    weight_decay: o.WeightDecay = 5e-4,
    schedule_lr: o.ScheduleLr = RateSchedule.COSINE,
    milestones: o.Milestones = "",
    decay: o.Decay = 0.1,
    augment: o.Augment = "",
    normalize: o.Normalize = True,
    device: o.Device = None,
    precision: o.PrecisionOption = o.Precision.FLOAT32,
    train_limit: o.TrainLimit = None,
    test_limit: o.TestLimit = None,
    balance: o.BalanceOption = Balancing.MEMORY,
    recompute: o.Recompute = False,
    probe: Annotated[bool, typer.Option(help="linear probes of every part, on training samples held out")] = True,
    threads: o.Threads = None,
    tensorboard: o.TensorBoardFolder = None,
    inspect: Annotated[
        bool, typer.Option("--inspect", help="look at every part of every run at its end; see `modulewise inspect`")
    ] = False,
) -> None:
    """Train methods side by side; print one table, write results.jsonl and report.html.

    Ctrl-C keeps what is finished; the same command goes on from there.
    """
    chosen = o.cut_points(parts, cuts)
    experiment = Experiment(
        data=data,
        model=model,
        parts=chosen.parts,
        cuts=chosen.cuts,
        methods=tuple(registry.split(methods)),
        epochs=epochs,
        seeds=o.numbers("--seeds", seeds),
        batch_size=batch_size,
        optimizer=optimizer,
        lr=lr,
        last_lr=last_lr,
        feedback_lr=feedback_lr,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule_lr=schedule_lr,
        milestones=o.milestones(milestones),
        decay=decay,
        augment=o.words(augment),
        normalize=normalize,
        device=o.default_device(device),
        precision=precision.dtype,
        train_limit=train_limit,
        test_limit=test_limit,
        balance=balance,
        recompute=recompute,
        probe=probe,
        threads=threads,
    )
    folder = Folder(out if out is not None else _default_folder(experiment))
    watchers: list[Watcher] = [Bars()]
    if tensorboard is not None:
        watchers.append(TensorBoard(tensorboard))
    if inspect:
        watchers.append(Looking(folder.path))
    try:
        results = run(experiment, out=folder.path, watchers=watchers)
    except KeyboardInterrupt:
        _interrupted(folder)
        raise typer.Exit(130) from None
    command = report.command_line(experiment, out=folder.path)
    _present(results, folder, command=command)


def show(
    folder: Annotated[Path, typer.Argument(help="what `modulewise compare --out` wrote")],
    as_markdown: Annotated[bool, typer.Option("--markdown", help="print the table for a README")] = False,
) -> None:
    """Print the table of a folder's finished runs, and write its report.html anew."""
    held = Folder(folder)
    experiment = held.experiment()
    if as_markdown:
        print(markdown(summarise(held.results())))
        return
    _present(held.results(), held, command=report.command_line(experiment, out=folder))


def _default_folder(experiment: Experiment) -> Path:
    key = hashlib.blake2b(json.dumps(experiment.to_json(), sort_keys=True).encode(), digest_size=4).hexdigest()
    return Path("runs") / f"compare-{key}"


def _present(results: list[Result], folder: Folder, *, command: str) -> None:
    page = report.write(folder, command=command)
    print_table(HEADINGS, [cells(row) for row in summarise(results)], right=(1, 2, 3, 4, 5, 8, 9, 10))
    for result in results:
        if result.error is not None:
            typer.echo(f"{result.label}, {result.parts} parts, seed {result.seed}: {result.error}")
    typer.echo(f"\nresults: {folder.results_file}\nreport:  {page}")


def _interrupted(folder: Folder) -> None:
    try:
        finished = len(folder.results())
    except ValueError:
        finished = 0
    typer.echo(f"interrupted; {finished} finished runs are kept, and the same command goes on from there", err=True)
