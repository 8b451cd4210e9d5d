"""One training step without memory for it: what it takes at every part, to the byte and to the operation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from ..errors import MethodError, ModulewiseError
from ..metering import MemoryMeter, MemoryReport, counted_flops, weightless
from ..objective import Role
from ..partition.tree import tensors
from ..trainer import Trainer

__all__ = ["Lap", "Rehearsal", "State", "nameable", "rehearse"]


@dataclass(frozen=True, kw_only=True)
class State:
    """What a part keeps from step to step, in bytes.

    Args:
        parameters: their number.
        parameter_bytes: their bytes.
        gradient_bytes: those of their gradients, which live while the part learns.
        optimizer_bytes: its optimiser's state.
        head_bytes: parameters, buffers and optimiser state of the objective.
    """

    parameters: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    head_bytes: int

    @property
    def kept(self) -> int:
        """Bytes alive between steps."""
        return self.parameter_bytes + self.optimizer_bytes + self.head_bytes


@dataclass(frozen=True)
class Lap:
    """What happened between two moments of a step."""

    report: MemoryReport
    flops: int


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """A step, lap by lap.

    Args:
        laps: one a part, in which it runs and, unless it waits, learns; then one for the way back. A method with its
            own update has one lap.
        states: one a part.
        waits: whether parts wait for messages, so that what they keep lives together.
    """

    laps: tuple[Lap, ...]
    states: tuple[State, ...]
    waits: bool

    @property
    def peak(self) -> int:
        """Most bytes alive in the step."""
        return max(lap.report.peak_bytes for lap in self.laps)

    @property
    def flops(self) -> int:
        """Floating-point operations of the step."""
        return sum(lap.flops for lap in self.laps)


def rehearse(trainer: Trainer, x: Any, y: Any, *, views: int = 1, counted: bool = True) -> Rehearsal:
    """A later step of a trainer, on a copy without memory: with optimisers' state made and delayed batches kept.

    Args:
        trainer: any, also one whose model is on the meta device; it stays as it is.
        x: input (views N, ...), whose shapes alone count.
        y: labels (N, ...).
        views: views of every sample stacked along the batch of x.
        counted: whether operations are counted as well.

    Raises:
        MethodError: the objective or the optimiser asks for values, naming which.
    """
    mode = FakeTensorMode()
    subject, x, y = weightless((trainer, x, y), mode)
    with mode:
        for _ in range(1 + max((objective.delay for objective in subject.objectives), default=0)):
            _step(subject, x, y, views, lambda run: run())
        laps: list[Lap] = []
        with MemoryMeter(
            model=subject.partition.model,
            heads=subject.objectives,
            optimizers=list(subject.updater.optimizers.values()),
            inputs=[x, y],
        ) as meter:

            def timed(run: Callable[[], None]) -> None:
                flops = 0
                if counted:
                    flops = counted_flops(run) or 0
                else:
                    run()
                laps.append(Lap(meter.lap(), flops))

            _step(subject, x, y, views, timed)
        states = tuple(_state(subject, part) for part in range(len(subject.partition)))
    return Rehearsal(laps=tuple(laps), states=states, waits=_waits(subject))


def _waits(trainer: Trainer) -> bool:
    return trainer.solver is not None or any(objective.waits for objective in trainer.objectives)


def _step(trainer: Trainer, x: Any, y: Any, views: int, lap: Callable[[Callable[[], None]], None]) -> None:
    """What `Trainer.step` does, in laps."""
    if trainer.solver is not None:
        with nameable(trainer, 0):
            lap(lambda: _discard(trainer.step(x, y, views=views)))
        return
    with nameable(trainer, 0):
        x, views = trainer.prepared(x, y, views=views)
    batch = trainer.batch(x, y, views=views)
    with trainer.guarded():
        for part in range(len(trainer.partition)):
            with nameable(trainer, part):
                lap(lambda part=part: batch.up(part))  # type: ignore[misc]
        with nameable(trainer, len(trainer.partition) - 1):
            lap(batch.down)
    trainer.steps += 1


def _discard(_: object) -> None:
    """Let go of what a step returns."""


@contextmanager
def nameable(trainer: Trainer, part: int) -> Iterator[None]:
    """Say whose code asked for values that a tensor without memory does not have."""
    try:
        yield
    except ModulewiseError:
        raise
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise MethodError(
            f"{_culprit(trainer, part, error)} has control flow or shapes that depend on values ({error}), expected "
            "shapes alone to decide; such a step cannot be planned, measure it with metering.measure_step on real data"
        ) from error
    except (RuntimeError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MethodError(
            f"{_culprit(trainer, part, error)} does not run on tensors without values ({reason}); such a step cannot "
            "be planned, measure it with metering.measure_step on real data"
        ) from error


def _culprit(trainer: Trainer, part: int, error: BaseException) -> str:
    """The optimiser, where the error came up in its step; else the objective."""
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    if any(f"torch{separator}optim" in name for name in frames for separator in "/\\"):
        return f"the optimiser of part {part} ({_optimizers(trainer)})"
    method = type(trainer.method).__name__
    if not trainer.objectives:
        return f"the solver of {method}"
    return f"the objective of part {part} ({type(trainer.objectives[part]).__name__} of {method})"


def _optimizers(trainer: Trainer) -> str:
    return ", ".join(sorted({type(optimizer).__name__ for optimizer in trainer.updater.optimizers.values()}))


def _bytes(found: Iterable[Tensor]) -> int:
    """Bytes of the storages behind tensors, each once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in found}
    return sum(storages.values())


def _state(trainer: Trainer, part: int) -> State:
    parameters = list(trainer.partition.part(part).parameters())
    objective = trainer.objectives[part] if trainer.objectives else None
    of_model = {id(t) for t in trainer.partition.model.parameters()}
    head: list[Tensor] = []
    if objective is not None:
        head = [t for t in (*objective.parameters(), *objective.buffers()) if id(t) not in of_model]
        head += _moments(trainer, part, [objective.role])
    return State(
        parameters=sum(p.numel() for p in parameters),
        parameter_bytes=_bytes(parameters),
        gradient_bytes=_bytes(p for p in parameters if p.requires_grad),
        optimizer_bytes=_bytes(_moments(trainer, part, [Role.PART])),
        head_bytes=_bytes(head),
    )


def _moments(trainer: Trainer, part: int, roles: Sequence[Role]) -> list[Tensor]:
    """The tensors in the state of a part's optimisers."""
    known = trainer.updater.optimizers
    return [t for role in roles if (part, role) in known for t in tensors(list(known[part, role].state.values()))]
