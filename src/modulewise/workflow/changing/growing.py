"""Depth chosen while training: a part is added for as long as the proxy of what it makes still grows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...engine.epochs import Epoch
from ...engine.updating import OptimizerFactory, SchedulerFactory
from ...errors import DataError, MethodError
from ...method import Method
from ...objective import Loss, Objective
from ...partition import Boundary, Partition
from ...trainer import Trainer
from ..inspection.boundaries import read
from ..inspection.measures import proxy_value
from .one_part import train_part

__all__ = ["Growth", "grow", "saturated"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Growth:
    """A network that has been grown.

    Args:
        trainer: of the parts that were kept and of the output part, all trained, heads included;
            `trainer.partition.model` is a `nn.Sequential` of the blocks and the output.
        values: the held-out proxy of every part that was tried; one more than was kept where the last one was dropped.
        kept: how many blocks were kept, >= 1.
        saturated: whether a block was dropped; False where the blocks ran out.
        history: every pass, of tried parts and of the output part.
    """

    trainer: Trainer
    values: tuple[float, ...]
    kept: int
    saturated: bool
    history: tuple[Epoch, ...]

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.trainer.partition.model


def saturated(values: Sequence[float], *, least_gain: float) -> bool:
    """Whether the last value is less than `least_gain` above the best one before it; False for fewer than two.

    >>> saturated([0.5, 0.7], least_gain=0.1), saturated([0.5, 0.7, 0.75], least_gain=0.1)
    (False, True)
    """
    return len(values) > 1 and values[-1] - max(values[:-1]) < least_gain


def grow(
    blocks: Sequence[nn.Module],
    *,
    output: Callable[[Boundary], nn.Module],
    method: Method,
    loss: Loss,
    optimizer: OptimizerFactory,
    loader: Iterable[Any],
    held: Iterable[Any],
    example: Any,
    epochs: int,
    least_gain: float = 0.01,
    least_progress: float | None = None,
    proxy: Callable[[Tensor, Tensor], float] = proxy_value,
    scheduler: SchedulerFactory | None = None,
    seed: int = 0,
) -> Growth:
    """Train block after block on the finished ones below, until the held-out proxy of a new part saturates.

    Part k is trained for `epochs` passes as under the sequential schedule. If the proxy of its output on held-out
    samples is less than `least_gain` above the best one below it, the block is dropped and growing ends; otherwise the
    next one is added. Then the output part is trained on what was kept. Where nothing is dropped, the numbers are those
    of `Trainer.fit(schedule=sequential)` on the whole network, bit for bit (heads that copy later blocks of the network
    apart: while a part learns, the output part is all there is above it).

    A block that was dropped keeps the weights that it was trained to.

    Args:
        blocks: the parts that may be added, in order, one or more; each takes one tensor and gives one.
        output: makes the output part for the boundary that it is put on, such as
            `functools.partial(mw.heads.linear, outputs=10)`.
        method: gives every part its learning signal; it sends no feedback.
        loss: the task's, which the output part minimises.
        optimizer: as for `Trainer`.
        loader: batches (x, y) to learn from.
        held: batches (x, y) that nothing learns from.
        example: an input (N, ...), as for `Partition`.
        epochs: most passes a part, >= 1.
        least_gain: of the proxy, for a new part to be kept; any number, default 0.01.
        least_progress: end a part's training early, after the first pass in which its held-out proxy rose by less than
            this; None for all passes.
        proxy: value(features (N, ...), labels (N,)) -> float, higher is better; ReLU-kernel alignment unless given.
        scheduler: as for `Trainer`.
        seed: of heads and draws.

    Raises:
        MethodError: no block, or a method that needs later parts.
        DataError: the held-out labels are not one class a sample.

    >>> import torch, modulewise as mw
    >>> blocks = [nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)]
    >>> data = [(torch.randn(8, 4), torch.arange(8) % 2)]
    >>> growth = grow(
    ...     blocks,
    ...     output=lambda boundary: nn.Linear(boundary.channels, 2),
    ...     method=mw.methods.KernelProxy(),
    ...     loss=nn.functional.cross_entropy,
    ...     optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    ...     loader=data,
    ...     held=data,
    ...     example=torch.randn(2, 4),
    ...     epochs=1,
    ...     least_gain=2.0,  # more than alignment can grow: the second block is dropped
    ... )
    >>> growth.kept, len(growth.values), growth.saturated
    (1, 2, True)
    """
    if not blocks:
        raise MethodError("no block was given to grow from, expected at least one")
    held, values, history, steps = list(held), [], [], 0
    learned: list[Objective] = []

    def make(count: int) -> Trainer:
        partition = _assembled(blocks[:count], output, example)
        made = Trainer(partition, method, loss=loss, optimizer=optimizer, scheduler=scheduler, seed=seed)
        made.steps = steps
        # The list is one with the engine's and the updater's, so that the finished parts keep their trained heads.
        made.objectives[: len(learned[:count])] = learned[:count]
        return made

    for count in range(1, len(blocks) + 1):
        trainer = make(count)
        enough = _settling(trainer, held, count - 1, proxy, least_progress)
        history += train_part(trainer, loader, part=count - 1, epochs=epochs, enough=enough)
        steps, learned = trainer.steps, trainer.objectives[:count]
        values.append(_value(trainer, held, count - 1, proxy))
        if saturated(values, least_gain=least_gain):
            count, trainer = count - 1, make(count - 1)
            break
    history += train_part(trainer, loader, part=count, epochs=epochs)
    return Growth(
        trainer=trainer, values=tuple(values), kept=count, saturated=count < len(values), history=tuple(history)
    )


def _assembled(blocks: Sequence[nn.Module], output: Callable[[Boundary], nn.Module], example: Any) -> Partition:
    """Blocks and an output part as one network, cut behind every block."""
    below = Partition(nn.Sequential(*blocks, nn.Identity()), cuts=[str(len(blocks) - 1)], example=example)
    boundary = below.part(0).output
    assert boundary is not None, "part 0 of two has a boundary above it"
    model = nn.Sequential(*blocks, output(boundary))
    return Partition(model, cuts=[str(index) for index in range(len(blocks))], example=example)


def _value(trainer: Trainer, held: Sequence[Any], part: int, proxy: Callable[[Tensor, Tensor], float]) -> float:
    reading = read(trainer.partition, held)
    if reading.labels is None:
        raise DataError("the held-out labels are not one class a sample, which a proxy needs; give labels (N,)")
    return proxy(reading.outputs[part], reading.labels)


def _settling(
    trainer: Trainer,
    held: Sequence[Any],
    part: int,
    proxy: Callable[[Tensor, Tensor], float],
    least_progress: float | None,
) -> Callable[[Epoch], bool]:
    """Whether the part's own proxy has risen by less than `least_progress` in the last pass."""
    if least_progress is None:
        return lambda epoch: False
    least = least_progress
    before = [_value(trainer, held, part, proxy)]

    def settled(epoch: Epoch) -> bool:
        before.append(_value(trainer, held, part, proxy))
        return before[-1] - before[-2] < least

    return settled
