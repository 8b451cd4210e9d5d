"""From the folder of a training run to a stored part with a full card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ... import models
from ...checkpoint import LATEST, read
from ...compare import Configuration, Experiment, Folder, configurations
from ...compare.assembling import Workshop
from ...engine.ranks.saving import newest
from ...errors import StoreError
from ...partition import Partition
from .card import Card, ModelSpec, Threshold
from .checking import figures_of
from .store import Store

__all__ = ["save_run"]


def save_run(
    store: Store,
    folder: Path,
    name: str,
    *,
    part: int,
    below: bool = False,
    thresholds: Sequence[Threshold] = (),
    licence: str | None = None,
    notes: str = "",
) -> Card:
    """Store a part of what `modulewise train` left in a folder.

    Proxy value and probe accuracy are measured on the test split, which the run has not trained on.

    Args:
        store: where to.
        folder: the run's.
        name: under which.
        part: index of the part, >= 0.
        below: store it together with the parts below it, so that it takes the model's input.
        thresholds: what `modulewise check` holds it to.
        licence: under which terms the weights may be used.
        notes: free text.

    Raises:
        ModulewiseError: the folder holds no checkpoint of such a run, there is no such part, or it cannot be rebuilt.
    """
    experiment = replace(Folder(folder).experiment(), device="cpu")
    workshop = Workshop(experiment)
    (row,) = configurations(experiment)
    partition = _trained(folder, experiment, row, workshop)
    partition.part(part)
    if below:
        partition = Partition(partition.model, cuts=partition.cuts[part : part + 1], example=partition.example)
        part = 0
    dataset, material = workshop.material.dataset, workshop.material

    figures = figures_of(
        partition.part(part),
        train=material.train,
        held=material.test,
        normalize=material.normalize,
        on=f"the test split of {dataset.name}, {len(material.test)} samples",
    )
    return store.save(
        partition.part(part),
        name,
        model=ModelSpec(name=experiment.model, shape=dataset.shape, classes=dataset.classes),
        normalize=material.normalize,
        data=experiment.data,
        method=str(row.method),
        schedule=row.schedule,
        seed=experiment.seeds[0],
        figures=figures,
        thresholds=thresholds,
        licence=licence,
        notes=notes,
    )


def _trained(folder: Path, experiment: Experiment, row: Configuration, workshop: Workshop) -> Partition:
    """The run's model with the weights of its checkpoint, cut as it was."""
    checkpoint, seed = folder / "checkpoint", experiment.seeds[0]
    if newest(checkpoint) is not None:
        trainer = workshop.trainer(row, seed=seed).load(checkpoint)
        if not isinstance(trainer.partition, Partition):
            raise _over_time(folder)
        return trainer.partition
    if not (checkpoint / LATEST).is_file():
        raise StoreError(f"{folder} holds no checkpoint, expected a folder that `modulewise train` wrote")
    facts, groups = read(checkpoint, ("model",))
    model = workshop.model(seed)
    if isinstance(model, models.Recurrent) and experiment.cuts is None:
        raise _over_time(folder)
    model.load_state_dict(groups["model"])
    example, _ = workshop.batch(2)
    return Partition(model, cuts=facts["identity"]["cuts"], example=example)


def _over_time(folder: Path) -> StoreError:
    return StoreError(f"{folder} holds windows of time, which share one set of weights; expected a run cut in depth")
