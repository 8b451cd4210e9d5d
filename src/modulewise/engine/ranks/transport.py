"""Packets between two ranks: sent without waiting, and received ahead of need by a thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from enum import IntEnum
from queue import Queue
from time import monotonic, sleep
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...errors import RankError
from .packets import bytes_of, empty_of, pack, unpack

__all__ = ["Inbox", "Kind", "Lane", "Outbox", "Packet", "Wire"]


class Kind(IntEnum):
    """What a packet is."""

    BATCH = 0
    MAIL = 1
    END = 2
    STOP = 3


class Lane(IntEnum):
    """Packets of one lane between two ranks stay in order; each lane is a tag of its own."""

    FEED = 1
    UP = 2
    BESIDE = 3
    DOWN = 4


@dataclass(frozen=True)
class Packet:
    """What arrived.

    Args:
        kind: what it is.
        step: index of the training step it belongs to.
        tree: what it holds; for `STOP` the reason.
        ready: waits until tensors of an accelerator are there.
    """

    kind: Kind
    step: int
    tree: Any
    ready: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Wire:
    """One lane between this rank and another.

    Args:
        group: the process group of packets.
        direct: the group that carries an accelerator's tensors without the host in between; None for by the host.
        device: this rank's.
        peer: the other rank, in the whole group.
        lane: which lane.
        here: this rank, in words.
        there: the other, in words.
    """

    group: Any
    direct: Any
    device: torch.device
    peer: int
    lane: Lane
    here: str
    there: str

    def failed(self, doing: str, seconds: float, error: BaseException) -> RankError:
        """The error of a wire that broke or stood still, with both ends named."""
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        late = "time" in reason.lower() and "out" in reason.lower()
        what = "hangs, is too slow" if late else "has stopped"
        return RankError(
            f"{self.here} {doing} {self.there} for {seconds:.1f} s in vain: that rank {what} or is cut off ({reason}); "
            "read its own error, or give Ranks a longer timeout"
        )

    def moves(self, tensor: Tensor) -> tuple[Any, Tensor]:
        """The group that carries a tensor, and the tensor where that group reads it."""
        if tensor.device.type == "cpu":
            return self.group, tensor
        return (self.direct, tensor) if self.direct is not None else (self.group, tensor.cpu())


class Outbox:
    """The sending end.

    Args:
        wire: the lane.

    Attributes:
        depth: packets on their way before `send` waits for the oldest, >= 1.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire, self.depth = wire, 2
        self._under_way: deque[list[tuple[Any, Tensor]]] = deque()
        self._line = ""

    def send(self, kind: Kind, step: int, tree: Any) -> None:
        """Send a packet; waits only where `depth` packets are under way.

        Raises:
            RankError: the other rank has stopped or takes nothing.
        """
        while len(self._under_way) >= self.depth:
            self._settle()
        line, payload = pack(tree)
        encoded = line.encode()
        # The layout of a packet travels only where it differs from the last one's.
        same, self._line = line == self._line, line
        header = torch.tensor([int(kind), step, 0 if same else len(encoded)], dtype=torch.int64)
        sent = [header] if same else [header, torch.frombuffer(bytearray(encoded), dtype=torch.uint8)]
        sent += [tensor for tensor in payload if tensor.numel()]
        try:
            self._under_way.append([self._send(tensor) for tensor in sent])
        except RuntimeError as error:
            raise self.wire.failed("tried to send to", 0.0, error) from error

    def _send(self, tensor: Tensor) -> tuple[Any, Tensor]:
        group, held = self.wire.moves(tensor)
        held = bytes_of(held)
        return dist.isend(held, self.wire.peer, group=group, tag=self.wire.lane), held

    def _settle(self) -> None:
        start = monotonic()
        try:
            for work, _ in self._under_way[0]:
                work.wait()
        except RuntimeError as error:
            raise self.wire.failed("has been sending to", monotonic() - start, error) from error
        self._under_way.popleft()

    def flush(self) -> None:
        """Wait until everything has arrived."""
        while self._under_way:
            self._settle()

    def stop(self, reason: str, *, patience: float = 1.0) -> None:
        """Tell the other end why nothing more comes; never fails, and waits a moment at most."""
        try:
            self._line = ""
            self.depth = len(self._under_way) + 1
            self.send(Kind.STOP, 0, reason)
            until = monotonic() + patience
            while monotonic() < until and not all(work.is_completed() for work, _ in self._under_way[-1]):
                sleep(0.01)
        except (RuntimeError, RankError):
            pass


class Inbox:
    """The receiving end.

    Args:
        wire: the lane.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._line = ""
        self._ahead: Queue[Packet | RankError] = Queue()
        self._thread: threading.Thread | None = None
        self._stream = torch.cuda.Stream(wire.device) if wire.device.type == "cuda" else None

    @property
    def fetching(self) -> bool:
        """Whether a thread is waiting for packets."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, *, depth: int) -> None:
        """Fetch up to `depth` packets ahead of need until the end of the pass."""
        self._join()
        self._ahead = Queue(maxsize=depth)
        self._thread = threading.Thread(target=self._fetch, name=f"from {self.wire.there}", daemon=True)
        self._thread.start()

    def next(self) -> Packet:
        """The next packet.

        Raises:
            RankError: none came in time, the other rank has stopped, or it said why it stops.
        """
        found = self._ahead.get() if self._thread is not None else self._receive()
        if isinstance(found, RankError):
            raise found
        if found.kind is Kind.STOP:
            raise RankError(str(found.tree))
        if found.kind is Kind.END:
            self._join()
        found.ready()
        return found

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join(timeout=1.0)
            self._thread = None

    def _fetch(self) -> None:
        while True:
            try:
                packet = self._receive()
            except RankError as error:
                self._ahead.put(error)
                return
            self._ahead.put(packet)
            if packet.kind in (Kind.END, Kind.STOP):
                return

    def _receive(self) -> Packet:
        start = monotonic()
        try:
            with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
                return self._packet()
        except RuntimeError as error:
            raise self.wire.failed("has been waiting for", monotonic() - start, error) from error

    def _packet(self) -> Packet:
        header = torch.zeros(3, dtype=torch.int64)
        self._into(header)
        kind, step, length = header.tolist()
        if length:
            encoded = torch.empty(length, dtype=torch.uint8)
            self._into(encoded)
            self._line = bytes(encoded.tolist()).decode()
        payload = [self._tensor(tensor) for tensor in empty_of(self._line, self.wire.device)]
        tree = unpack(self._line, payload)
        if self._stream is None:
            return Packet(Kind(kind), step, tree)
        event = torch.cuda.Event()
        event.record(self._stream)

        def ready() -> None:
            current = torch.cuda.current_stream(self.wire.device)
            current.wait_event(event)
            for tensor in payload:
                if tensor.device.type == "cuda":
                    tensor.record_stream(current)

        return Packet(Kind(kind), step, tree, ready)

    def _tensor(self, place: Tensor) -> Tensor:
        if place.numel() == 0:
            return place
        if place.device.type == "cpu":
            self._into(place)
            return place
        if self.wire.direct is not None:
            dist.recv(bytes_of(place), self.wire.peer, group=self.wire.direct, tag=self.wire.lane)
            return place
        host = torch.empty(place.shape, dtype=place.dtype)
        self._into(host)
        return place.copy_(host)

    def _into(self, tensor: Tensor) -> None:
        dist.recv(bytes_of(tensor), self.wire.peer, group=self.wire.group, tag=self.wire.lane)
