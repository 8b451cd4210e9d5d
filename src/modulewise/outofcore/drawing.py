"""The initial values of one part: drawn from (seed, part) by the modules' own `reset_parameters`."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import PartitionError
from ..seeding import preserved_generators, seed_of, set_generators
from .holdings import Holdings, placed

__all__ = ["Initialize", "drawn"]

Initialize = Callable[[str, nn.Module], None]
"""initialize(name, module): sets the module's own parameters and buffers in place."""

RESETS = ("reset_parameters", "_reset_parameters")  # nn.MultiheadAttention has the second


def drawn(holdings: Holdings, part: int, *, seed: int, initialize: Initialize | None = None) -> dict[str, Tensor]:
    """The initial values of a part, on the CPU.

    Every module with something in the part, children before parents, is reset by its own `reset_parameters`, then
    given to `initialize`. A parent without parameters of its own is reset as well, where all below it is in the part.

    Args:
        holdings: what belongs to which part.
        part: the part.
        seed: the run's; draws belong to (seed, part).
        initialize: called as `initialize(name, module)`, in the place of `model.apply(initialize)`.

    Raises:
        PartitionError: something has no values afterwards.
    """
    owners = [owner for owner in holdings.owners if part in owner.own or owner.all == {part}]
    # A module whose parameters lie in two parts can only be reset whole: the rest of it is drawn and let go.
    modules = {owner.module for owner in owners if owner.own}
    around = {name for name, places in holdings.places.items() if any(p.module in modules for p in places)}
    values = {name: _blank(holdings.shells[name]) for name in around}
    with preserved_generators(), torch.no_grad(), placed(holdings, values):
        set_generators(seed_of(seed, "values", part))
        done: set[nn.Module] = set()
        for owner in owners:
            if _reset(owner.module):
                done.add(owner.module)
            if initialize is not None:
                initialize(owner.name, owner.module)
        made = holdings.present(part)
        for name, tensor in made.items():
            module = holdings.places[name][0].module
            if tensor.is_meta or _unset(tensor, sure=initialize is not None or module in done):
                raise PartitionError(
                    f"{name!r} has no initial values: {type(module).__name__} has no reset_parameters() that sets it; "
                    "give initialize=, a function of a module's name and the module that sets them in place"
                )
        return {name: tensor.clone() for name, tensor in made.items()}


def _blank(shell: Tensor) -> Tensor:
    """Memory for a tensor, filled with what no initialisation leaves."""
    blank = torch.empty_like(shell, device="cpu", requires_grad=False)
    if blank.is_floating_point() or blank.is_complex():
        return blank.fill_(torch.nan)
    return blank.fill_(torch.iinfo(blank.dtype).min) if blank.dtype != torch.bool else blank.fill_(False)


def _unset(tensor: Tensor, *, sure: bool) -> bool:
    """Whether a tensor is as `_blank` made it; where that cannot be told, whether nobody took care of it."""
    if tensor.is_floating_point() or tensor.is_complex():
        return bool(tensor.isnan().any())
    if tensor.dtype in (torch.bool, torch.uint8):
        return not sure
    return bool((tensor == torch.iinfo(tensor.dtype).min).any())


def _reset(module: nn.Module) -> bool:
    for name in RESETS:
        method = getattr(module, name, None)
        if callable(method) and not inspect.signature(method).parameters:
            method()
            return True
    return False
