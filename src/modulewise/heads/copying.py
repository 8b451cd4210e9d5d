"""A head made of fresh, small copies of later layers of the network (AugLocal)."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..errors import MethodError
from ..partition.boundary import Block, Boundary
from .classifying import linear
from .fitting import adapter
from .layers import at_least_one, finished, grid_axes

__all__ = ["downstream", "fitted", "fresh", "usable"]


def downstream(
    boundary: Boundary,
    outputs: int,
    *,
    blocks: Sequence[Block],
    depth: int = 2,
    dense: bool = False,
    shrink: int = 2,
    pool: int = 1,
) -> nn.Module:
    """Fresh copies of `depth` later blocks, sampled evenly, then pooling and a linear classifier.

    Of n usable blocks those at positions floor((i + 1) n / depth) - 1, i = 0 .. depth - 1, are copied, so
    the last one always is. A block is usable if it has parameters and a floating-point input, and is not
    the classifier (the last block, where it ends in `outputs` channels already).

    A copy on a grid runs at 1/shrink of the resolution that its original runs at, where it accepts that (it
    is tried once, on zeros); then it costs 1/shrink^2 of the original. Where shapes do not fit, an adapter
    pools first and maps channels afterwards, so that adapters are cheap too.

    Copies start afresh: `reset_parameters` of every submodule that has it, under torch's default CPU
    generator. Raw parameters of other modules are drawn from N(0, 0.02^2) if they have two axes or more
    (weights, position tables), and kept if they are scales or shifts along one axis (layer scale,
    hand-written norms), where a value is part of the architecture. All parameters of a copy are trainable,
    and it is in training mode.

    Args:
        boundary: where the head sits.
        outputs: logits per sample or position, >= 1.
        blocks: the later blocks of the network, in order of call; without a usable one the head is `linear`.
        depth: how many to copy, >= 1; all of them where there are fewer.
        dense: logits per position, at the resolution of the last copy.
        shrink: factor by which copies reduce the resolution, >= 1.
        pool: size per spatial axis that the last copy's output is averaged to.

    Returns:
        h -> (N, outputs), or one row per position.

    Raises:
        MethodError: a size is below 1, a block cannot be copied or run by itself, or a dense head ends
            without positions.

    References:
        Ma, Wu, Si and Tan, Scaling Supervised Local Learning with Augmented Auxiliary Networks, ICLR 2024,
        https://arxiv.org/abs/2402.17318

    Departs from the paper: its heads are typed by hand for ResNet and VGG; these are made from any network.

    >>> block = Block("body", nn.Linear(8, 8), Boundary("stem", (2, 8)), Boundary("body", (2, 8)))
    >>> head = downstream(Boundary("stem", (2, 16)), 10, blocks=[block], depth=1)
    >>> head(torch.zeros(5, 16)).shape
    torch.Size([5, 10])
    """
    at_least_one(outputs=outputs, depth=depth, shrink=shrink, pool=pool)
    here, layers = boundary, []
    for block in _evenly(usable(blocks, outputs), depth):
        module = fresh(block)
        needed, after = fitted(module, block, here, shrink)
        layers += [finished(needed, adapter(here, needed)), module]
        here = after
    if not layers:
        return linear(boundary, outputs, dense=dense, pool=2)
    return nn.Sequential(*layers, linear(here, outputs, dense=dense, pool=pool))


def usable(blocks: Sequence[Block], outputs: int) -> list[Block]:
    """The blocks with parameters and a floating-point input, less the network's own classifier at the end."""
    kept = [b for b in blocks if b.input.dtype.is_floating_point and next(b.module.parameters(), None) is not None]
    return kept[:-1] if kept and kept[-1].output.channels == outputs else kept


def _evenly(blocks: Sequence[Block], depth: int) -> list[Block]:
    count = min(depth, len(blocks))
    return [blocks[(i + 1) * len(blocks) // count - 1] for i in range(count)]


def fresh(block: Block) -> nn.Module:
    """A deep copy with parameters of its own, drawn on the CPU so that they do not depend on the device."""
    try:
        module = copy.deepcopy(block.module)
        module = module if any(parameter.is_meta for parameter in module.parameters()) else module.cpu()
    except (RuntimeError, TypeError) as error:
        raise MethodError(
            f"block {block.name!r} was given to copy and cannot be ({error}); choose another head"
        ) from error
    for submodule in reversed(list(module.modules())):  # children first: a parent's own reset has the last word
        _reset(submodule)
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    return module.train()


def _reset(module: nn.Module) -> None:
    for name in ("reset_parameters", "_reset_parameters"):  # nn.MultiheadAttention has the second
        method = getattr(module, name, None)
        if callable(method) and not inspect.signature(method).parameters:
            method()
            return
    for parameter in module.parameters(recurse=False):
        if parameter.is_floating_point() and sum(size > 1 for size in parameter.shape) > 1:
            nn.init.normal_(parameter, std=0.02)


def fitted(module: nn.Module, block: Block, here: Boundary, shrink: int) -> tuple[Boundary, Boundary]:
    """What a copy is to be fed, and what it gives: at reduced resolution if it can."""
    full = block.input.spatial
    tries = [full]
    if grid_axes(block.input):
        reduced = tuple(max(min(size, 2), size // shrink) for size in full)
        if len(here.spatial) == len(full):  # nothing is gained by enlarging what an earlier copy has reduced
            reduced = tuple(map(min, reduced, here.spatial))
        tries.insert(0, reduced)
    problem = ""
    for sizes in tries:
        needed = _resized(block.input, sizes)
        try:
            return needed, _tried(module, block, needed)
        except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
            problem = str(error).split("\n")[0]
    raise MethodError(
        f"block {block.name!r} was given to copy and does not run by itself on {block.input.shape} "
        f"({problem}); choose another head"
    )


def _resized(boundary: Boundary, sizes: tuple[int, ...]) -> Boundary:
    """The boundary at other spatial sizes and a batch of two."""
    middle = (boundary.channels, *sizes) if boundary.channel_axis == 1 else (*sizes, boundary.channels)
    return replace(boundary, shape=(2, *middle))


def _tried(module: nn.Module, block: Block, needed: Boundary) -> Boundary:
    """The boundary above a copy, from one run in evaluation mode (no buffer moves, no dropout)."""
    module.eval()
    try:
        with torch.no_grad():
            device = next((parameter.device for parameter in module.parameters()), None)
            h = module(torch.zeros(needed.shape, dtype=needed.dtype, device=device))
    finally:
        module.train()
    if not isinstance(h, Tensor) or h.dim() != len(block.output.shape):
        raise ValueError("it did not give one tensor of the recorded layout")
    after = replace(block.output, shape=tuple(h.shape), dtype=h.dtype)
    if after.channels != block.output.channels:
        raise ValueError(f"it gave {after.channels} channels instead of {block.output.channels}")
    return after
