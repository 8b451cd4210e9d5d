"""Bring every part, its buffers and its head to every rank, so that each holds the whole trained model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...objective import Objective
from ...partition import Partition
from .group import Group

__all__ = ["gather", "own_names"]


def own_names(partition: Partition, parts: Iterable[int]) -> set[str]:
    """The names, in the model's state dict, of the parameters that parts own and of the buffers of what they call.

    A buffer that no part calls alone (of a module around several) is nobody's: no part changes it.
    """
    names: set[str] = set()
    for index in parts:
        part = partition.part(index)
        names.update(part.parameter_names)
        inside = tuple(f"{name}." for name, _ in part.modules())
        names.update(name for name, _ in partition.model.named_buffers() if name.startswith(inside))
    return names & partition.model.state_dict().keys()


def gather(group: Group, partition: Partition, objectives: Sequence[Objective], owners: Sequence[int]) -> None:
    """Overwrite every part, its buffers and its head with those of the rank that trains it.

    Args:
        group: all ranks; each must call this.
        partition: the parts.
        objectives: one a part.
        owners: for every part the rank whose state counts.
    """
    state = partition.model.state_dict()
    for part, source in enumerate(owners):
        for name in sorted(own_names(partition, [part])):
            group.broadcast(state[name], source=source)
        for _, tensor in sorted(objectives[part].state_dict().items()):
            group.broadcast(tensor, source=source)
