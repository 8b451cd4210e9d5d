"""The books of a memory meter: which storages live, what they are for, and who was alive at the peak.

A storage's category is often known only after it was made (a gradient is an ordinary temporary until autograd
stores it in `.grad`). So the books keep, for every storage, a category that may still change, and add the
categories up only when the report is read. They need no copy of the list of living storages at every new
peak: a storage was alive at the peak exactly if it was born before it and is alive still, or died after it.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

__all__ = ["Category", "Ledger", "MemoryReport"]


class Category(StrEnum):
    """What a storage is for."""

    PARAMETERS = "parameters"
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer"
    HEADS = "heads"
    ACTIVATIONS = "activations"
    INPUTS = "inputs"


@dataclass(frozen=True)
class MemoryReport:
    """What a meter saw.

    Args:
        peak_bytes: the most bytes of storage alive at once; `storage.nbytes()` exactly, without the
            rounding, the caching and the alignment of an allocator.
        at_peak: the same bytes by category, at the first moment the peak was reached; sums to `peak_bytes`.
        end_bytes: bytes alive when the report was made.
        allocated_bytes: peak of `torch.cuda.max_memory_allocated` (only `measure_step` on CUDA; else None):
            rounded blocks, workspaces of kernels, and everything else that is on the device.
        reserved_bytes: peak of `torch.cuda.max_memory_reserved` (likewise): what the process took from the
            device.
    """

    peak_bytes: int
    at_peak: Mapping[Category, int]
    end_bytes: int
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None


@dataclass(slots=True)
class _Tag:
    """A category that can be corrected until someone who knows has claimed it."""

    category: Category
    claimed: bool


@dataclass(slots=True)
class _Record:
    """One storage at one size."""

    nbytes: int
    born: int
    tag: _Tag


class _StorageRef(weakref.ref):
    """A weak reference to a storage that carries its record."""

    __slots__ = ("key", "record")
    key: int
    record: _Record


class Ledger:
    """Bytes of the living storages, their peak, and the categories of those alive at the peak.

    Deaths are only noted when they happen (in any thread, or within garbage collection) and booked before
    the next birth. As the peak can only rise with a birth, this gives the same figures as booking them at
    once.

    Args:
        device: count only storages on this device; None counts all. Tensors on the meta device own no
            memory and never count.
    """

    def __init__(self, *, device: torch.device | None) -> None:
        self._device = device
        self._alive: dict[int, _StorageRef] = {}
        self._dead: deque[_StorageRef] = deque()
        self._died_since_peak: list[_Record] = []
        self._clock = self._live = self._peak = self._peak_clock = 0

    def see(self, tensor: Tensor, category: Category, *, claim: bool = False) -> None:
        """Count the storages of a tensor, if they are new or have a new size.

        Args:
            tensor: any tensor; views of counted storages change nothing.
            category: what a new storage is for.
            claim: the category is certain: it also corrects a storage counted before, unless that was
                certain too.
        """
        kind = type(tensor)
        if kind is Tensor or kind is torch.nn.Parameter or not hasattr(tensor, "__tensor_flatten__"):
            try:
                storage = tensor.untyped_storage()
            except (NotImplementedError, RuntimeError):  # a layout that owns tensors, or an opaque one
                self.see_all(_components(tensor), category, claim=claim)
                return
            self._see_storage(storage, tensor, category, claim)
        else:  # a wrapper's own storage is a phantom: its inner tensors own the bytes
            self.see_all([getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]], category, claim=claim)

    def see_all(self, values: Iterable[object], category: Category, *, claim: bool = False) -> None:
        """Count every tensor in nested sequences and mappings."""
        for value in values:
            if isinstance(value, Tensor):
                self.see(value, category, claim=claim)
            elif isinstance(value, list | tuple):
                self.see_all(value, category, claim=claim)
            elif isinstance(value, Mapping):
                self.see_all(value.values(), category, claim=claim)

    def _see_storage(self, storage: torch.UntypedStorage, tensor: Tensor, category: Category, claim: bool) -> None:
        if self._dead:
            self._book_deaths()
        key, nbytes = storage._cdata, storage.nbytes()
        reference = self._alive.get(key)
        if reference is None:
            if self._counts(tensor.device):  # also of no bytes: it may grow
                record = _Record(0, 0, _Tag(category, claim))
                reference = self._alive[key] = _StorageRef(storage, self._dead.append)
                reference.key, reference.record = key, record
                self._set_size(record, nbytes)
            return
        if nbytes != reference.record.nbytes:
            self.resize(storage)
        if claim and not reference.record.tag.claimed:
            reference.record.tag.category, reference.record.tag.claimed = category, True

    def resize(self, storage: torch.UntypedStorage) -> None:
        """Take note of a storage's present size, if it is counted."""
        self._book_deaths()
        reference = self._alive.get(storage._cdata)
        if reference is not None and storage.nbytes() != reference.record.nbytes:
            self._retire(reference.record)
            self._set_size(reference.record, storage.nbytes())

    def report(self) -> MemoryReport:
        """The figures so far."""
        self._book_deaths()
        at_peak = dict.fromkeys(Category, 0)
        records = [reference.record for reference in self._alive.values()]
        for record in (*records, *self._died_since_peak):
            if record.born <= self._peak_clock:
                at_peak[record.tag.category] += record.nbytes
        return MemoryReport(peak_bytes=self._peak, at_peak=at_peak, end_bytes=self._live)

    def lap(self) -> MemoryReport:
        """The figures so far; the peak is looked for anew from here on, beginning with what is alive."""
        report = self.report()
        self._died_since_peak.clear()
        self._peak, self._peak_clock = self._live, self._clock
        return report

    def _counts(self, device: torch.device) -> bool:
        if device.type == "meta":
            return False
        wanted = self._device
        return wanted is None or (wanted.type == device.type and wanted.index in (None, device.index))

    def _set_size(self, record: _Record, nbytes: int) -> None:
        self._live += nbytes - record.nbytes
        self._clock += 1
        record.nbytes, record.born = nbytes, self._clock
        if self._live > self._peak:
            self._peak, self._peak_clock = self._live, self._clock
            self._died_since_peak.clear()

    def _retire(self, record: _Record) -> None:
        if record.born <= self._peak_clock:  # later ones were not there at the peak
            self._died_since_peak.append(_Record(record.nbytes, record.born, record.tag))

    def _book_deaths(self) -> None:
        while self._dead:
            reference = self._dead.popleft()
            del self._alive[reference.key]
            self._live -= reference.record.nbytes
            self._retire(reference.record)


def _components(tensor: Tensor) -> tuple[Tensor, ...]:
    """The tensors that hold the memory of a sparse tensor; none where the layout is opaque."""
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return ()
