"""One part at a time learning by the engine that trains whole models: its objective and optimisers come and go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from ..engine.batches import Batch, check_batch
from ..engine.binding import bind_part, check_taps, with_views
from ..engine.local import LocalEngine
from ..engine.updating import OptimizerFactory, SchedulerFactory, Updater
from ..errors import MethodError
from ..method import PartwiseMethod
from ..objective import Loss, Objective
from ..partition import Partition
from ..seeding import preserved_generators

__all__ = ["Learner", "Present"]


class Present(Sequence[Objective]):
    """The objectives of all parts, of which one exists at a time; slices and loops give what exists.

    Args:
        parts: K.
    """

    def __init__(self, parts: int) -> None:
        self.parts = parts
        self.at: int | None = None
        self.objective: Objective | None = None

    def __len__(self) -> int:
        """K."""
        return self.parts

    @overload
    def __getitem__(self, index: int) -> Objective: ...
    @overload
    def __getitem__(self, index: slice) -> list[Objective]: ...
    def __getitem__(self, index: int | slice) -> Objective | list[Objective]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.parts)) if i == self.at]
        if index != self.at or self.objective is None:
            raise MethodError(f"the objective of part {index} was asked for while part {self.at} trains; ask it then")
        return self.objective

    def __iter__(self) -> Iterator[Objective]:
        return iter([] if self.objective is None else [self.objective])


class Learner:
    """What trains the part at hand; see `OutOfCore` for the arguments.

    Raises:
        MethodError: the method sends messages between parts, has an update of its own, or copies later layers.
    """

    def __init__(
        self,
        partition: Partition,
        method: PartwiseMethod,
        *,
        loss: Loss,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        clip_norm: float | None,
        precision: torch.dtype,
        accumulate: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.partition, self.method, self.loss = partition, method, loss
        self.accumulate, self.seed, self.device = accumulate, seed, device
        self.classes: int | None = getattr(method, "classes", None)
        self.steps = 0
        self.objectives = Present(len(partition))
        self.updater = Updater(
            partition,
            self.objectives,
            optimizer=optimizer,
            scheduler=scheduler,
            clip_norm=clip_norm,
            together=False,
            scaled=precision is torch.float16,
        )
        self.engine = LocalEngine(
            partition,
            self.objectives,
            self.updater,
            seed=seed,
            precision=precision,
            calls=[{} for _ in partition.parts],
        )

    def bound(self, part: int) -> Objective:
        """A part's objective with its heads as drawn, on the device.

        Raises:
            MethodError: it needs other parts in memory.
        """
        name = type(self.method).__name__
        objective = bind_part(self.partition, self.method, self.loss, part, seed=self.seed)
        if objective.talks:
            raise MethodError(
                f"{name} needs later parts in the same step, which are not in memory; use a method without feedback, "
                "or Trainer with schedules.simultaneous"
            )
        if any(tensor.is_meta for tensor in (*objective.parameters(), *objective.buffers())):
            raise MethodError(
                f"{name} makes the head of part {part} out of later layers of the model, which have no values; use a "
                "head of its own"
            )
        check_taps([objective], compile=False, recompute=False)
        return objective.to(self.device)

    def open(self, part: int) -> Objective:
        """Let a part, whose values the model holds, be the one that trains."""
        self.objectives.objective, self.objectives.at = self.bound(part), part
        return self.objectives[part]

    def close(self) -> None:
        """Let the part's objective, optimisers and gradients go."""
        if self.objectives.at is not None:
            self.updater.release(self.objectives.at)
        self.objectives.at = self.objectives.objective = None

    def views(self, x: Any, y: Any, *, views: int, ahead: int) -> tuple[Any, int]:
        """The batch as the method wants it, as of `ahead` steps from now."""
        check_batch(x, y, views=views, classes=self.classes)
        step = self.steps + ahead
        return with_views(self.method, x, y, views=views, parts=len(self.partition), seed=self.seed, step=step)

    def step(self, part: int, x: Any, y: Any, *, views: int, boundaries: dict[int, Tensor]) -> dict[int, Tensor]:
        """One update of the part at hand; the caller's generators are put back, gradients dropped after an error."""
        batch = Batch(
            self.engine, x, y, views=views, step=self.steps, accumulate=self.accumulate, boundaries=boundaries
        )
        with preserved_generators():
            try:
                batch.up(part)
                batch.down()
            except BaseException:
                self.updater.clear()
                raise
        self.steps += 1
        return batch.losses()
