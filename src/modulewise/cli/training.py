"""`modulewise train`: one method, one seed, one checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .. import registry
from ..compare import Balancing, Descent, Experiment, Folder, RateSchedule, Run, TensorBoard, Watcher, configurations
from ..compare.assembling import Workshop
from ..compare.running import History, Ticking, threads_set
from ..errors import MethodError, ModulewiseError, NonFiniteLossError
from . import options as o
from .progress import Bars

__all__ = ["train"]


def train(
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
) -> None:
    """Train with one method, save a checkpoint after every epoch, print the test accuracy.

    The same command goes on from the last checkpoint.
    """
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
        probe=False,
        threads=threads,
    )
    watchers: list[Watcher] = [Bars()]
    if tensorboard is not None:
        watchers.append(TensorBoard(tensorboard))
    try:
        with threads_set(threads):
            _train(experiment, Folder(out), watchers)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on from the last checkpoint", err=True)
        raise typer.Exit(130) from None
    finally:
        for watcher in watchers:
            watcher.close()


def _train(experiment: Experiment, folder: Folder, watchers: list[Watcher]) -> None:
    if len(registry.split(experiment.methods[0])) != 1 or len(experiment.parts) != 1:
        raise MethodError("train takes one method and one number of parts; compare takes several")
    (row,) = configurations(experiment)
    folder.check(experiment)
    workshop = Workshop(experiment)
    workshop.check([row])
    folder.begin(experiment)
    one = Run(row, experiment.seeds[0])
    trainer, loader = workshop.trainer(row, seed=one.seed), workshop.loader(row, seed=one.seed)
    checkpoint = folder.path / "checkpoint"
    if (checkpoint / "latest").exists():
        trainer.load(checkpoint, loader=loader)
    passes = experiment.epochs * row.order.passes(row.parts)
    for watcher in watchers:
        watcher.begin(rows=0, runs=1, finished=0)
        watcher.start(one, batches=passes * len(loader))
    history = History(workshop, trainer, one, watchers)
    try:
        trainer.fit(
            Ticking(loader, watchers),
            epochs=experiment.epochs,
            schedule=row.order,
            callbacks=[history],
            checkpoint=checkpoint,
        )
    except NonFiniteLossError as error:
        raise ModulewiseError(f"{one}: {error}") from error
    test = trainer.evaluate(workshop.plain(workshop.material.test))
    facts = {"test_accuracy": test.accuracy, "test_loss": test.loss, "part_updates": history.updates}
    for watcher in watchers:
        watcher.close()
    folder.write("result.json", json.dumps(facts, indent=1) + "\n")
    accuracy = "no classes" if test.accuracy is None else f"{100 * test.accuracy:.2f} %"
    typer.echo(f"{one}: test accuracy {accuracy}, test loss {test.loss:.4f}\ncheckpoint: {checkpoint}")
