"""Which tensor of a model belongs to which part, found by what a run of each part reads; and putting tensors in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ..errors import PartitionError
from ..partition import Partition
from ..partition.tree import batch_size, map_tensors
from ..partition.verification import undisturbed

__all__ = ["Holdings", "Owner", "Place", "holdings_of", "placed"]


@dataclass(frozen=True)
class Place:
    """Where a tensor hangs: an attribute of a module; tied tensors hang in several places."""

    module: nn.Module
    attribute: str

    def get(self) -> Tensor | None:
        """What hangs there."""
        return self.module._parameters.get(self.attribute, self.module._buffers.get(self.attribute))

    def put(self, tensor: Tensor | None) -> None:
        """Hang something else there."""
        kind = self.module._parameters if self.attribute in self.module._parameters else self.module._buffers
        kind[self.attribute] = tensor  # type: ignore[assignment]


@dataclass(frozen=True)
class Owner:
    """A module with the parts that its own tensors, and all at or below it, belong to."""

    name: str
    module: nn.Module
    own: frozenset[int]
    all: frozenset[int]


@dataclass(frozen=True)
class Holdings:
    """The tensors of a model on the meta device, by part.

    Args:
        names: for every part the names of its parameters and buffers; of tied ones the first name.
        borrowed: for every part the names, of earlier parts, of what its run reads besides: tables and buffers for side
            inputs, and what the model's own forward touches on the way to the part.
        places: where each tensor hangs, by its first name.
        aliases: every name in `state_dict()` of a tensor, by its first name; none for buffers that are not persistent.
        shells: what hung there when the model was cut, by first name: on the meta device, and put back in the end.
        owners: the modules, children before parents.
    """

    names: Mapping[int, tuple[str, ...]]
    borrowed: Mapping[int, tuple[str, ...]]
    places: Mapping[str, tuple[Place, ...]]
    aliases: Mapping[str, tuple[str, ...]]
    shells: Mapping[str, Tensor]
    owners: tuple[Owner, ...]

    def bytes(self, part: int) -> int:
        """Size of a part's tensors."""
        return sum(self.shells[name].numel() * self.shells[name].element_size() for name in self.names[part])

    def present(self, part: int) -> dict[str, Tensor]:
        """What hangs at a part's names now."""
        found = {name: self.places[name][0].get() for name in self.names[part]}
        return {name: tensor.detach() for name, tensor in found.items() if tensor is not None}


class _Reads(TorchDispatchMode):
    """Notes the storages that operations read or write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [t for t in tree_flatten((args, kwargs or {}))[0] if isinstance(t, Tensor)]
        self.seen |= {t.untyped_storage()._cdata for t in given}
        return func(*args, **(kwargs or {}))


def holdings_of(partition: Partition) -> Holdings:
    """Share out a meta model's parameters and buffers among its parts.

    Every part is run on the meta device, in train and eval mode. Parameters belong to the part that owns them, buffers
    to the first part that reads them; what no part reads stays with its module.

    Raises:
        PartitionError: a parameter or buffer is not on the meta device.
    """
    model = partition.model
    places, shells, aliases = _places(model)
    real = next((name for name, tensor in shells.items() if not tensor.is_meta), None)
    if real is not None:
        raise PartitionError(
            f"{real!r} is on {shells[real].device}, expected the whole model on the meta device; build it under "
            "`with torch.device('meta')`, and give values with initialize="
        )
    readers = _readers(partition, shells)
    owners = {name: part.index for part in partition.parts for name in part.parameter_names}
    owners |= {name: min(readers[name], default=_home(name, owners)) for name in shells if name not in owners}
    parts = range(len(partition))
    names = {part: tuple(name for name in shells if owners[name] == part) for part in parts}
    borrowed = {
        part: tuple(name for name in shells if part in readers[name] and owners[name] != part) for part in parts
    }
    owned = {place: part for part, own in names.items() for name in own for place in places[name]}
    return Holdings(names, borrowed, places, aliases, shells, tuple(_owners(model, "", owned, set())))


def _places(model: nn.Module) -> tuple[dict[str, tuple[Place, ...]], dict[str, Tensor], dict[str, tuple[str, ...]]]:
    places: dict[str, tuple[Place, ...]] = {}
    shells: dict[str, Tensor] = {}
    aliases: dict[str, tuple[str, ...]] = {}
    first: dict[int, str] = {}
    for path, module in model.named_modules():
        own = [*module.named_parameters("", recurse=False), *module.named_buffers("", recurse=False)]
        for attribute, tensor in own:
            name = f"{path}.{attribute}".lstrip(".")
            primary = first.setdefault(id(tensor), name)
            shells.setdefault(primary, tensor)
            places[primary] = (*places.get(primary, ()), Place(module, attribute))
            kept = attribute not in module._non_persistent_buffers_set
            aliases[primary] = aliases.get(primary, ()) + ((name,) if kept else ())
    return places, shells, aliases


def _readers(partition: Partition, shells: Mapping[str, Tensor]) -> dict[str, set[int]]:
    """For every tensor the parts whose run reads it."""
    model, found = partition.model, {name: set[int]() for name in shells}
    x = partition.example
    n = batch_size(x)
    for training in (True, False):
        with undisturbed(model, training=training), torch.no_grad():
            for part in range(len(partition)):
                fed = {j: _boundary(partition, j, n) for j in partition.reads(x, part)}
                # In here buffers are copies, which a forward may replace: their storages are looked up every time.
                keys = {name: t.untyped_storage()._cdata for name, t in _tensors(model) if name in found}
                with _Reads() as reads:
                    partition.run(part, map_tensors(lambda t: t.clone(), x), fed)
                for name, key in keys.items():
                    if key in reads.seen:
                        found[name].add(part)
    return found


def _owners(module: nn.Module, path: str, owned: Mapping[Place, int], seen: set[nn.Module]) -> list[Owner]:
    """The modules at and below one, children first, each once."""
    if module in seen:
        return []
    seen.add(module)
    below = [o for name, child in module.named_children() for o in _owners(child, f"{path}.{name}", owned, seen)]
    places = [Place(module, attribute) for attribute in (*module._parameters, *module._buffers)]
    own = frozenset(owned[place] for place in places if place in owned)
    return [*below, Owner(path.lstrip("."), module, own, own.union(*(o.all for o in below)))]


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _boundary(partition: Partition, index: int, n: int) -> Tensor:
    boundary = partition.part(index).output
    assert boundary is not None
    return torch.empty((n, *boundary.shape[1:]), dtype=boundary.dtype, device="meta")


def _home(name: str, owners: Mapping[str, int]) -> int:
    """The part of a buffer that nothing reads: that of the parameters of its module, else the first."""
    path = name.rpartition(".")[0]
    parts = {part for other, part in owners.items() if other.rpartition(".")[0] == path}
    return min(parts, default=0)


@contextmanager
def placed(holdings: Holdings, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the model hold these tensors, by first name, for the block; what it held before is back on exit."""
    before = [(place, place.get()) for name in tensors for place in holdings.places[name]]
    try:
        for name, tensor in tensors.items():
            shell = holdings.shells[name]
            held = nn.Parameter(tensor, shell.requires_grad) if isinstance(shell, nn.Parameter) else tensor
            for place in holdings.places[name]:
                place.put(held)
        yield
    finally:
        for place, earlier in before:
            place.put(earlier)
