"""Partition x method x optimiser factory: `step`, `fit`, `evaluate`, `predict`, `save`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import schedules
from .checkpoint import write
from .engine.batches import Batch, check_batch
from .engine.binding import bind, check_phases, check_taps, check_windows, refuse_settings, with_views
from .engine.evaluating import Evaluation, evaluate
from .engine.features import evaluating
from .engine.fitting import Epoch, run_schedule
from .engine.local import Guard, LocalEngine
from .engine.pieces import GraphBreak, compiled
from .engine.ranks.crew import Crew
from .engine.ranks.enlisting import enlist
from .engine.ranks.passes import passes, step
from .engine.ranks.saving import load_anywhere
from .engine.ranks.settings import Ranks
from .engine.updating import OptimizerFactory, SchedulerFactory, Updater
from .errors import MethodError
from .method import Locality, Method, PartwiseMethod, Reach, Solver, SolverMethod
from .objective import Loss, Objective
from .partition import AnyPartition, Partition, TimePartition
from .partition.tree import call_model, plain

__all__ = ["Trainer"]


class Trainer:
    """Trains a partition with a method; the user's model is the trained object.

    Args:
        partition: the parts: in depth (`Partition`) or windows of time (`TimePartition`).
        method: what gives each part its learning signal.
        loss: loss(output, y) -> scalar, the task's, on the model's raw output; the last part minimises it.
        optimizer: factory `optimizer(parameters)` or `optimizer(parameters, *, part, role)`; called for every part and
            role (`part`, `head`, `feedback`) with something to train. A method with its own update takes none.
        scheduler: factory `scheduler(optimizer)` of a torch learning-rate scheduler, stepped once an epoch of its part.
        clip_norm: largest gradient norm (> 0): per part, heads included, for local methods; over all parts for global
            ones. None for no clipping.
        precision: torch.float32, torch.bfloat16 or torch.float16 (one gradient scaler a part) for the forward.
        accumulate: slices a batch is cut into, >= 1; exact for losses that are means over samples, without batch
            normalisation (whose statistics are those of a slice). One part's gradients live at a time, but where parts
            wait for messages those of all.
        compile: compile the modules between the cuts; graph breaks are logged and kept in `graph_breaks`.
        recompute: keep for a part's backward only the inputs of the pieces between its cut points; run those again.
        seed: seed of heads and of all random draws.
        ranks: put the parts on the processes that `torchrun` starts, see `mw.Ranks`; None for all in this one.

    Raises:
        MethodError: the method does not fit the partition, or optimizer= is missing or of no use.

    >>> import modulewise as mw
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> partition = mw.Partition(model, cuts=["1"], example=torch.randn(2, 4))
    >>> trainer = mw.Trainer(
    ...     partition,
    ...     mw.methods.DGL(classes=3),
    ...     loss=torch.nn.functional.cross_entropy,
    ...     optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    ... )
    >>> sorted(trainer.step(torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])))
    [0, 1]

    Attributes:
        steps: training steps so far.
        graph_breaks: with `compile`, where a module could not be compiled in one piece, as met so far.
        crew: the ranks that the parts are on (`gather`, `timeline`, `seat`); None in one process.
    """

    def __init__(
        self,
        partition: AnyPartition,
        method: Method,
        *,
        loss: Loss,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        clip_norm: float | None = None,
        precision: torch.dtype = torch.float32,
        accumulate: int = 1,
        compile: bool = False,
        recompute: bool = False,
        seed: int = 0,
        ranks: Ranks | None = None,
    ) -> None:
        if precision not in (torch.float32, torch.bfloat16, torch.float16):
            raise MethodError(f"precision={precision}, expected torch.float32, torch.bfloat16 or torch.float16")
        if accumulate < 1:
            raise MethodError(f"accumulate={accumulate}, expected at least 1")
        if clip_norm is not None and clip_norm <= 0:
            raise MethodError(f"clip_norm={clip_norm}, expected a positive number or None")
        self.partition, self.method, self.loss, self.seed = partition, method, loss, seed
        self.accumulate = accumulate
        self.classes: int | None = getattr(getattr(method, "method", method), "classes", None)
        self.steps = 0
        self.progress: schedules.State | None = None
        self.solver: Solver | None = None
        self.objectives: list[Objective] = []
        if isinstance(method, SolverMethod):
            refuse_settings(method, optimizer, scheduler, clip_norm, precision, accumulate, compile, recompute)
            if isinstance(partition, TimePartition):
                raise MethodError(
                    f"{type(method).__name__} has its own update and takes no partition over time; cut in depth"
                )
            self.solver = method.solver(partition, loss=loss, seed=seed)
        elif isinstance(method, PartwiseMethod):
            if optimizer is None:
                raise MethodError(f"{type(method).__name__} needs optimizer=, a factory such as torch.optim.SGD's")
            self.objectives = bind(partition, method, loss, seed=seed)
        else:
            given = f"the class {method.__name__}" if isinstance(method, type) else type(method).__name__
            raise MethodError(f"method is {given}, expected an instance of one of modulewise.methods")
        check_windows(partition, self.objectives, accumulate=accumulate, compile=compile, recompute=recompute)
        check_taps(self.objectives, compile=compile, recompute=recompute)
        check_phases(self.objectives, accumulate=accumulate)
        self.updater = Updater(
            partition,
            self.objectives,
            optimizer=optimizer or torch.optim.SGD,
            scheduler=scheduler,
            clip_norm=clip_norm,
            together=partition.shared or (clip_norm is not None and method.locality.reach is Reach.GLOBAL),
            scaled=precision is torch.float16,
        )
        self.graph_breaks: list[GraphBreak] = []
        self.engine = LocalEngine(
            partition,
            self.objectives,
            self.updater,
            seed=seed,
            precision=precision,
            calls=self._calls(compile=compile, recompute=recompute),
            recompute=recompute,
        )
        refused = {f"accumulate={accumulate}": accumulate > 1, "global clip_norm": self.updater.together and clip_norm}
        self.crew: Crew | None = enlist(self, ranks, refused=refused)

    @property
    def locality(self) -> Locality:
        """What may influence a part's update: the method's, `port` with skips, at least `gradients` over time."""
        locality = self.method.locality
        if self.partition.shared and locality.reach in (Reach.STRICT, Reach.WINDOW, Reach.PORT):
            return Locality(Reach.GRADIENTS)
        return Locality(Reach.PORT) if locality.reach is Reach.STRICT and self.partition.ports else locality

    def step(self, x: Any, y: Any, *, views: int = 1) -> dict[int, Tensor]:
        """Let every part learn from one batch.

        Args:
            x: input: tensor (views N, ...), tuple or mapping.
            y: labels (N,), (N, T) or (N, H, W).
            views: views of every sample stacked along the batch of x; the task loss sees a label for each.

        Returns:
            For every part that learned its loss, detached, on the device.

        Raises:
            DataError: x and y do not fit, or a label is out of range.
            NonFiniteLossError: a part's loss is not finite; that part's weights are untouched.
        """
        if self.crew is not None:
            return step(self.crew, x, y, views=views)
        check_batch(x, y, views=views, classes=self.classes)
        x, views = self.prepared(x, y, views=views)
        if self.solver is not None:
            losses = self.solver.step(x, y, step=self.steps)
            self.steps += 1
            return losses
        batch = self.batch(x, y, views=views)
        with self.guarded():
            for part in range(len(self.partition)):
                batch.up(part)
            batch.down()
        self.steps += 1
        return batch.losses()

    def fit(
        self,
        loader: Iterable[Any],
        *,
        epochs: int,
        schedule: schedules.Schedule = schedules.simultaneous,
        validate: Iterable[Any] | None = None,
        callbacks: Sequence[Callable[[Epoch], None]] = (),
        checkpoint: str | Path | None = None,
        every: int | None = None,
    ) -> list[Epoch]:
        """Train for a number of passes over the data; in train mode, with each module's own mode back afterwards.

        Args:
            loader: batches (x, y), once an iteration. Resumed in the middle of a pass, ours (and any with a state of
                its own) goes on where it was; any other is read from its start, and as many batches are left out
                as had been seen: the same ones only if its order is.
            epochs: passes per part, >= 1.
            schedule: one of `schedules`, `simultaneous` unless given, or with settings: `Asynchronous(reuse=2)`.
            validate: batches to evaluate on after every epoch.
            callbacks: called after every epoch with an `Epoch`.
            checkpoint: folder to save to; a trainer loaded from it goes on where it was saved.
            every: save every so many steps; None: after every epoch.

        Raises:
            DataError: the loader gives no batch.
            MethodError: the method sends feedback and the schedule has no later parts to send it.
        """
        return run_schedule(
            self,
            loader,
            epochs=epochs,
            schedule=schedule,
            validate=validate,
            callbacks=callbacks,
            checkpoint=checkpoint,
            every=every,
        )

    def evaluate(self, loader: Iterable[Any]) -> Evaluation:
        """Mean loss and accuracy of the whole model over batches (x, y), in eval mode."""
        return self.crew.evaluate(loader) if self.crew else evaluate(self.partition.model, loader, self.loss)

    @torch.no_grad()
    def predict(self, x: Any) -> Any:
        """The model's raw output on x, in eval mode.

        Raises:
            MethodError: parts of other ranks are behind on this one.
        """
        if self.crew is not None and self.crew.stale:
            raise MethodError("parts of other ranks are not here yet; call trainer.crew.gather() on every rank first")
        with evaluating(self.partition.model):
            return call_model(self.partition.model, plain(x))

    def save(self, folder: str | Path, *, loader: Any = None) -> None:
        """Write a checkpoint: safetensors and JSON, complete or not at all.

        Args:
            folder: a new or empty folder, or one of this trainer's earlier checkpoints.
            loader: a loader with `state_dict()`, saved along.
        """
        (self.crew.save if self.crew is not None else partial(write, self))(Path(folder), loader=loader)

    def load(self, folder: str | Path, *, loader: Any = None) -> Trainer:
        """Take the state of a checkpoint into this trainer, made with the same partition, method and optimiser.

        Args:
            folder: where `save` wrote.
            loader: a loader with `load_state_dict()`, put where it was.

        Raises:
            CheckpointError: nothing there, damaged, or of another experiment; nothing has been changed.
        """
        load_anywhere(self, Path(folder), loader=loader)
        return self

    def close(self) -> None:
        """End the process group, where it was made for this trainer."""
        if self.crew is not None:
            self.crew.close()

    def passes(
        self, loader: Iterable[Any], epochs: int, schedule: schedules.Schedule, validate: Iterable[Any] | None
    ) -> Generator[Epoch | None, None, None] | None:
        """The training loop of this rank; None in one process."""
        return passes(self.crew, loader, epochs, schedule, validate) if self.crew is not None else None

    def prepared(self, x: Any, y: Any, *, views: int) -> tuple[Any, int]:
        """The batch with the views that the method makes of it, and their number; x itself for most methods."""
        return with_views(self.method, x, y, views=views, parts=len(self.partition), seed=self.seed, step=self.steps)

    def batch(self, x: Any, y: Any, *, views: int = 1, boundaries: dict[int, Tensor] | None = None) -> Batch:
        """One batch for the engine, part by part."""
        return Batch(
            self.engine,
            plain(x),
            y,
            views=views,
            step=self.steps,
            accumulate=self.accumulate,
            boundaries=boundaries,
        )

    def _calls(self, *, compile: bool, recompute: bool) -> list[Any]:
        if compile and recompute:
            raise MethodError("compile=True and recompute=True were both given, expected one; choose speed or memory")
        if compile and isinstance(self.partition, Partition):
            return list(compiled(self.partition, self.graph_breaks))
        return [{} for _ in self.partition.parts]

    def guarded(self) -> Guard:
        """Generators put back, and gradients dropped if the block fails."""
        return Guard(self.engine)
