"""One part in a process of its own: take a batch, learn, hand what it made on, and now and then checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from ...buffers import Entry
from ..alone import Solo
from .packing import Flat, flat, opened, packed
from .saving import PartState, load_part, save_part, state_of, take_state

if TYPE_CHECKING:
    from ...schedules import Asynchronous
    from ...trainer import Trainer

__all__ = ["Tally", "Worker"]


@dataclass
class Tally:
    """What a part came to in one pass.

    Args:
        epoch: which pass.
        updates: of the part, in this pass.
        loss: sum of its losses.
        busy: seconds at work.
        ended: whether it has ended the pass.
    """

    epoch: int = 0
    updates: int = 0
    loss: float = 0.0
    busy: float = 0.0
    ended: bool = False


class Worker:
    """The Ray actor of one part. Started again, it goes on from its checkpoint, with the batches it had since then.

    Args:
        trainer: a list with the reference of the whole trainer, of which the part's share is trained; the driver alone
            owns it, and keeps it for restarts.
        part: which part.
        shelves: handles of the exchanges with the buffers that parts read, by part.
        schedule: its wire, and how often to checkpoint.
        run: name of the run, so that no other run's checkpoint is taken up.
    """

    def __init__(
        self, trainer: Sequence[Any], part: int, shelves: Sequence[Any], schedule: Asynchronous, run: str
    ) -> None:
        import ray

        assert schedule.actors is not None, "actors run where there are settings for them"
        torch.set_num_threads(schedule.actors.threads)
        self.trainer: Trainer = ray.get(trainer[0])
        self.part, self.shelves, self.settings = part, shelves, schedule.actors
        self.solo = Solo(self.trainer, part, wire=schedule.wire)
        model = self.trainer.partition.model.train()
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
        self.base, self.updates, self.tally = self.trainer.steps, 0, Tally()
        self.run_name, self.restored = run, False
        folder = self.settings.folder
        self.path = None if folder is None else Path(folder) / f"part-{part}.safetensors"
        self._restore()

    def ready(self) -> None:
        """The process is there."""

    def learn(self, epoch: int) -> tuple[Tally, bool]:
        """Learn until the pass is over; what it came to, and whether this process took over from another."""
        import ray

        if self.tally.epoch == epoch and self.tally.ended:
            return self.tally, self.restored
        if self.tally.epoch != epoch or self.tally.ended:
            self.tally = Tally(epoch)
        shelf, above = self.shelves[self.part], self.part + 1 < len(self.shelves)
        while (taken := ray.get(shelf.take.remote(self.part, self.updates))) is not None:
            made = self._update(*taken)
            if above:
                ray.get(self.shelves[self.part + 1].put.remote(self.part + 1, *made))
            self.updates += 1
            if self.path is None:
                shelf.settle.remote(self.part, self.updates)
            elif self.updates % self.settings.every == 0:
                self._checkpoint()
        if above:
            ray.get(self.shelves[self.part + 1].close.remote(self.part + 1))
        self.trainer.updater.epoch_end(self.part)
        self.tally.ended = True
        self._checkpoint()
        return self.tally, self.restored

    def state(self) -> tuple[dict[str, Flat], dict[str, Any]]:
        """All that the part has learned."""
        state = state_of(self.trainer, self.part, buffers=self.buffers)
        return {name: flat(tensor) for name, tensor in state.tensors.items()}, dict(state.facts)

    def _update(self, entry: Entry, parcel: Any) -> tuple[Entry, Any]:
        cargo = opened(parcel, self.device)
        started = perf_counter()
        loss, made = self.solo.learn(cargo, step=self.base + self.updates)
        self.tally.loss += float(loss)
        self.tally.updates += 1
        self.tally.busy += perf_counter() - started
        return replace(entry, version=self.updates, uses=0), None if made is None else packed(made)

    def _checkpoint(self) -> None:
        if self.path is None:
            return
        state = state_of(self.trainer, self.part, buffers=self.buffers)
        wire = {f"wire/{name}": tensor for name, tensor in self.solo.memory.items()}
        facts = {**state.facts, "tally": vars(self.tally), "taken": self.updates, "run": self.run_name}
        save_part(self.path, PartState({**state.tensors, **wire}, facts))
        self.shelves[self.part].settle.remote(self.part, self.updates)

    def _restore(self) -> None:
        state = None if self.path is None else load_part(self.path)
        if state is None or state.facts["run"] != self.run_name:
            return
        self.solo.memory = {n[5:]: t for n, t in state.tensors.items() if n.startswith("wire/")}
        take_state(self.trainer, self.part, state)
        self.updates, self.tally = state.facts["taken"], Tally(**state.facts["tally"])
        self.restored = True
