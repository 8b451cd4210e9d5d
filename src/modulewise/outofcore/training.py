"""`OutOfCore`: a model larger than memory, trained one part after another, every other part in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..checkpoint import describe
from ..engine.evaluating import Evaluation, tally
from ..engine.fitting import Epoch
from ..engine.state_files import apart
from ..engine.updating import OptimizerFactory, SchedulerFactory
from ..errors import MethodError
from ..method import Method, PartwiseMethod
from ..objective import Loss, Objective
from ..partition import AnyPartition, Partition
from ..partition.tree import batch_size, plain
from .caching import FeatureSource
from .drawing import Initialize, drawn
from .feeding import Frozen
from .fitting import Fit
from .holdings import holdings_of
from .learning import Learner
from .saving import StateFolder, claim, locked
from .shards import Reader, Shards, replace_file

__all__ = ["OutOfCore"]

TOGETHER = 8
"""Batches that go through the parts together where the whole model is run."""


class OutOfCore:
    """Trains a model that does not fit in memory, one part after another; every other part is in a folder.

    The model is built on the meta device and never gets values itself. Part k is drawn from (seed, k) by its modules'
    `reset_parameters` and kept in a safetensors file; while it trains, it alone has gradients and optimiser state in
    memory, and the next part is read in the background. Frozen parts run one at a time. A process that dies at any
    moment leaves a folder from which the same script goes on, with the numbers of a run that was never stopped.

    The numbers are those of `Trainer.fit(schedule=schedules.sequential)` from the same initial values, bit for bit on
    the CPU. These values are not those that the model's constructor draws: it draws from one stream through the whole
    model, here every part draws from a seed of its own, so that the order does not matter.

    Args:
        partition: of a model on the meta device.
        method: what gives each part its learning signal; without messages between parts.
        folder: new, empty, or of this same run, which then goes on.
        loss: loss(output, y) -> scalar, the task's; the last part minimises it.
        optimizer: factory `optimizer(parameters)` or `optimizer(parameters, *, part, role)`.
        scheduler: factory of learning-rate schedulers, stepped once an epoch of a part.
        clip_norm: largest gradient norm of a part, heads included (> 0); None for no clipping.
        precision: torch.float32, torch.bfloat16 or torch.float16 for the forward.
        accumulate: slices a batch is cut into, >= 1.
        seed: seed of initial values, heads and all random draws.
        initialize: `initialize(name, module)`, called on every module of a part after its `reset_parameters`, children
            first, to set its parameters and buffers in place: for modules without one, or to load values.
        device: where the part in training is; batches must be given there.

    Raises:
        PartitionError: a tensor of the model has values already, or has none after `reset_parameters` and `initialize`.
        MethodError: the method needs other parts in memory.
        CheckpointError: the folder holds something else, or another run.

    >>> import tempfile, modulewise as mw
    >>> with torch.device("meta"):
    ...     model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> partition = mw.Partition(model, cuts=["1"], example=torch.zeros(2, 4))
    >>> x, y = torch.randn(12, 4), torch.arange(12) % 3
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = OutOfCore(
    ...         partition,
    ...         mw.methods.DGL(classes=3),
    ...         folder=folder,
    ...         loss=torch.nn.functional.cross_entropy,
    ...         optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    ...     )
    ...     history = run.fit(mw.data.Loader(mw.data.Split(x, y), batch_size=6), epochs=2)
    ...     [(epoch.part, epoch.epoch) for epoch in history], tuple(run.predict(x).shape)
    ([(0, 0), (0, 1), (1, 0), (1, 1)], (12, 3))
    """

    def __init__(
        self,
        partition: AnyPartition,
        method: Method,
        *,
        folder: str | Path,
        loss: Loss,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        clip_norm: float | None = None,
        precision: torch.dtype = torch.float32,
        accumulate: int = 1,
        seed: int = 0,
        initialize: Initialize | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not isinstance(partition, Partition):
            raise MethodError("parts over time share their parameters and cannot train apart; cut in depth")
        if not isinstance(method, PartwiseMethod) or method.locality.sends_feedback:
            raise MethodError(
                f"{type(method).__name__} needs all parts in one step, of which one is in memory; use a method "
                "without feedback and without an update of its own"
            )
        self.partition, self.method, self.loss = partition, method, loss
        self.folder, self.device = Path(folder), torch.device(device)
        self.learner = Learner(
            partition,
            method,
            loss=loss,
            optimizer=optimizer,
            scheduler=scheduler,
            clip_norm=clip_norm,
            precision=precision,
            accumulate=accumulate,
            seed=seed,
            device=self.device,
        )
        self.holdings = holdings_of(partition)
        identity = {
            "cuts": list(partition.cuts),
            "method": describe(method),
            "tensors": {name: list(shell.shape) for name, shell in self.holdings.shells.items()},
            "seed": seed,
            "accumulate": accumulate,
            "precision": str(precision),
            "initialize": describe(initialize),
        }
        self.shards = Shards(self.folder, self.holdings)
        self.saved = StateFolder(self.folder / "state", identity)
        self.reader = Reader(self.shards, self.device)
        self.frozen = Frozen(partition, self.holdings, self.reader, self.learner)
        self._prepare(identity, seed, initialize)

    def fit(
        self,
        loader: Iterable[Any],
        *,
        epochs: int,
        features: FeatureSource | None = None,
        every: int | None = None,
        callbacks: Sequence[Callable[[Epoch], None]] = (),
    ) -> list[Epoch]:
        """Train every part for a number of passes; go on where the folder's run stopped.

        Args:
            loader: batches (x, y), once an iteration, as for `Trainer.fit`; its state is kept in the folder.
            epochs: passes a part, >= 1.
            features: `outofcore.Recompute()`, `HostCache()` or `DiskCache()`: where what the frozen parts make of the
                data comes from. None: what the run began with, or else planned from sizes and measured speed.
            every: save every so many steps; None: after every epoch. The end of a part is always saved.
            callbacks: called after every epoch with an `Epoch`; may evaluate the model as it is.

        Returns:
            A record of every epoch that was trained now; none where the run was complete.

        Raises:
            DataError: the loader gives no batch, or one unlike the partition's example.
            MethodError: the setting of features does not fit.
            CheckpointError: the folder is in use, damaged, cannot be written, or began with other settings.
        """
        if epochs < 1:
            raise MethodError(f"epochs={epochs}, expected at least 1")
        with locked(self.folder), self._modes():
            return Fit(self, loader, epochs=epochs, features=features, every=every, callbacks=callbacks).run()

    def evaluate(self, loader: Iterable[Any]) -> Evaluation:
        """Mean loss and accuracy of the whole model over batches (x, y), in eval mode, part by part."""

        def outputs() -> Iterator[tuple[Any, Any, int]]:
            batches = iter(loader)
            while some := list(islice(batches, TOGETHER)):
                for output, (x, y) in zip(self._outputs([x for x, _ in some]), some, strict=True):
                    yield output, y, batch_size(x)

        return tally(outputs(), self.loss)

    def predict(self, x: Any) -> Any:
        """The model's raw output on x, in eval mode, part by part."""
        return self._outputs([x])[0]

    def tensors(self, part: int) -> dict[str, Tensor]:
        """The parameters and buffers of a part as they are in the folder, by name."""
        self.partition.part(part)
        return self.shards.read(part, self.device)

    def objective(self, part: int) -> Objective:
        """The objective of a finished part, with its trained heads."""
        path = self._head(part)
        if not path.is_file():
            raise MethodError(f"part {part} has not been trained yet; its objective is there when it has")
        objective = self.learner.bound(part)
        objective.load_state_dict(load_file(path))
        return objective

    def keep(self, part: int, tensors: dict[str, Tensor], objective: Objective) -> None:
        """Replace a part's file, and its head's, by what it came to."""
        state = apart(dict(objective.state_dict()))
        replace_file(self._head(part), lambda draft: save_file(state, draft))
        self.shards.write(part, tensors)

    def _head(self, part: int) -> Path:
        return self.folder / f"head-{part:05d}.safetensors"

    def _prepare(self, identity: dict[str, Any], seed: int, initialize: Initialize | None) -> None:
        """Draw every part that is not there, one at a time; refuse what cannot train before anything is drawn."""
        for part in range(len(self.partition)):
            self.learner.bound(part)
        claim(self.folder, identity)
        if self.shards.complete:
            return
        with locked(self.folder):
            for part in range(len(self.partition)):
                if not self.shards.path(part).is_file():
                    self.shards.write(part, drawn(self.holdings, part, seed=seed, initialize=initialize))
            self.shards.finish()

    def _outputs(self, inputs: Sequence[Any]) -> list[Any]:
        last, inputs = len(self.partition) - 1, [plain(x) for x in inputs]
        for x in inputs:
            self.frozen.check(x)
        known: list[dict[int, Any]] = [{} for _ in inputs]
        self.frozen.run(0, last + 1, inputs, known)
        return [boundaries[last] for boundaries in known]

    @contextmanager
    def _modes(self) -> Iterator[None]:
        """Train mode for the block; each module's own mode is back on exit."""
        modes = [(module, module.training) for module in self.partition.model.modules()]
        self.partition.model.train()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
