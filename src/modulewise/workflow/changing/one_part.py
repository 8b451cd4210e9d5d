"""Train one part alone, on the final version of the parts below: what the sequential schedule does, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ...engine.epochs import Epoch, Pass
from ...engine.fitting import Fit
from ...errors import DataError, MethodError
from ...schedules import FINAL, Sequential, Work, sequential
from ...trainer import Trainer

__all__ = ["train_part"]


def train_part(
    trainer: Trainer,
    loader: Iterable[Any],
    *,
    part: int,
    epochs: int,
    schedule: Sequential = sequential,
    enough: Callable[[Epoch], bool] = lambda epoch: False,
) -> list[Epoch]:
    """Let one part learn for some passes; the parts below run in eval mode, and no other part is touched.

    Called for part 0, 1, ..., K - 1 with one trainer and one loader it is `Trainer.fit(schedule=sequential)`, bit for
    bit. Each module's own mode is put back.

    Args:
        trainer: of parts in one process; its method sends no feedback.
        loader: batches (x, y), once an iteration.
        part: 0 <= part < K.
        epochs: passes over the data, >= 1.
        schedule: how many bytes of features to keep.
        enough: asked after every pass whether to end here; never unless given.

    Returns:
        One entry a pass.

    Raises:
        MethodError: the part does not exist, or the method needs other parts in the same step.
        DataError: the loader gives no batch.

    >>> import torch, modulewise as mw
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> trainer = mw.Trainer(
    ...     mw.Partition(model, cuts=["1"], example=torch.randn(2, 4)),
    ...     mw.methods.DGL(classes=3),
    ...     loss=torch.nn.functional.cross_entropy,
    ...     optimizer=torch.optim.Adam,
    ... )
    >>> (epoch,) = train_part(trainer, [(torch.randn(6, 4), torch.arange(6) % 3)], part=1, epochs=1)
    >>> epoch.part, list(epoch.losses)
    (1, [1])
    """
    _check(trainer, part, epochs)
    fit = Fit(trainer, loader, schedule)
    modes = [(module, module.training) for module in trainer.partition.model.modules()]
    trainer.partition.model.train()
    try:
        history: list[Epoch] = []
        for index in range(epochs):
            history.append(_pass(trainer, fit, part=part, epoch=index))
            if enough(history[-1]):
                break
    finally:
        trainer.updater.release(part)
        for module, mode in modes:
            module.training = mode
    return history


def _pass(trainer: Trainer, fit: Fit, *, part: int, epoch: int) -> Epoch:
    sums, number = Pass(), 0
    for number, item in enumerate(fit.batches(Work(part, epoch, 0, FINAL)), start=1):
        batch = fit.open(Work(part, epoch, number - 1, FINAL), *item)
        with trainer.guarded():
            batch.up(part)
            batch.down()
        trainer.steps += 1
        sums.add(batch.losses())
    if number == 0:
        raise DataError("the loader gives no batch, expected at least one; is it a spent iterator?")
    trainer.updater.epoch_end(part)
    return Epoch(epoch, part, sums.mean(), sums.seconds(), trainer.steps)


def _check(trainer: Trainer, part: int, epochs: int) -> None:
    if not 0 <= part < len(trainer.partition) or epochs < 1:
        raise MethodError(
            f"part={part} and epochs={epochs} were given, expected a part from 0 to {len(trainer.partition) - 1} and "
            "at least one epoch"
        )
    talks = any(o.talks for o in trainer.objectives) or trainer.method.locality.sends_feedback
    if talks or trainer.solver is not None or trainer.partition.shared or trainer.crew is not None:
        raise MethodError(
            f"{type(trainer.method).__name__} needs other parts, or other processes, in the same step, and one part "
            "was to be trained alone; use a method without feedback, such as DGL, in one process"
        )
