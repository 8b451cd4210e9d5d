"""One part learns from one batch on its own, and says what the next part needs to do the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import MethodError
from ..method import Reach
from ..partition.tree import batch_size, map_tensors, plain, tensors
from ..wires import Exact, Memory, Packet, Wire
from .batches import check_batch
from .binding import with_views
from .session import Session

if TYPE_CHECKING:
    from ..trainer import Trainer

__all__ = ["Cargo", "Solo", "check_alone", "loaded"]


@dataclass(frozen=True, eq=False)
class Cargo:
    """A batch on its way to a part.

    Args:
        packets: the boundaries that this part or a later one reads, by index.
        x: the model's input, where this part or a later one reads it; else its shapes alone.
        y: labels.
        ids: of the samples, (N,).
        views: views stacked along the batch.
    """

    packets: Mapping[int, Packet]
    x: Any
    y: Any
    ids: Tensor
    views: int = 1

    @property
    def bytes(self) -> int:
        """What it takes on the wire."""
        beside = sum(_bytes(tensor) for tensor in tensors((self.x, self.y, self.ids)))
        return beside + sum(packet.bytes for packet in self.packets.values())


def _bytes(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def hollow(tensor: Tensor) -> Tensor:
    """A tensor of the same shape that takes the memory of one number."""
    return torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)


def check_alone(trainer: Trainer, word: str) -> None:
    """Refuse what does not let every part learn on its own.

    Raises:
        MethodError: the method reads a neighbour's weights, or slices of a batch accumulate.
    """
    name = type(trainer.method).__name__
    if trainer.method.locality.reach is not Reach.STRICT:
        raise MethodError(
            f"{name} ({trainer.method.locality}) needs more than what is sent along with the batch, which {word} does "
            "not give; use schedules.simultaneous or a method whose locality is strict"
        )
    if trainer.accumulate > 1:
        raise MethodError(
            f"accumulate={trainer.accumulate} was given with the {word} schedule, which takes it no further than one "
            "part; leave it at 1 and give smaller batches"
        )


def loaded(trainer: Trainer, loader: Any) -> Iterator[Cargo]:
    """One pass over a loader, as batches for the first part.

    Ids are the loader's own where it says `last_indices`, else the numbers of the rows in the pass.
    """
    rows, views = 0, getattr(loader, "views", 1)
    for x, y in loader:
        check_batch(x, y, views=views, classes=trainer.classes)
        samples = batch_size(x) // views
        ids = getattr(loader, "last_indices", None)
        ids = torch.arange(rows, rows + samples) if ids is None else ids
        rows += samples
        yield Cargo({}, plain(x), y, ids, views)


class Solo:
    """The work of one part, batch after batch.

    Args:
        trainer: whose part.
        part: which part.
        wire: how what it makes is written.

    Attributes:
        memory: what the wire keeps from batch to batch.
    """

    def __init__(self, trainer: Trainer, part: int, *, wire: Wire | None = None) -> None:
        self.trainer, self.part, self.wire = trainer, part, wire or Exact()
        self.memory: Memory = {}

    def learn(self, cargo: Cargo, *, step: int) -> tuple[Tensor, Cargo | None]:
        """Learn from a batch.

        Args:
            cargo: what the part below sent; for part 0 what the loader gave.
            step: the part's own update, which its draws belong to.

        Returns:
            The loss, and the batch for the next part (None from the last).
        """
        trainer, part = self.trainer, self.part
        x, views = cargo.x, cargo.views
        if part == 0:
            parts = len(trainer.partition)
            x, views = with_views(trainer.method, x, cargo.y, views=views, parts=parts, seed=trainer.seed, step=step)
        given = {index: self.wire.decode(packet) for index, packet in cargo.packets.items()}
        session = Session(trainer.engine, x, cargo.y, views=views, step=step, boundaries=given)
        with trainer.guarded():
            session.up(part)
            outward = dict(session.boundaries)
            session.down()
        loss = session.losses[part]
        if part == len(trainer.partition) - 1:
            return loss, None
        return loss, self._sent(cargo, outward, x, views)

    def _sent(self, cargo: Cargo, outward: Mapping[int, Tensor], x: Any, views: int) -> Cargo:
        boundary = self.trainer.partition.part(self.part).output
        assert boundary is not None, "only the last part has none"
        own, memory = self.wire.encode(outward[self.part], channel_axis=boundary.channel_axis, memory=self.memory)
        self.memory = memory
        packets = {index: own if index == self.part else cargo.packets[index] for index in outward}
        needed = self._reads_x(x)
        return Cargo(packets, x if needed else map_tensors(hollow, x), cargo.y, cargo.ids, views)

    def _reads_x(self, x: Any) -> bool:
        """Whether a later part reads the model's input: for side inputs, or in its objective."""
        plans = self.trainer.partition.plans(x)[self.part + 1 :]
        objectives = self.trainer.objectives[self.part + 1 :]
        return any(plan.reads_batch for plan in plans) or any(objective.reads_x for objective in objectives)
