"""What is taken from a trained network to be stored: one part's tensors, and the proof that they rebuild it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...engine.features import evaluating, frozen_boundaries
from ...errors import StoreError
from ...partition import Part, Partition
from ...partition.tree import rebatch
from ...partition.verification import same
from .card import Card, ModelSpec, Sample
from .rebuilding import Skeleton, StoredPart, check_tensors, skeleton
from .shelves import reason

__all__ = ["Taken", "frozen_run", "taken"]


@dataclass(frozen=True)
class Taken:
    """All that the files of a stored part are made of.

    Args:
        model: how the model is built.
        cuts: where it is cut.
        part: index of the part.
        takes: one sample of the model's input.
        input: one sample of the part's.
        output: one sample of what it gives.
        tensors: the part's tensors, by name.
        parameters: how many elements of them are learned.
    """

    model: ModelSpec
    cuts: tuple[str, ...]
    part: int
    takes: Sample
    input: Sample
    output: Sample
    tensors: dict[str, Tensor]
    parameters: int


def frozen_run(part: Part | nn.Module) -> Callable[[Tensor], Any]:
    """A part or module as a function of one tensor (N, ...): in eval mode, without gradients, modes put back.

    Args:
        part: of a partition, or any module.
    """
    model = part._partition.model if isinstance(part, Part) else part

    @torch.no_grad()
    def run(h: Tensor) -> Any:
        with evaluating(model):
            return part(h)

    return run


def taken(part: Part | nn.Module, *, model: ModelSpec | None, example: Tensor | None) -> Taken:
    """What is to be stored of a part.

    The part is rebuilt from the spec and run beside the original: only what gives the same output is stored.

    Args:
        part: of a partition, a whole module, or a part that was loaded.
        model: how the whole model is built; a loaded part knows its own.
        example: an input (N, ...) of a whole module; parts and loaded parts know theirs.

    Raises:
        StoreError: something is missing, the spec builds another model, or the rebuilt part gives another output.
    """
    if isinstance(part, StoredPart):
        return _again(part)
    if model is None:
        raise StoreError(
            "nothing says how to rebuild the part; give model=ModelSpec(name=...) with a name that mw.models.build "
            "knows, or 'package.module:function' of your own"
        )
    if isinstance(part, nn.Module):
        if example is None:
            raise StoreError("a whole module was given without example=; give an input of it, a tensor (N, ...)")
        part = Partition(part, cuts=[], example=example).part(0)
    if not isinstance(part, Part):
        raise StoreError(f"{type(part).__name__} was given, expected a part in depth, a module or a loaded part")
    return _from_partition(part, model)


def _sample(tensor: Tensor) -> Sample:
    return Sample(tuple(tensor.shape[1:]), tensor.dtype)


def _from_partition(part: Part, spec: ModelSpec) -> Taken:
    partition = part._partition
    x = partition.example
    if not isinstance(x, Tensor):
        raise StoreError(f"the model takes {type(x).__name__}, expected one tensor (N, ...); store a model that does")
    bare = skeleton(spec, cuts=partition.cuts, part=part.index, takes=_sample(x), trust_code=True)
    tensors = {name: _named(partition.model, name, spec) for name in bare.names}
    check_tensors(bare, tensors, where=f"the model to store from, said to be {spec.name!r},")
    h: Tensor = rebatch(x, 2)
    if part.index:
        h = frozen_boundaries(partition, part.index, h, {})[part.index - 1]
    out = frozen_run(part)(h)
    if not isinstance(out, Tensor) or out.ndim < 2 or len(out) != len(h):
        raise StoreError(f"part {part.index} does not give one tensor (N, ...); store another part")
    found = Taken(
        spec, partition.cuts, part.index, _sample(x), _sample(h), _sample(out), tensors, _learned(bare, tensors)
    )
    _prove(bare, found, h, out)
    return found


def _prove(bare: Skeleton, found: Taken, h: Tensor, out: Tensor) -> None:
    card = Card(
        name=f"part {found.part}", version=0, model=found.model, cuts=found.cuts, part=found.part, takes=found.takes,
        input=found.input, output=found.output, sha256="", bytes=0, parameters=0,
    )  # fmt: skip
    try:
        rebuilt = frozen_run(StoredPart(bare, found.tensors, card=card))(h)
        said = "" if same(rebuilt, out) else "gives another output than the part itself"
    except (RuntimeError, NotImplementedError) as error:
        said = f"does not run ({reason(error)})"
    if said:
        raise StoreError(
            f"part {found.part}, rebuilt from {found.model.name!r}, {said}; give the spec that the model was built "
            "from, and register every tensor that it keeps as a buffer"
        )


def _again(part: StoredPart) -> Taken:
    card, tensors = part.card, dict(part.named_tensors())
    return Taken(
        card.model, card.cuts, card.part, card.takes, card.input, card.output, tensors,
        _learned(part.skeleton, tensors),
    )  # fmt: skip


def _learned(bare: Skeleton, tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() for name, tensor in tensors.items() if isinstance(bare.shell(name), nn.Parameter))


def _named(model: nn.Module, name: str, spec: ModelSpec) -> Tensor:
    path, _, attribute = name.rpartition(".")
    try:
        owner = model.get_submodule(path)
    except AttributeError:
        owner = nn.Module()
    tensor = owner._parameters.get(attribute, owner._buffers.get(attribute))
    if tensor is None:
        raise StoreError(f"the model has no {name!r}, which {spec.name!r} builds; give the spec it was built from")
    if tensor.is_meta:
        raise StoreError(f"{name!r} is on the meta device and has no values; train the model before storing a part")
    return tensor.detach()
