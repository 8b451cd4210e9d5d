"""A callback of `Trainer.fit` that looks at every part after every pass, and the file that it writes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...engine.epochs import Epoch
from ...errors import MethodError, ModulewiseError
from ...partition import AnyPartition
from ...trainer import Trainer
from .boundaries import Reading, read
from .diagnose import part_states
from .pictured import keep_features
from .states import INPUT, Measures, PartState
from .stepping import part_costs, shares, trial_step

__all__ = ["FORMAT", "RECORDS", "Diagnosis", "Record", "append_to", "records"]

RECORDS = "inspect.jsonl"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Record:
    """All parts at one moment.

    Args:
        passes: passes over the data that have ended, whichever part learned.
        part: the part that learned last, or None where all did.
        step: training steps so far.
        losses: mean training loss of the last pass, by part.
        states: of the input and of every part.
        held_out: whether no part has learned from the samples that were measured.
        samples: how many samples were measured.
    """

    passes: int
    part: int | None
    step: int
    losses: Mapping[int, float]
    states: tuple[PartState, ...]
    held_out: bool = True
    samples: int = 0

    def to_json(self) -> dict[str, Any]:
        """The record as plain data."""
        facts = {"format": FORMAT} | vars(self)
        losses = {str(part): loss for part, loss in self.losses.items()}
        return facts | {"losses": losses, "states": [state.to_json() for state in self.states]}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Record:
        """The record that `to_json` wrote down.

        Raises:
            ModulewiseError: it is of a newer format, or a field is missing.
        """
        if facts.get("format") != FORMAT:
            raise ModulewiseError(f"its format is {facts.get('format')}, expected {FORMAT}; update modulewise")
        try:
            values = {name: facts[name] for name in ("passes", "part", "step", "held_out", "samples")}
            losses = {int(part): loss for part, loss in facts["losses"].items()}
            states = tuple(PartState.from_json(state) for state in facts["states"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ModulewiseError(f"a field is missing or malformed ({error})") from error
        return cls(losses=losses, states=states, **values)


class Diagnosis:
    """Looks at all parts before training and after every pass; a callback of `Trainer.fit`.

    What is trained is as before after every look: weights, buffers, optimisers, modes and generators, so that a run
    with it ends in the same numbers as a run without.

    Args:
        trainer: what is trained, in one process.
        fitted: batches (x, y) to fit probes and decoders to; read once.
        held: batches (x, y) to measure on, which no part learns from; read once. The first is also the batch of the
            trial step for objectives and gradient norms.
        measures: what to measure with.
        twin: the same cuts of a network trained end to end; see `train_twin`.
        folder: where to append every record to `inspect.jsonl`; None keeps them here alone.
        held_out: False where parts have learned from `held`; it is written down.
        every: look after every so many passes, >= 1.

    Attributes:
        records: of this run, oldest first; where the folder holds some already, those too.

    Raises:
        MethodError: the parts are on several processes, or `every` is below 1.
        ModulewiseError: the folder's records are damaged.

    >>> import torch, modulewise as mw
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> trainer = mw.Trainer(
    ...     mw.Partition(model, cuts=["1"], example=torch.randn(2, 4)),
    ...     mw.methods.DGL(classes=3),
    ...     loss=torch.nn.functional.cross_entropy,
    ...     optimizer=torch.optim.Adam,
    ... )
    >>> batch = torch.randn(9, 4), torch.arange(9) % 3
    >>> diagnosis = mw.workflow.Diagnosis(trainer, [batch], [batch])
    >>> _ = trainer.fit([batch], epochs=2, callbacks=[diagnosis])
    >>> [record.passes for record in diagnosis.records]
    [0, 1, 2]
    """

    def __init__(
        self,
        trainer: Trainer,
        fitted: Iterable[Any],
        held: Iterable[Any],
        *,
        measures: Measures | None = None,
        twin: AnyPartition | None = None,
        folder: Path | str | None = None,
        held_out: bool = True,
        every: int = 1,
    ) -> None:
        if trainer.crew is not None:
            raise MethodError("parts on several processes cannot be looked at while they train; inspect a checkpoint")
        if every < 1:
            raise MethodError(f"every={every} was given, expected at least 1")
        self.trainer, self.measures, self.every, self.held_out = trainer, measures or Measures(), every, held_out
        self._fitted, self._held = list(fitted), list(held)
        self._twin: Reading | None = None if twin is None else read(twin, self._held)
        self._shares: list[tuple[float, float]] | None = None
        self.folder = None if folder is None else Path(folder)
        self.records: list[Record] = [] if self.folder is None else records(self.folder)
        if self.records and self.records[-1].step > trainer.steps:
            raise ModulewiseError(
                f"{self.folder} holds records up to step {self.records[-1].step} and the trainer is at step "
                f"{trainer.steps}; give another folder, or load the checkpoint that belongs to them"
            )
        if not any(record.step == trainer.steps for record in self.records):
            self.look(passes=_passes(trainer))

    def __call__(self, epoch: Epoch) -> None:
        """Look after a pass."""
        passes = epoch.epoch + 1 if epoch.part is None else _passes(self.trainer)
        if passes % self.every == 0:
            self.look(passes=passes, part=epoch.part, losses=epoch.losses)

    def look(self, *, passes: int, part: int | None = None, losses: Mapping[int, float] | None = None) -> Record:
        """Look now, and keep the record.

        Args:
            passes: over the data so far.
            part: the part that learned last; None for all.
            losses: mean training losses of the last pass, by part.
        """
        reading = read(self.trainer.partition, self._held)
        record = Record(
            passes=passes,
            part=part,
            step=self.trainer.steps,
            losses=dict(losses or {}),
            states=self._states(reading),
            held_out=self.held_out,
            samples=len(reading),
        )
        self.records.append(record)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            keep_features(self.folder, reading, self.trainer.partition)
            append_to(self.folder, record)
        return record

    def _states(self, reading: Reading) -> tuple[PartState, ...]:
        trainer = self.trainer
        boundaries = [part.output for part in trainer.partition.parts]
        states = part_states(
            read(trainer.partition, self._fitted),
            reading,
            boundaries=boundaries,
            twin=self._twin,
            measures=self.measures,
        )
        x, y = self._held[0]
        if self._shares is None and self.measures.costs:
            self._shares = shares(part_costs(trainer.partition, x))
        step = trial_step(trainer, x, y)
        return tuple(
            state
            if state.part == INPUT
            else replace(
                state,
                objective=None if step is None else step.objectives.get(state.part),
                gradient_norm=None if step is None else step.gradient_norms.get(state.part),
                time_share=None if self._shares is None else self._shares[state.part][0],
                memory_share=None if self._shares is None else self._shares[state.part][1],
            )
            for state in states
        )


def _passes(trainer: Trainer) -> int:
    """Passes that have ended: of one part after another they add up."""
    progress = trainer.progress
    return 0 if progress is None else (progress.part - progress.first) * progress.epochs + progress.epoch


def append_to(folder: Path, record: Record) -> None:
    """Write one line, on the disk when this returns; a line that an earlier writer left unfinished is dropped first."""
    path = folder / RECORDS
    whole = _whole(path)
    with path.open("r+b" if path.exists() else "xb") as file:
        file.truncate(len(whole))
        file.seek(len(whole))
        file.write(json.dumps(record.to_json()).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def records(folder: Path) -> list[Record]:
    """The records of a folder, oldest first, the last one of every step; empty where there are none.

    Raises:
        ModulewiseError: a line other than an unfinished last one is damaged, or of a newer format.
    """
    path, found = folder / RECORDS, {}
    for number, line in enumerate(_whole(path).splitlines(), start=1):
        try:
            record = Record.from_json(json.loads(line))
        except ValueError as error:
            raise ModulewiseError(f"{path}, line {number} cannot be read: {error}; remove the line") from error
        found[record.step] = record
    return sorted(found.values(), key=lambda record: record.step)


def _whole(path: Path) -> bytes:
    """The lines that were written to their end: all up to the last newline."""
    content = path.read_bytes() if path.is_file() else b""
    return content[: content.rfind(b"\n") + 1]
