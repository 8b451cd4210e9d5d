"""A partition made of stored parts and new ones, with a stitch where their shapes differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ...errors import StoreError
from ...partition import Partition
from ...partition.verification import undisturbed
from ...seeding import preserved_generators, seed_of, set_generators
from .card import Sample
from .rebuilding import StoredPart
from .shelves import reason

__all__ = ["Stitch", "compose"]


@dataclass(frozen=True, kw_only=True)
class Stitch:
    """A linear map that lets a part read what another gives; learned with the part above it.

    Images (C, H, W) go through a 1x1 convolution, after averaging (or repeating) to the other height and width where
    they differ; features (D,) and tokens (T, D) through a linear layer; images to features are flattened first.

    Args:
        to: sizes of one sample above, without the batch axis; None for what the part above was trained on.
        seed: of the initial weights.

    References:
        K. Lenc, A. Vedaldi, Understanding image representations by measuring their equivariance and equivalence, CVPR
        2015, https://arxiv.org/abs/1411.5908

    Departs from the paper: no batch normalisation around the map, and its initial weights are torch's, not a
    permutation found beforehand.

    >>> Stitch(to=(8, 2, 2)).made((4, 4, 4), (8, 2, 2))(torch.zeros(3, 4, 4, 4)).shape
    torch.Size([3, 8, 2, 2])
    """

    to: tuple[int, ...] | None = None
    seed: int = 0

    def made(self, given: tuple[int, ...], wanted: tuple[int, ...]) -> nn.Sequential:
        """The layers from one shape to another.

        Args:
            given: sizes of one sample below.
            wanted: sizes of one sample above.

        Raises:
            StoreError: no 1x1 convolution and no linear layer leads from one to the other.
        """
        with preserved_generators():
            set_generators(seed_of(self.seed, "stitch"))
            if len(given) == len(wanted) == 3:
                sized = [] if given[1:] == wanted[1:] else [nn.AdaptiveAvgPool2d((wanted[1], wanted[2]))]
                return nn.Sequential(*sized, nn.Conv2d(given[0], wanted[0], 1))
            if len(given) == len(wanted) in (1, 2) and given[:-1] == wanted[:-1]:
                return nn.Sequential(nn.Linear(given[-1], wanted[-1]))
            if len(wanted) == 1:
                return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(given).numel(), wanted[0]))
        raise StoreError(f"no stitch leads from one sample {given} to {wanted}; put a module of your own between them")


def compose(*parts: nn.Module | Stitch, example: Tensor | None = None) -> Partition:
    """One network of stored parts and new ones, cut between them, to train further.

    What every part gives is found on tensors without values before anything runs. A loaded part stays frozen: it has
    no parameter to train, runs in eval mode whatever the trainer says, and the sequential schedule passes it over.

    Args:
        parts: from the input up: loaded parts and modules, with a `Stitch` before a part that needs one.
        example: an input (N, ...); noise of the shape on the first part's card where left out.

    Returns:
        A partition of `nn.Sequential(part 0, part 1, ...)`, one part each; a stitch belongs to the part above it.

    Raises:
        StoreError: a part does not take what the one below gives; the message offers the stitch that fits.
        PartitionError: the parts cannot be cut apart.

    >>> partition = compose(nn.Linear(4, 8), nn.Linear(8, 3), example=torch.zeros(2, 4))
    >>> len(partition), partition.cuts
    (2, ('0',))
    """
    x = _example(parts, example)
    stages: list[nn.Module] = []
    stitch: Stitch | None = None
    given = Sample(tuple(x.shape[1:]), x.dtype)
    for item in parts:
        if isinstance(item, Stitch):
            if stitch is not None:
                raise StoreError("two stitches follow one another, expected a part after each; leave one out")
            stitch = item
            continue
        if not isinstance(item, nn.Module):
            raise StoreError(f"{type(item).__name__} was given, expected loaded parts, modules and stitches")
        if any(item is module for stage in stages for module in stage.modules()):
            raise StoreError(f"part {len(stages)} is there twice, expected every part once; load it again for a copy")
        stage = item if stitch is None else _stitched(stitch, item, given)
        given = _passed(stage, item, given, index=len(stages))
        stages.append(stage)
        stitch = None
    if stitch is not None or not stages:
        raise StoreError("the last thing given is a stitch or there is nothing, expected a part; a stitch comes before")
    return Partition(nn.Sequential(*stages), cuts=[str(index) for index in range(len(stages) - 1)], example=x)


def _example(parts: tuple[nn.Module | Stitch, ...], example: Tensor | None) -> Tensor:
    if example is not None:
        return example
    first = parts[0] if parts else None
    if not isinstance(first, StoredPart):
        raise StoreError("the first part has no card to tell its input; give example=, a tensor (N, ...)")
    wanted = first.card.input
    near = next((tensor for _, tensor in first.named_tensors()), torch.empty(0))
    noise = torch.randn((2, *wanted.shape), generator=torch.Generator().manual_seed(0))
    return noise.to(near.device, wanted.dtype)


def _stitched(stitch: Stitch, part: nn.Module, given: Sample) -> nn.Module:
    wanted = stitch.to or _wanted(part, given)
    if wanted is None:
        raise StoreError(f"what {type(part).__name__} takes cannot be seen from outside; give Stitch(to=...)")
    near = next(part.parameters(), torch.empty(0))
    return nn.Sequential(stitch.made(given.shape, wanted).to(near.device), part)


def _passed(stage: nn.Module, part: nn.Module, given: Sample, *, index: int) -> Sample:
    """What a stage gives for what it is given, found without values."""
    near = next(stage.parameters(), torch.empty(0))
    try:
        with undisturbed(stage, training=False), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            out = stage(torch.empty((2, *given.shape), dtype=given.dtype, device=near.device))
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        wanted = _wanted(part, given)
        offer = f"mw.workflow.Stitch(to={wanted})" if wanted else "mw.workflow.Stitch(to=...)"
        raise StoreError(
            f"part {index} ({_name(part)}) does not take {given}, which {_below(index)} gives ({reason(error)}); "
            f"put {offer} before it"
        ) from error
    if not isinstance(out, Tensor) or out.ndim < 2:
        raise StoreError(f"part {index} ({_name(part)}) gives {type(out).__name__}, expected one tensor (N, ...)")
    return Sample(tuple(out.shape[1:]), out.dtype)


def _below(index: int) -> str:
    return f"part {index - 1}" if index else "the example"


def _name(part: nn.Module) -> str:
    return part.card.label if isinstance(part, StoredPart) else type(part).__name__


_WIDTHS: dict[type[nn.Module], Callable[[nn.Module], int]] = {
    nn.Linear: lambda module: int(module.in_features),  # type: ignore[arg-type]
    nn.Conv2d: lambda module: int(module.in_channels),  # type: ignore[arg-type]
    nn.BatchNorm1d: lambda module: int(module.num_features),  # type: ignore[arg-type]
    nn.BatchNorm2d: lambda module: int(module.num_features),  # type: ignore[arg-type]
}


def _wanted(part: nn.Module, given: Sample) -> tuple[int, ...] | None:
    """The sizes that a part takes: those of its card, or the width of its first layer in the shape that is given."""
    if isinstance(part, StoredPart):
        return part.card.input.shape
    first = next((module for module in part.modules() if type(module) in _WIDTHS), None)
    if first is None:
        return None
    width = _WIDTHS[type(first)](first)
    if isinstance(first, nn.Conv2d | nn.BatchNorm2d):
        return (width, *given.shape[1:]) if len(given.shape) == 3 else None
    flattens = any(isinstance(module, nn.Flatten) for module in part.modules())
    if flattens and len(given.shape) == 3:
        area = given.shape[1] * given.shape[2]
        return (width // area, *given.shape[1:]) if width % area == 0 else None
    return (*given.shape[:-1], width) if len(given.shape) < 3 else (width,)
