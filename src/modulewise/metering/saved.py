"""What a forward pass keeps for its backward."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .ledger import Category, Ledger

__all__ = ["saved_bytes"]


def saved_bytes(forward: Callable[[], object], *, parameters: Iterable[Tensor] = ()) -> int:
    """Bytes a forward pass keeps for its backward: unique storages autograd saved and holds at its end.

    Tensors that a custom function keeps in attributes, around `save_for_backward`, are not seen.

    Args:
        forward: runs the forward; what it returns is held until the count is made, and so is its graph.
        parameters: tensors whose storages are not counted, because they live anyway.

    >>> weight, x = torch.ones(2, 4, requires_grad=True), torch.ones(3, 4)
    >>> saved_bytes(lambda: torch.relu(x @ weight.t()), parameters=[weight])  # x and the output of relu
    72
    """
    saved: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Saved:
        kept = _Saved(tensor.detach())  # an output held with its graph would hold itself for ever
        saved.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        output = forward()
    ledger = Ledger(device=None)
    ledger.see_all(parameters, Category.PARAMETERS, claim=True)
    before = ledger.report().end_bytes
    ledger.see_all([kept.tensor for kept in saved], Category.ACTIVATIONS)
    del output
    return ledger.report().peak_bytes - before


class _Saved:
    """Holds one tensor for autograd; dies with the graph that holds it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
