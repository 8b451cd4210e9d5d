"""Put a trainer on its ranks: refuse what does not go, join the group, and see that all ranks were made alike."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch

from ... import checkpoint
from ...errors import MethodError
from ...partition import Partition
from .crew import Crew
from .group import agree, digest, join, world_around
from .settings import Ranks, seats
from .sharding import refuse_shards
from .traffic import refuse

if TYPE_CHECKING:
    from ...trainer import Trainer

__all__ = ["enlist"]


def enlist(trainer: Trainer, settings: Ranks | None, *, refused: Mapping[str, Any]) -> Crew | None:
    """Put a trainer on its ranks; None where it trains all parts in this process.

    Args:
        trainer: complete but for this.
        settings: how; None for one process.
        refused: settings of the trainer that ranks do not take, by name.

    Raises:
        MethodError: the partition or the method does not go over several ranks.
        RankError: the group does not come together, or the ranks were not made alike.
    """
    if settings is None:
        return None
    partition, world = trainer.partition, world_around()
    if world is None:
        return None
    if trainer.solver is not None or not isinstance(partition, Partition):
        what = type(trainer.method).__name__ if trainer.solver is not None else "a partition over time"
        raise MethodError(f"{what} does not go over several ranks; train in one process, or use another")
    # Refused before anything is connected: every rank comes to it by itself.
    places = seats(settings, parts=len(partition), world=world)
    refuse(trainer.method, trainer.objectives, places, data=settings.data, settings=refused)
    if settings.shard:
        refuse_shards(trainer, partition)
    first = next(partition.model.parameters(), None)
    group = join(timeout=settings.timeout, device=torch.device("cpu") if first is None else first.device)
    try:
        agree(group.facts(_alike(trainer, settings)))
        crew = Crew(trainer, partition, settings, group, places)
    except BaseException:
        group.close()
        raise
    weakref.finalize(trainer, group.close)
    return crew


def _alike(trainer: Trainer, settings: Ranks) -> dict[str, Any]:
    """What must be the same on every rank."""
    heads = {f"{i}.{name}": t for i, o in enumerate(trainer.objectives) for name, t in o.state_dict().items()}
    return {
        "modulewise version": metadata.version("modulewise"),
        "torch version": torch.__version__,
        **checkpoint.identity_of(trainer),
        "precision": str(trainer.engine.precision),
        "clip_norm": trainer.updater.clip_norm,
        "Ranks": [settings.parts, settings.data, settings.shard],
        "initial weights (seed them with torch.manual_seed)": digest(trainer.partition.model.state_dict()),
        "initial heads": digest(heads),
    }
