"""Batches as flat arrays, which the object store keeps and hands out as they are: nothing is pickled by element."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ...partition.tree import map_tensors
from ...wires import Packet
from ..alone import Cargo

__all__ = ["Flat", "Parcel", "flat", "kept", "opened", "packed"]


@dataclass(frozen=True, eq=False)
class Flat:
    """A tensor as bytes.

    Args:
        array: (bytes,) uint8; those of one number where all are the same one by its strides.
        shape: of the tensor.
        dtype: of the tensor.
    """

    array: np.ndarray
    shape: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self) -> Tensor:
        """The tensor, on the memory of the array, which may be read alone."""
        with warnings.catch_warnings():
            # torch warns that writing is not safe; parts that write to what they read are given copies.
            warnings.filterwarnings("ignore", message=".*not writable.*")
            whole = torch.from_numpy(self.array).view(self.dtype)
        return whole.view(self.shape) if whole.numel() == _count(self.shape) else whole.view(()).expand(self.shape)


@dataclass(frozen=True, eq=False)
class Parcel:
    """A `Cargo` with a `Flat` in place of every tensor."""

    packets: Mapping[int, tuple[Mapping[str, Flat], tuple[int, ...], torch.dtype]]
    x: Any
    y: Any
    ids: Flat
    views: int


def _count(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def flat(tensor: Tensor) -> Flat:
    """A tensor's bytes, on the host.

    >>> flat(torch.tensor([1.0, 2.0])).tensor(), flat(torch.zeros(()).expand(5)).array.nbytes
    (tensor([1., 2.]), 4)
    """
    tensor = tensor.detach().cpu()
    hollow = tensor.numel() > 1 and not any(tensor.stride())
    source = tensor.as_strided((1,), (1,)) if hollow else tensor.contiguous().view(-1)
    return Flat(source.view(torch.uint8).numpy(), tuple(tensor.shape), tensor.dtype)


def packed(cargo: Cargo) -> Parcel:
    """A batch as it goes into the object store."""
    packets = {
        index: ({name: flat(tensor) for name, tensor in packet.tensors.items()}, packet.shape, packet.dtype)
        for index, packet in cargo.packets.items()
    }
    return Parcel(packets, map_tensors(flat, cargo.x), map_tensors(flat, cargo.y), flat(cargo.ids), cargo.views)


def opened(parcel: Parcel, device: torch.device) -> Cargo:
    """The batch of a parcel; boundaries lie where the object store has them, the rest is copied."""
    packets = {
        index: Packet({name: item.tensor().to(device) for name, item in tensors.items()}, shape, dtype)
        for index, (tensors, shape, dtype) in parcel.packets.items()
    }

    def copied(item: Flat) -> Tensor:
        tensor = item.tensor()
        hollow = tensor.numel() > 1 and not any(tensor.stride())
        return tensor.to(device) if hollow else tensor.to(device, copy=True)

    x, y = (tree_map_only(Flat, copied, tree) for tree in (parcel.x, parcel.y))
    return Cargo(packets, x, y, copied(parcel.ids), parcel.views)


def kept(parcel: Parcel) -> Parcel:
    """A parcel in memory of this process, so that the object store may forget it."""

    def copied(item: Flat) -> Flat:
        return replace(item, array=item.array.copy())

    packets = {
        index: ({name: copied(item) for name, item in tensors.items()}, shape, dtype)
        for index, (tensors, shape, dtype) in parcel.packets.items()
    }
    x, y = (tree_map_only(Flat, copied, tree) for tree in (parcel.x, parcel.y))
    return Parcel(packets, x, y, copied(parcel.ids), parcel.views)
