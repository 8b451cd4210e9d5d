"""What travels as one packet: a tree of tensors as a line of JSON and the tensors' own bytes."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten, treespec_dumps, treespec_loads

from ...errors import RankError

__all__ = ["blank", "bytes_of", "empty_of", "finite", "pack", "unpack"]


def blank(leaf: Tensor) -> Tensor:
    """A tensor of the same shape without values, which travels as one number.

    >>> blank(torch.ones(2, 3)).stride()
    (0, 0)
    """
    return leaf.new_zeros(()).expand(leaf.shape)


def _flat(leaf: Tensor) -> bool:
    return leaf.numel() > 1 and all(step == 0 for step, n in zip(leaf.stride(), leaf.shape, strict=True) if n > 1)


def _about(leaf: Any) -> Any:
    """What a receiver must know to hold a leaf."""
    if not isinstance(leaf, Tensor):
        if isinstance(leaf, bool | int | float | str) or leaf is None:
            return {"is": leaf}
        raise RankError(
            f"a message holds a {type(leaf).__name__}, expected tensors, numbers and words in tuples, lists and "
            "mappings; such a method cannot have its parts on several ranks"
        )
    steps = [leaf.stride(axis) for axis in range(leaf.dim())]
    order = sorted(range(leaf.dim()), key=lambda axis: (-steps[axis], axis))
    dense = leaf.permute(order).is_contiguous()
    return {
        "shape": list(leaf.shape),
        "dtype": str(leaf.dtype).removeprefix("torch."),
        "device": leaf.device.type,
        "order": order if dense and order != sorted(order) else None,
        "flat": _flat(leaf),
    }


def _carried(leaf: Tensor, about: Any) -> Tensor:
    """The numbers of a leaf in the order that its memory has."""
    if about["flat"]:
        return leaf.as_strided((1,), (1,))
    return (leaf if about["order"] is None else leaf.permute(about["order"])).contiguous()


def pack(tree: Any) -> tuple[str, list[Tensor]]:
    """A tree as one line of JSON, and its tensors in the order of their memory.

    Raises:
        RankError: a leaf is neither a tensor nor plain data, or the tree is made of other things than those.
    """
    leaves, spec = tree_flatten(tree)
    about = [_about(leaf) for leaf in leaves]
    try:
        line = json.dumps([treespec_dumps(spec), about])
    except (TypeError, NotImplementedError) as error:
        raise RankError(
            f"a message is made of {type(tree).__name__} of another kind ({error}), expected tuples, lists and mappings"
        ) from error
    return line, [_carried(leaf, of) for leaf, of in zip(leaves, about, strict=True) if isinstance(leaf, Tensor)]


def empty_of(line: str, device: torch.device) -> list[Tensor]:
    """Memory for the tensors of a packet, those of an accelerator on this rank's own."""
    found = []
    for of in json.loads(line)[1]:
        if "is" not in of:
            shape = [of["shape"][axis] for axis in of["order"]] if of["order"] is not None else of["shape"]
            place = "cpu" if of["device"] == "cpu" else device
            found.append(torch.empty([1] if of["flat"] else shape, dtype=getattr(torch, of["dtype"]), device=place))
    return found


def unpack(line: str, payload: list[Tensor]) -> Any:
    """The tree of a packet, each tensor with the strides it had.

    >>> h = torch.arange(24.0).view(2, 3, 2, 2).to(memory_format=torch.channels_last)
    >>> out = unpack(*pack({"h": h, "n": 3}))
    >>> torch.equal(out["h"], h), out["h"].stride() == h.stride(), out["n"]
    (True, True, 3)
    """
    spec, about = json.loads(line)
    left = iter(payload)
    leaves = []
    for of in about:
        if "is" in of:
            leaves.append(of["is"])
            continue
        tensor = next(left)
        if of["flat"]:
            tensor = tensor.reshape(()).expand(of["shape"])
        elif of["order"] is not None:
            tensor = tensor.permute([of["order"].index(axis) for axis in range(len(of["order"]))])
        leaves.append(tensor)
    return tree_unflatten(leaves, treespec_loads(spec))


def bytes_of(tensor: Tensor) -> Tensor:
    """A contiguous tensor's own memory as bytes, so that every type travels alike."""
    assert math.prod(tensor.shape) > 0, "an empty tensor does not travel"
    return tensor.detach().reshape(-1).view(torch.uint8)


def finite(h: Tensor) -> bool:
    """Whether all of a tensor is finite; its sum says so in one pass without a copy, but for sums that overflow.

    >>> finite(torch.tensor([1.0, float("inf")])), finite(torch.full((2,), 3e38))
    (False, True)
    """
    if not h.is_floating_point() or bool(h.sum(dtype=torch.promote_types(h.dtype, torch.float32)).isfinite()):
        return True
    return bool(h.isfinite().all())
