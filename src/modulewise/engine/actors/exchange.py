"""The buffers between actors, in a process of its own, so that they outlive the parts that write and read them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

from torch.utils._pytree import tree_leaves

from ...buffers import Buffer, Entry, Ledger
from .packing import Parcel, kept

__all__ = ["Exchange", "Report", "Shelf"]


@dataclass
class Report:
    """What went through one buffer in one pass."""

    ledger: Ledger
    stale: list[int] = field(default_factory=list)
    dropped: int = 0
    bytes: int = 0


@dataclass
class Shelf:
    """One buffer with what its entries stand for; what was handed out is kept until its reader has settled it.

    Args:
        buffer: what stands where.
        parcels: of the entries in the buffer, by version.
        handed: what was handed out since the reader's last checkpoint, by the number of the taking.
        taken: how many takings there have been.
        working: since when the reader is at work on what it took last; None while it waits here.
        blocked: whether the writer waits here.
        moved: when the writer was last let go.
    """

    buffer: Buffer
    report: Report
    parcels: dict[int, Parcel] = field(default_factory=dict)
    handed: dict[int, tuple[Entry, Parcel]] = field(default_factory=dict)
    taken: int = 0
    working: float | None = None
    blocked: int = 0
    moved: float = field(default_factory=monotonic)

    def put(self, entry: Entry, parcel: Parcel, ids: list[int], bytes_: int) -> None:
        """Take in an entry for which there is room; one that is known is left out."""
        if entry.version < self.buffer.written:
            return
        dropped = self.buffer.dropped
        self.buffer = self.buffer.put(entry)
        self.report.dropped += self.buffer.dropped - dropped
        self.report.bytes += bytes_
        self.report.ledger.enter(entry.epoch, ids)
        inside = {other.version for other in self.buffer.entries}
        self.parcels = {v: p for v, p in self.parcels.items() if v in inside}
        self.parcels[entry.version] = parcel

    def take(self, number: int) -> tuple[Entry, Parcel] | None:
        """The entry of a taking: the same one again where it has been handed out, else the next; None at the end."""
        if number < self.taken:
            return self.handed[number]
        if self.buffer.drained:
            return None
        stale = self.buffer
        self.buffer, entry = self.buffer.take()
        self.report.stale.append(stale.staleness(entry))
        self.report.ledger.use(entry)
        self.handed[number], self.taken = (entry, self.parcels[entry.version]), number + 1
        return self.handed[number]

    def settle(self, number: int) -> None:
        """The reader has what it took before this number in its checkpoint."""
        self.handed = {n: item for n, item in self.handed.items() if n >= number}


class Exchange:
    """The Ray actor: shelves by the index of the part that reads them; every call may wait, none holds others up."""

    def __init__(self, buffers: Mapping[int, Buffer]) -> None:
        self.shelves = {part: Shelf(buffer, Report(Ledger(reuse=buffer.reuse))) for part, buffer in buffers.items()}
        self.changed = {part: asyncio.Condition() for part in buffers}

    async def open(self, part: int) -> None:
        """Begin a pass."""
        shelf = self.shelves[part]
        shelf.buffer, shelf.parcels = shelf.buffer.opened(), {}
        shelf.report = Report(Ledger(reuse=shelf.buffer.reuse))
        shelf.working = shelf.moved = monotonic()

    async def put(self, part: int, entry: Entry, parcel: Parcel) -> None:
        """Hand an entry in; comes back when there is room for it."""
        shelf = self.shelves[part]
        shelf.buffer = shelf.buffer.offered(entry.version)
        async with self.changed[part]:
            shelf.blocked += 1
            await self.changed[part].wait_for(lambda: entry.version < shelf.buffer.written or shelf.buffer.room)
            shelf.blocked, shelf.moved = shelf.blocked - 1, monotonic()
            if entry.version >= shelf.buffer.written:
                here = kept(parcel)
                shelf.put(entry, here, here.ids.tensor().tolist(), _bytes(here))
            self.changed[part].notify_all()

    async def take(self, part: int, number: int) -> tuple[Entry, Parcel] | None:
        """The entry of a part's taking; comes back when there is one, or with None when the pass is over."""
        shelf = self.shelves[part]
        async with self.changed[part]:
            shelf.working = None
            await self.changed[part].wait_for(
                lambda: number < shelf.taken or shelf.buffer.ready or shelf.buffer.drained
            )
            taken = shelf.take(number)
            shelf.working = monotonic()
            self.changed[part].notify_all()
        return taken

    async def settle(self, part: int, number: int) -> None:
        """Let go of what a part took before this number."""
        self.shelves[part].settle(number)

    async def close(self, part: int) -> None:
        """The writer has ended its pass."""
        shelf = self.shelves[part]
        async with self.changed[part]:
            shelf.buffer = shelf.buffer.close()
            self.changed[part].notify_all()

    async def ages(self) -> dict[int, tuple[float | None, bool, float]]:
        """For every part: seconds at work (None: waiting), whether its writer waits, seconds since it did."""
        now = monotonic()
        return {
            part: (None if s.working is None else now - s.working, s.blocked > 0, now - s.moved)
            for part, s in self.shelves.items()
        }

    async def report(self, part: int) -> Report:
        """What went through a buffer in this pass."""
        return replace(self.shelves[part].report)


def _bytes(parcel: Parcel) -> int:
    """Bytes of all arrays of a parcel."""
    packets = [list(tensors.values()) for tensors, _, _ in parcel.packets.values()]
    items: list[Any] = tree_leaves([packets, parcel.x, parcel.y, parcel.ids])
    return sum(item.array.nbytes for item in items if hasattr(item, "array"))
