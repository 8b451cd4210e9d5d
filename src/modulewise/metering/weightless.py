"""Copies whose tensors have shapes and no memory, so that what would not fit can be run and measured."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

__all__ = ["shapes", "weightless"]

T = TypeVar("T")
_Mode: Any = TorchFunctionMode  # its constructor has no types


def weightless(tree: T, mode: FakeTensorMode) -> T:
    """A deep copy of anything with every tensor replaced by one of `mode`, without memory.

    Tensors of the meta device, which belong to no device that could be measured, become the CPU's.

    Args:
        tree: a trainer, a model, a batch, a tuple of them.
        mode: the copy runs under it.

    >>> mode = FakeTensorMode()
    >>> linear, x = weightless((torch.nn.Linear(4, 2, device="meta"), torch.zeros(3, 4)), mode)
    >>> with mode:
    ...     linear(x).shape, linear.weight.device.type
    (torch.Size([3, 2]), 'cpu')
    """

    def fake(tensor: Tensor) -> Tensor:
        if not tensor.is_meta:
            return mode.from_tensor(tensor, static_shapes=True)
        with mode:
            empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
        return empty.requires_grad_(tensor.requires_grad)

    with _Copying(fake):
        return copy.deepcopy(tree)


def shapes(tree: T) -> T:
    """A deep copy of anything with every tensor on the meta device, where tensors have shapes and no memory.

    >>> shapes(torch.nn.Linear(4, 2)).weight.is_meta
    True
    """

    def meta(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device="meta", requires_grad=tensor.requires_grad)

    with _Copying(meta):
        return copy.deepcopy(tree)


class _Copying(_Mode):
    """While it is on, `copy.deepcopy` of a tensor gives what a function makes of it."""

    def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._make = make

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = self._make(tensor)
            return memo[id(tensor)]
        if func is torch._C.TensorBase.clone:  # how a parameter is copied
            return func(self._make(args[0]), **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)
