"""Put another module in the place of one, without touching the others."""

from __future__ import annotations

import copy
from itertools import chain

from torch import nn

from ...errors import PartitionError, suggest
from ...partition import Partition

__all__ = ["swapped"]


def swapped(partition: Partition, name: str, module: nn.Module) -> Partition:
    """A partition with another module in the place of one; all other weights are the same tensors as before.

    The user's model stays as it is: the new network has modules of its own and shares parameters and buffers with the
    old one, except for those of the module that was swapped. Train the part that it is in with `train_part`, which
    touches no other part. Train it as part of the whole, and what is shared changes in both networks.

    Args:
        partition: the parts.
        name: of a module of the model, such as its classifier.
        module: what to put there; it takes what the old one took.

    Raises:
        PartitionError: there is no module of this name, or the model with the new one cannot be cut where the old one
            was.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> partition = Partition(model, cuts=["1"], example=torch.randn(2, 4))
    >>> other = swapped(partition, "2", nn.Linear(8, 5))
    >>> other.model[0].weight is model[0].weight, model[2].out_features, other.model[2].out_features
    (True, 3, 5)
    """
    known = dict(partition.model.named_modules())
    if name not in known or not name:
        raise PartitionError(f"the model has no module {name!r} to swap{suggest(name, known)}")
    # What is in the memo is shared instead of copied; the module that goes need not be copied either.
    kept = chain(partition.model.parameters(), partition.model.buffers())
    model = copy.deepcopy(partition.model, {id(tensor): tensor for tensor in kept})
    model.set_submodule(name, module)
    return Partition(model, cuts=list(partition.cuts), example=partition.example)
