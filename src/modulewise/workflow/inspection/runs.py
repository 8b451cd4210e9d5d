"""Runs in folders, looked at: `modulewise train` leaves a checkpoint, `modulewise compare` a history of every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ... import registry
from ...checkpoint import LATEST, read
from ...compare import Configuration, Experiment, Folder, Result, Run, configurations
from ...compare.assembling import Workshop
from ...data import Loader, Split
from ...engine.ranks.saving import newest
from ...errors import ModulewiseError
from ...partition import AnyPartition
from ...trainer import Trainer
from .recording import Diagnosis, Record, records
from .states import PartState

__all__ = ["Inspected", "diagnosis_of", "history_records", "inspected", "place_of", "samples_of", "twin_of"]

_CHECKPOINT = "checkpoint"
_TWIN = "twin"
_SAMPLES = 512


@dataclass(frozen=True, kw_only=True, eq=False)
class Inspected:
    """One run of a folder.

    Args:
        name: method, schedule, parts and seed.
        records: oldest first.
        folder: where its features are kept, if they are.
    """

    name: str
    records: Sequence[Record]
    folder: Path


def place_of(folder: Path, fingerprint: str) -> Path:
    """Where the last state of one run of a comparison is kept.

    Args:
        folder: of the comparison.
        fingerprint: of the run.
    """
    return folder / "inspect" / fingerprint


def samples_of(workshop: Workshop) -> tuple[Split, Split, bool]:
    """Samples to fit to, samples to measure on, and whether no part has learned from the latter.

    Held-out training samples where the experiment has some (with probes, or with a limit on training samples);
    otherwise training samples. The test split is never read.

    Args:
        workshop: of the experiment.
    """
    material, limit = workshop.material, workshop.experiment.train_limit
    if material.fitted is not None and material.held is not None:
        return material.fitted, material.held, True
    train, everything = material.train, material.dataset.train
    if limit is not None and len(everything) >= limit + 16:
        order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(0))
        rest = order[limit : limit + _SAMPLES]
        return _spread(train, 0, 1), Split(everything.x[rest], everything.y[rest]), True
    return _spread(train, 0, 2), _spread(train, 1, 2), False


def _spread(split: Split, first: int, step: int) -> Split:
    """At most so many samples, evenly spread over every `step`-th one."""
    own = torch.arange(first, len(split), step)
    taken = own[:: max(1, len(own) // _SAMPLES)][:_SAMPLES].to(split.x.device)
    return Split(split.x[taken], split.y[taken])


def diagnosis_of(
    workshop: Workshop, trainer: Trainer, folder: Path, *, twin: AnyPartition | None = None, every: int = 1
) -> Diagnosis:
    """A callback that looks at a run of an experiment and writes into its folder; it looks once as it is made.

    Args:
        workshop: of the experiment.
        trainer: of the run, its checkpoint loaded.
        folder: the run's.
        twin: trained end to end, see `twin_of`.
        every: look after every so many passes.
    """
    fitted, held, held_out = samples_of(workshop)
    # The first batch is also that of the trial step, which should need no more memory than a step of training.
    size = min(workshop.experiment.batch_size, len(held))
    batches = Loader(
        held, batch_size=size, shuffle=False, normalize=workshop.material.normalize, device=workshop.device
    )
    return Diagnosis(trainer, workshop.plain(fitted), batches, twin=twin, folder=folder, held_out=held_out, every=every)


def twin_of(workshop: Workshop, one: Run, folder: Path) -> AnyPartition:
    """The run's twin: the same initial weights, samples, order and recipe, trained by end-to-end backpropagation.

    It is saved in the folder after every pass, and goes on or is loaded from there.

    Args:
        workshop: of the experiment.
        one: the run.
        folder: the run's.
    """
    row = Configuration(registry.parse("backprop"), "simultaneous", one.configuration.parts)
    trainer, loader = workshop.trainer(row, seed=one.seed), workshop.loader(row, seed=one.seed)
    place = folder / _TWIN
    if (place / LATEST).exists():
        trainer.load(place, loader=loader)
    trainer.fit(loader, epochs=workshop.experiment.epochs, schedule=row.order, checkpoint=place)
    return trainer.partition


def inspected(folder: Folder, *, twin: bool = False) -> list[Inspected]:
    """The records of every run in a folder, the state of its checkpoint the last.

    A run of `modulewise train` whose last state was not recorded is looked at now, and that is written into its folder.
    Runs of `modulewise compare` have losses and probes, from their history, and all of the last state where `--inspect`
    was given.

    Args:
        folder: of `modulewise train` or `modulewise compare`.
        twin: train the twin now, if it is not there, and compare the last state with it.

    Raises:
        ModulewiseError: nothing has been trained there, it is damaged, or a twin is asked of a comparison.
    """
    experiment = folder.experiment()
    checkpoint = folder.path / _CHECKPOINT
    if (checkpoint / LATEST).exists() or newest(checkpoint) is not None:
        return [_one_run(experiment, folder.path, twin=twin)]
    results = [result for result in folder.results() if result.error is None]
    if not results:
        raise ModulewiseError(f"{folder.path} holds no checkpoint and no finished run to look at; train first")
    if twin:
        raise ModulewiseError(
            f"--twin was given and {folder.path} holds a comparison, whose networks are not kept; use a folder of "
            "`modulewise train`"
        )
    return [_compared(result, folder.path) for result in results]


def _compared(result: Result, path: Path) -> Inspected:
    """The history of a run, its last entry with the last state where that was looked at."""
    found, place = history_records(result), place_of(path, result.fingerprint)
    last = records(place)
    if last:
        losses = {state.part: state.objective for state in found[-1].states}
        states = tuple(replace(state, objective=losses.get(state.part)) for state in last[-1].states)
        found[-1] = replace(found[-1], states=states, held_out=last[-1].held_out, samples=last[-1].samples)
    return Inspected(name=f"{result.label}, {result.parts} parts, seed {result.seed}", records=found, folder=place)


def _one_run(experiment: Experiment, path: Path, *, twin: bool) -> Inspected:
    (row,) = configurations(experiment)
    one, checkpoint = Run(row, experiment.seeds[0]), path / _CHECKPOINT
    held = records(path)
    if (checkpoint / LATEST).exists() and held and not twin:
        facts, _ = read(checkpoint, ())
        if facts["step"] == held[-1].step:
            return Inspected(name=str(one), records=held, folder=path)
    workshop = Workshop(experiment)
    trainer = workshop.trainer(row, seed=one.seed)
    trainer.load(checkpoint)
    network = twin_of(workshop, one, path) if twin else None
    diagnosis = diagnosis_of(workshop, trainer, path, twin=network)
    if twin and diagnosis.records[-1].states[-1].cka_twin is None:
        diagnosis.look(passes=diagnosis.records[-1].passes)
    return Inspected(name=str(one), records=records(path), folder=path)


def history_records(result: Result) -> list[Record]:
    """What the history of a finished run says of every part: the loss of the pass and the probe.

    Args:
        result: of `modulewise compare`.
    """
    names = [*result.cuts, "output"]
    first = next((entry["steps"] for entry in result.history if entry["steps"]), 0)
    samples = min(_SAMPLES, max(1, first * result.batch_size // 7))  # an eighth was held out, 512 at most

    def state(entry: Mapping[str, Any], part: int) -> PartState:
        probe = None if entry["probe"] is None else entry["probe"][part]
        return PartState(part=part, name=names[part], objective=entry["losses"].get(str(part)), probe=probe)

    return [
        Record(
            passes=index,
            part=entry["part"],
            step=entry["steps"],
            losses={int(part): loss for part, loss in entry["losses"].items()},
            states=tuple(state(entry, part) for part in range(result.parts)),
            samples=samples,
        )
        for index, entry in enumerate(result.history)
    ]
