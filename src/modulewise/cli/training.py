"""`modulewise train`: one method, one seed, one checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .. import registry
from ..checkpoint import LATEST
from ..compare import (
    Balancing,
    Configuration,
    Descent,
    Experiment,
    Folder,
    RateSchedule,
    Run,
    TensorBoard,
    Watcher,
    configurations,
)
from ..compare.assembling import Workshop
from ..compare.running import History, Ticking, threads_set
from ..engine.fitting import Epoch
from ..engine.ranks.saving import newest
from ..engine.ranks.settings import Ranks, seats
from ..errors import MethodError, ModulewiseError, NonFiniteLossError
from ..schedules import Sequential
from ..workflow.inspection.runs import diagnosis_of, twin_of
from . import launching
from . import options as o
from .progress import Bars

__all__ = ["train"]


def train(
    context: typer.Context,
    method: Annotated[str, typer.Option(help="METHOD[:key=value,...][@SCHEDULE]")] = "dgl",
    data: o.Data = "digits",
    model: o.Model = "cnn",
    parts: Annotated[str | None, typer.Option(help="number of parts [default: 2]")] = None,
    cuts: o.Cuts = None,
    epochs: o.Epochs = 5,
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
    out: Annotated[Path, typer.Option(help="folder for the checkpoint")] = Path("runs/train"),
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
    threads: o.Threads = None,
    tensorboard: o.TensorBoardFolder = None,
    schedule: o.Schedule = None,
    launch: o.Launch = None,
    resume: o.Resume = True,
    inspect: o.Inspect = False,
    inspect_every: o.InspectEvery = 1,
    twin: o.Twin = False,
) -> None:
    """Train with one method, save a checkpoint after every epoch, print the test accuracy.

    The same command goes on from the last checkpoint.
    """
    if launch is not None and parts is None and cuts is None:
        parts = str(max(2, launch))
    if schedule is not None and "@" not in method:
        method = f"{method}@{schedule}"
    chosen = o.cut_points(parts, cuts)
    experiment = Experiment(
        data=data,
        model=model,
        parts=chosen.parts,
        cuts=chosen.cuts,
        methods=(method,),
        epochs=epochs,
        seeds=(seed,),
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
        probe=inspect,
        threads=threads,
    )
    if inspect_every < 1:
        raise ModulewiseError(f"--inspect-every {inspect_every} was given, expected at least 1")
    if (launch is not None and inspect) or (twin and not inspect):
        raise ModulewiseError(
            "--inspect needs parts in one process and --twin needs --inspect; leave out --launch, or inspect afterwards"
        )
    if launch is not None and launching.rank_here() is None:
        _check(experiment, Folder(out), launch=launch, resume=resume)
        Folder(out).begin(experiment)
        raise typer.Exit(launching.start(context, ranks=launch))
    first = launching.rank_here() in (None, 0) or launch is None
    watchers: list[Watcher] = [Bars()] if first else []
    if tensorboard is not None and first:
        watchers.append(TensorBoard(tensorboard))
    try:
        with threads_set(threads):
            ranks = None if launch is None else Ranks()
            _train(
                experiment,
                Folder(out),
                watchers,
                ranks=ranks,
                resume=resume,
                inspect=inspect_every if inspect else 0,
                twin=twin,
            )
    except ModulewiseError as error:
        if launch is not None:
            launching.note(Path(out), str(error))
        raise
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on from the last checkpoint", err=True)
        raise typer.Exit(130) from None
    finally:
        for watcher in watchers:
            watcher.close()


def _check(
    experiment: Experiment, folder: Folder, *, launch: int | None, resume: bool
) -> tuple[Configuration, Workshop]:
    """Refuse what does not fit, before anything is written or started."""
    if len(registry.split(experiment.methods[0])) != 1 or len(experiment.parts) != 1:
        raise MethodError("train takes one method and one number of parts; compare takes several")
    (row,) = configurations(experiment)
    if launch is not None:
        if isinstance(row.order, Sequential):
            raise MethodError(f"--launch {launch} was given with the sequential schedule; use --schedule pipelined")
        seats(Ranks(), parts=row.parts, world=launch)
    folder.check(experiment)
    if not resume and _saved(folder):
        raise ModulewiseError(f"{folder.path} holds a checkpoint and --no-resume was given; choose another --out")
    workshop = Workshop(experiment)
    workshop.check([row])
    return row, workshop


def _saved(folder: Folder) -> bool:
    checkpoint = folder.path / "checkpoint"
    return (checkpoint / LATEST).exists() or newest(checkpoint) is not None


def _train(
    experiment: Experiment,
    folder: Folder,
    watchers: list[Watcher],
    *,
    ranks: Ranks | None,
    resume: bool,
    inspect: int,
    twin: bool,
) -> None:
    row, workshop = _check(experiment, folder, launch=None, resume=resume or ranks is not None)
    one = Run(row, experiment.seeds[0])
    if launching.rank_here() in (None, 0):
        folder.begin(experiment)  # before the ranks meet: from then on each of them writes to the log there
    trainer = workshop.trainer(row, seed=one.seed, ranks=ranks)
    loader, crew = workshop.loader(row, seed=one.seed), trainer.crew
    checkpoint = folder.path / "checkpoint"
    if _saved(folder):
        trainer.load(checkpoint, loader=loader)
    if crew is not None:
        launching.note(folder.path, f"{crew.seat}, from step {trainer.steps}")
    passes = experiment.epochs * row.order.passes(row.parts)
    for watcher in watchers:
        watcher.begin(rows=0, runs=1, finished=0)
        watcher.start(one, batches=passes * len(loader))
    history = History(workshop, trainer, one, watchers)
    callbacks: list[Callable[[Epoch], None]] = [history]
    if crew is not None:
        callbacks.append(partial(_noted, folder.path))
    if inspect:
        network = twin_of(workshop, one, folder.path) if twin else None
        callbacks.append(diagnosis_of(workshop, trainer, folder.path, twin=network, every=inspect))
    try:
        trainer.fit(
            Ticking(loader, watchers),
            epochs=experiment.epochs,
            schedule=row.order,
            callbacks=callbacks,
            checkpoint=checkpoint,
        )
    except NonFiniteLossError as error:
        raise ModulewiseError(f"{one}: {error}") from error
    test = trainer.evaluate(workshop.plain(workshop.material.test))
    timeline = None if crew is None else crew.timeline()
    trainer.close()
    for watcher in watchers:
        watcher.close()
    if crew is not None and not crew.seat.reads:
        return
    updates = history.updates if crew is None else trainer.steps * row.parts
    facts = {"test_accuracy": test.accuracy, "test_loss": test.loss, "part_updates": updates}
    folder.write("result.json", json.dumps(facts, indent=1) + "\n")
    accuracy = "no classes" if test.accuracy is None else f"{100 * test.accuracy:.2f} %"
    typer.echo(f"{one}: test accuracy {accuracy}, test loss {test.loss:.4f}\ncheckpoint: {checkpoint}")
    if timeline is not None:
        launching.show_timeline(timeline, folder.path / "trace.json")


def _noted(folder: Path, epoch: Epoch) -> None:
    losses = ", ".join(f"part {part} {loss:.4f}" for part, loss in epoch.losses.items())
    launching.note(folder, f"epoch {epoch.epoch + 1} ended at step {epoch.steps} after {epoch.seconds:.2f} s: {losses}")
