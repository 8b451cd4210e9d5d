"""Tensors inside nested tuples, lists and mappings: what a model takes and returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_flatten, tree_map_only

from ..errors import DataError

__all__ = [
    "batch_size",
    "call_model",
    "is_fake",
    "map_tensors",
    "plain",
    "rebatch",
    "signature",
    "structure",
    "tensors",
    "where_model_is",
]


def tensors(tree: Any) -> list[Tensor]:
    """The tensors in a tree, in order; trees are made of mappings, sequences and dataclasses.

    >>> len(tensors({"a": torch.zeros(2), "b": (torch.ones(1), None)}))
    2
    """
    if isinstance(tree, Tensor):
        return [tree]
    found: list[Tensor] = []
    for leaf in tree_flatten(tree)[0]:
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):
            found += tensors(list(leaf.values()))
        elif isinstance(leaf, list | tuple | torch.Size) and leaf is not tree:
            found += tensors(list(leaf))
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors([getattr(leaf, part.name) for part in fields(leaf)])
    return found


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """The tree with every tensor replaced by function(tensor)."""
    return function(tree) if isinstance(tree, Tensor) else tree_map_only(Tensor, function, tree)


def plain(x: Any) -> Any:
    """A mapping of any kind as a dict, a list as a tuple; a tensor as it is."""
    if isinstance(x, Mapping):
        return dict(x)
    return tuple(x) if isinstance(x, list) else x


def where_model_is(model: nn.Module, x: Any) -> Any:
    """The input as it is; for a model on the meta device without its values, on that device as well."""
    first = next(model.parameters(), None)
    return map_tensors(lambda leaf: leaf.to("meta"), x) if first is not None and first.is_meta else x


def call_model(model: Callable[..., Any], x: Any) -> Any:
    """Call a model the way its input is shaped: a tensor, a tuple of arguments or a mapping of keywords."""
    if isinstance(x, Mapping):
        return model(**x)
    return model(*x) if isinstance(x, tuple | list) else model(x)


def batch_size(x: Any) -> int:
    """N: the length of axis 0 of the first tensor in x.

    Raises:
        DataError: x holds no tensor with a batch axis.
    """
    for leaf in tensors(x):
        if leaf.ndim:
            return int(leaf.shape[0])
    raise DataError(f"the input is {type(x).__name__}, expected a tensor, tuple or mapping with a batch axis")


def rebatch(x: Any, size: int) -> Any:
    """The first samples of x, repeated as needed, as a batch of another size; unbatched leaves stay.

    >>> rebatch(torch.tensor([5, 6]), 3)
    tensor([5, 6, 5])
    """
    n = batch_size(x)
    return map_tensors(
        lambda leaf: leaf[torch.arange(size, device=leaf.device) % n] if leaf.ndim and leaf.shape[0] == n else leaf,
        x,
    )


def signature(x: Any) -> tuple[Any, ...]:
    """What a recording depends on: the input's structure and shapes, but for the batch size.

    >>> signature(torch.zeros(2, 3)) == signature(torch.zeros(5, 3)), signature(torch.zeros(2, 4))[1]
    (True, (((None, 4), torch.float32),))
    """
    n = batch_size(x)
    leaves, spec = tree_flatten(plain(x))
    shapes = tuple(
        ((None, *leaf.shape[1:]) if leaf.ndim and leaf.shape[0] == n else tuple(leaf.shape), leaf.dtype)
        if isinstance(leaf, Tensor)
        else leaf
        for leaf in leaves
    )
    return (str(spec), shapes)


def structure(x: Any) -> tuple[Any, ...]:
    """What a signature says but for the sizes: which tensors x is made of.

    >>> structure(torch.zeros(2, 3)) == structure(torch.zeros(5, 4))
    True
    """
    leaves, spec = tree_flatten(plain(x))
    return (
        str(spec),
        tuple((leaf.ndim, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves),
    )


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor has a shape and no values, as where a step is measured without memory for it."""
    return isinstance(tensor, FakeTensor)
