"""Whether features are kept in memory, kept on disk or made again: from sizes and measured seconds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from ..partition import Partition
from .caching import DiskCache, FeatureSource, HostCache, Recompute

__all__ = ["Costs", "cache_bytes", "free_bytes", "planned", "seconds_of", "write_seconds"]


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What decides where features come from.

    Args:
        samples: number of samples.
        batches: batches a pass.
        epochs: passes a part.
        boundary_bytes: of one sample, for every boundary, K - 1 of them.
        part_bytes: of every part, K of them.
        forward_seconds: of one batch through the first part, in eval mode.
        read_seconds: of one byte from the disk.
        write_seconds: of one byte to it.
    """

    samples: int
    batches: int
    epochs: int
    boundary_bytes: Sequence[int]
    part_bytes: Sequence[int]
    forward_seconds: float
    read_seconds: float
    write_seconds: float

    def recompute(self, together: int) -> float:
        """Seconds to make all features again for every batch: part k runs K - 1 - k prefixes long, every pass."""
        parts = len(self.part_bytes)
        runs = sum(range(parts)) * self.epochs * self.batches
        groups = -(-self.batches // together)
        read = sum((parts - 1 - k) * size for k, size in enumerate(self.part_bytes)) * self.epochs * groups
        return runs * self.forward_seconds + read * self.read_seconds

    def disk(self) -> float:
        """Seconds to make every boundary once, write it once, and read it once for the next and once a pass."""
        once = (len(self.part_bytes) - 1) * self.batches * self.forward_seconds
        kept = self.samples * sum(self.boundary_bytes)
        return once + kept * (self.write_seconds + (self.epochs + 1) * self.read_seconds)


def cache_bytes(partition: Partition, samples: int) -> int:
    """The most bytes that a boundary and the one it is made from take, over all samples."""
    sizes = [0, *(boundary.features * boundary.dtype.itemsize for part in partition.parts if (boundary := part.output))]
    return samples * max(a + b for a, b in zip(sizes, [*sizes[1:], 0], strict=True))


def free_bytes(folder: Path) -> tuple[int, int]:
    """A quarter of the memory and of the disk that are free: the most that is planned for features."""
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return memory // 4, shutil.disk_usage(folder).free // 4


def planned(costs: Costs, needed: int, *, memory: int, disk: int) -> FeatureSource:
    """The fastest of what fits; host memory before all where it fits.

    Args:
        costs: sizes and seconds.
        needed: bytes for a boundary and the one before, of all samples.
        memory: most bytes of host memory.
        disk: most bytes on disk.

    >>> sizes = dict(samples=1000, batches=10, epochs=5, boundary_bytes=[4000] * 3, part_bytes=[10**6] * 4)
    >>> slow = Costs(**sizes, forward_seconds=1.0, read_seconds=1e-9, write_seconds=1e-9)
    >>> planned(slow, 8_000_000, memory=10**7, disk=10**7), planned(slow, 8_000_000, memory=0, disk=10**7)
    (HostCache(limit_bytes=10000000), DiskCache(limit_bytes=10000000))
    >>> quick = Costs(**sizes, forward_seconds=1e-6, read_seconds=1e-9, write_seconds=1e-6)
    >>> planned(quick, 8_000_000, memory=0, disk=10**7)
    Recompute(batches=8)
    """
    if needed <= memory:
        return HostCache(limit_bytes=memory)
    again = Recompute()
    if needed <= disk and costs.disk() < costs.recompute(again.batches):
        return DiskCache(limit_bytes=disk)
    return again


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time of a piece of work."""
    started = perf_counter()
    work()
    return perf_counter() - started


def write_seconds(folder: Path, size: int) -> float:
    """Measured seconds to write one byte to a folder's disk and wait for it."""
    path, data = folder / ".speed", bytes(size)

    def write() -> None:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    try:
        return seconds_of(write) / size
    finally:
        path.unlink(missing_ok=True)
