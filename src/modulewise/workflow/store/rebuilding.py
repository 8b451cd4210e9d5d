"""A part on its own: the model's skeleton without memory, and the tensors of the one part, frozen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ... import models
from ...errors import ModulewiseError, StoreError
from ...outofcore.holdings import Holdings, holdings_of
from ...partition import Partition
from ...seeding import preserved_generators
from .card import Card, ModelSpec, Sample
from .shelves import reason

__all__ = ["Skeleton", "StoredPart", "skeleton"]


@dataclass(frozen=True)
class Skeleton:
    """A model on the meta device, cut, of which one part is to run.

    Args:
        partition: the model and its cuts.
        holdings: which tensor belongs to which part.
        part: index of the part.
    """

    partition: Partition
    holdings: Holdings
    part: int

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors that the part needs: its own, and what it reads of frozen tables below it."""
        return (*self.holdings.names[self.part], *self.holdings.borrowed[self.part])

    def shell(self, name: str) -> Tensor:
        """A tensor of the part, with its shape and no values."""
        return self.holdings.shells[name]

    def run(self, h: Tensor) -> Any:
        """The part's output on what the model holds at present; h (N, ...)."""
        example: Tensor = self.partition.example
        plan = self.partition.plans(example)[self.part]  # of any size: no other part runs, nothing is recorded anew
        if self.part == 0:
            return self.partition.run(0, h, {}, plan=plan)
        blank = torch.zeros(1, dtype=example.dtype, device=h.device).expand(len(h), *example.shape[1:])
        return self.partition.run(self.part, blank, {self.part - 1: h}, plan=plan)


def skeleton(spec: ModelSpec, *, cuts: Sequence[str], part: int, takes: Sample, trust_code: bool) -> Skeleton:
    """Build a model without memory and cut it.

    Args:
        spec: which model.
        cuts: module names.
        part: index of the part.
        takes: one sample of the model's input.
        trust_code: allow a function of the user's own, which is imported and called.

    Raises:
        StoreError: the function is not trusted, the model needs values to be built, or the part takes more than one
            tensor.
        ModulewiseError: the model cannot be built or cut.
    """
    if spec.own and not trust_code:
        raise StoreError(
            f"{spec.name!r} is code that would be imported and run to rebuild this part; read it, then pass "
            "trust_code=True (--trust-code)"
        )
    with preserved_generators(), torch.device("meta"):
        model = models.build(spec.name, shape=spec.shape, classes=spec.classes)
    model = model.to("meta").requires_grad_(False).eval()
    example = torch.empty(2, *takes.shape, dtype=takes.dtype, device="meta")
    try:
        partition = Partition(model, cuts=list(cuts), example=example)
        holdings = holdings_of(partition)
    except RuntimeError as error:
        raise StoreError(
            f"model {spec.name!r} does not run without values ({reason(error)}); register tensors that it keeps "
            "as buffers"
        ) from error
    plan = partition.plans(example)[partition.part(part).index]
    if part and (plan.reads_batch or plan.reads != (part - 1,)):
        raise StoreError(
            f"part {part} of {spec.name!r} reads more than the boundary below it (a mask, or a skip from an earlier "
            "boundary), expected one tensor; cut elsewhere, or store the parts up to here as one"
        )
    return Skeleton(partition, holdings, part)


class StoredPart(nn.Module):
    """A part of a model as a module of its own: one tensor (N, ...) in, one tensor out, frozen.

    It holds the tensors of the part and no others; the rest of the model is a skeleton on the meta device. Whatever
    `train()` says, the part runs in eval mode: no dropout, and statistics of batch normalisation stay. Gradients
    reach its input, and its parameters after `requires_grad_(True)`.

    Args:
        skeleton: the model, cut.
        tensors: the part's tensors by their names in the model.
        card: what is known of it.

    Raises:
        StoreError: a tensor is missing or has another shape or type than the model gives it.

    Attributes:
        card: what is known of it.
        tensors: its parameters and buffers, below their names in the model.
    """

    def __init__(self, skeleton: Skeleton, tensors: Mapping[str, Tensor], *, card: Card) -> None:
        super().__init__()
        check_tensors(skeleton, tensors, where=card.label)
        self.card = card
        self.tensors = nn.Module()
        self._skeleton = (skeleton,)
        for name in skeleton.names:
            shell = skeleton.shell(name)
            _hang(self.tensors, name, tensors[name].detach(), learned=isinstance(shell, nn.Parameter))
        self.eval()

    @property
    def skeleton(self) -> Skeleton:
        """The model around it, without memory."""
        return self._skeleton[0]

    def train(self, mode: bool = True) -> StoredPart:
        """Stay in eval mode."""
        super().train(False)
        return self

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Its parameters and buffers, by their names in the model."""
        for name in self.skeleton.names:
            yield name, _hanging(self.tensors, name)

    def forward(self, h: Tensor) -> Tensor:
        """Run the part.

        Args:
            h: what the part below gives, or the model's input (N, ...); sizes other than those of the card are tried.

        Raises:
            StoreError: h does not fit.
        """
        self._check(h)
        with self._fitting(h), self._filled():
            out = self.skeleton.run(h)
        if not isinstance(out, Tensor):
            raise StoreError(f"{self.card.label} gives {type(out).__name__}, expected one tensor; store another part")
        return out

    def _check(self, h: Any) -> None:
        wanted = self.card.input
        if not isinstance(h, Tensor):
            raise StoreError(f"{self.card.label} was given {type(h).__name__}, expected a tensor {wanted}")
        given = Sample(tuple(h.shape[1:]), h.dtype)
        fits = h.ndim == len(wanted.shape) + 1 and h.dtype.is_floating_point == wanted.dtype.is_floating_point
        if not fits:
            raise StoreError(f"{self.card.label} was given {given}, expected {wanted}; give tensors of that kind")

    @contextmanager
    def _fitting(self, h: Tensor) -> Iterator[None]:
        """Say in one line that a tensor of another size does not go through; other errors are as they were."""
        try:
            yield
        except (RuntimeError, ModulewiseError) as error:
            wanted = self.card.input
            if tuple(h.shape[1:]) == wanted.shape or isinstance(error, StoreError):
                raise
            raise StoreError(
                f"{self.card.label} was given {Sample(tuple(h.shape[1:]), h.dtype)}, expected {wanted} "
                f"({reason(error)}); resize it, or put a stitch before the part"
            ) from error

    @contextmanager
    def _filled(self) -> Iterator[None]:
        """Let the skeleton hold this module's tensors for the block."""
        places = self.skeleton.holdings.places
        here = [(place, tensor) for name, tensor in self.named_tensors() for place in places[name]]
        before = [(place, place.get()) for place, _ in here]
        try:
            for place, tensor in here:
                place.put(tensor)
            yield
        finally:
            for place, shell in before:
                place.put(shell)

    def extra_repr(self) -> str:
        """The card in short."""
        return f"{self.card.label}, {self.card.input} -> {self.card.output}"


def check_tensors(skeleton: Skeleton, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Refuse tensors that are not those of the part.

    Raises:
        StoreError: one is missing, too many, or of another shape or type.
    """
    missing = next((name for name in skeleton.names if name not in tensors), None)
    unknown = next((name for name in tensors if name not in skeleton.names), None)
    if missing is not None or unknown is not None:
        said = f"no {missing!r}" if missing is not None else f"{unknown!r}, which is not in the part"
        raise StoreError(f"{where} has {said}: its model is built in another way now; rebuild it as it was when saved")
    for name in skeleton.names:
        shell, tensor = skeleton.shell(name), tensors[name]
        if tensor.shape != shell.shape or tensor.dtype != shell.dtype:
            raise StoreError(
                f"{where} has {name!r} as {tensor.dtype} {tuple(tensor.shape)}, its model gives {shell.dtype} "
                f"{tuple(shell.shape)}; give the spec that the model was built from"
            )


def _hang(root: nn.Module, name: str, tensor: Tensor, *, learned: bool) -> None:
    """Register a tensor below its dotted name, with plain modules on the way."""
    *path, attribute = name.split(".")
    for word in path:
        if word not in root._modules:
            root.add_module(word, nn.Module())
        root = root.get_submodule(word)
    if learned:
        root.register_parameter(attribute, nn.Parameter(tensor, requires_grad=False))
    else:
        root.register_buffer(attribute, tensor)


def _hanging(root: nn.Module, name: str) -> Tensor:
    path, _, attribute = name.rpartition(".")
    owner = root.get_submodule(path)
    tensor = owner._parameters.get(attribute, owner._buffers.get(attribute))
    assert tensor is not None
    return tensor
