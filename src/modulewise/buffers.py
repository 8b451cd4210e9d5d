"""What stands between two parts that learn at their own pace: a bounded buffer of batches, and a ledger of its samples.

A buffer knows entries, not tensors: an engine keeps what they stand for beside it. Every operation gives a new buffer,
so that a simulation in one process and actors on a cluster run the same code, and tests need neither.

>>> buffer = Buffer(capacity=2, reuse=2)
>>> for version in range(2):
...     buffer = buffer.put(Entry(version=version, epoch=0, batch=version))
>>> buffer.room
False
>>> buffer, entry = buffer.take()
>>> entry.version, entry.uses, buffer.staleness(entry), buffer.room
(1, 1, 0, True)
>>> buffer, entry = buffer.take()
>>> entry.version, buffer.staleness(entry)
(0, 1)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from .errors import DataError, MethodError

__all__ = ["Buffer", "Entry", "LeastUsed", "Ledger", "MostRecent", "OldestFirst", "Policy", "WhenFull"]


@dataclass(frozen=True)
class Entry:
    """One batch in a buffer.

    Args:
        version: of the upstream part: the how manieth of its updates was made with the forward that gave this batch,
            from 0. Every update writes one entry, so that it is the entry's number as well.
        epoch: the pass over the data that the batch is of.
        batch: which batch of the pass it is.
        uses: how often it has been taken.
    """

    version: int
    epoch: int
    batch: int
    uses: int = 0


class Policy(ABC):
    """Which entry a part learns from next."""

    @abstractmethod
    def pick(self, entries: Sequence[Entry]) -> Entry:
        """One of these entries, of which there is at least one, oldest first."""


@dataclass(frozen=True)
class LeastUsed(Policy):
    """The least used ones, and of those the most recent: the buffer of decoupled greedy learning.

    References:
        Belilovsky, Eickenberg, Oyallon, Decoupled Greedy Learning of CNNs, ICML 2020, https://arxiv.org/abs/1901.08164
        (algorithm 2); the order is that of the authors' experiments.
    """

    def pick(self, entries: Sequence[Entry]) -> Entry:
        """The most recent of the least used."""
        return min(entries, key=lambda entry: (entry.uses, -entry.version))


@dataclass(frozen=True)
class MostRecent(Policy):
    """The most recent one, until it has been used as often as it may be."""

    def pick(self, entries: Sequence[Entry]) -> Entry:
        """The last one written."""
        return max(entries, key=lambda entry: entry.version)


@dataclass(frozen=True)
class OldestFirst(Policy):
    """The least used ones, and of those the oldest: a queue, which keeps the order of the batches."""

    def pick(self, entries: Sequence[Entry]) -> Entry:
        """The first written of the least used."""
        return min(entries, key=lambda entry: (entry.uses, entry.version))


class WhenFull(Enum):
    """What the part below does where the buffer is full."""

    WAIT = "until an entry that has been used can go"
    DROP = "the oldest entry, used or not"


@dataclass(frozen=True)
class Buffer:
    """A bounded buffer between two parts; every operation returns a new one.

    Args:
        capacity: most entries, >= 1.
        reuse: how often an entry may be used, >= 1; it goes when it has been.
        policy: which entry is used next.
        when_full: whether the writer waits until an entry that has been used can go, so that nothing is lost, or the
            oldest one goes, as in the paper.
        entries: what is in it, oldest first.
        written: how many entries have been put, which is the version of the next one.
        newest: the latest version that the writer has offered, in the buffer or not; -1 before the first.
        closed: the writer has ended its pass: every unused entry is still used once, the oldest first, none again.
        dropped: how many entries went without having been used.

    Raises:
        MethodError: capacity or reuse < 1.
    """

    capacity: int = 4
    reuse: int = 1
    policy: Policy = field(default_factory=LeastUsed)
    when_full: WhenFull = WhenFull.WAIT
    entries: tuple[Entry, ...] = ()
    written: int = 0
    newest: int = -1
    closed: bool = False
    dropped: int = 0

    def __post_init__(self) -> None:
        if self.capacity < 1 or self.reuse < 1:
            raise MethodError(f"capacity={self.capacity} and reuse={self.reuse}, expected both to be at least 1")

    @property
    def room(self) -> bool:
        """Whether the writer need not wait."""
        return len(self.entries) < self.capacity or self._leaving() is not None

    @property
    def ready(self) -> bool:
        """Whether there is an entry to learn from."""
        return bool(self._open())

    @property
    def drained(self) -> bool:
        """Whether the reader has ended its pass too: closed, and every entry used."""
        return self.closed and not self.ready

    def offered(self, version: int) -> Buffer:
        """The writer has made this version, whether or not there is room for it."""
        return replace(self, newest=max(self.newest, version))

    def put(self, entry: Entry) -> Buffer:
        """Add an entry; one that has been put before is left out, so that a writer may say it twice.

        Raises:
            DataError: there is no room, the buffer is closed, or an entry in between is missing.
        """
        if entry.version < self.written:
            return self
        if not self.room or self.closed or entry.version > self.written:
            why = "is closed" if self.closed else f"expects entry {self.written}" if self.room else "is full"
            raise DataError(f"entry {entry.version} was put into a buffer that {why}; wait for room, in order")
        leaving = self._leaving() if len(self.entries) == self.capacity else None
        kept = tuple(other for other in self.entries if other is not leaving)
        return replace(
            self,
            entries=(*kept, entry),
            written=self.written + 1,
            newest=max(self.newest, entry.version),
            dropped=self.dropped + (leaving is not None and leaving.uses == 0),
        )

    def take(self) -> tuple[Buffer, Entry]:
        """The entry that the policy picks, with this use counted.

        Raises:
            DataError: there is none.
        """
        entries = self._open()
        if not entries:
            raise DataError("an entry was taken from a buffer that has none ready; wait for one")
        # A pass ends on the freshest entry, whatever the policy: the last updates weigh most.
        picked = (OldestFirst() if self.closed else self.policy).pick(entries)
        used = replace(picked, uses=picked.uses + 1)
        after = (used if entry is picked else entry for entry in self.entries)
        return replace(self, entries=tuple(entry for entry in after if entry.uses < self.reuse)), used

    def staleness(self, entry: Entry) -> int:
        """How many updates the part below has made since the one that wrote this entry, as far as it has said."""
        return self.newest - entry.version

    def close(self) -> Buffer:
        """The writer has ended its pass."""
        return replace(self, closed=True)

    def opened(self) -> Buffer:
        """For the next pass: empty, with its numbers going on."""
        return replace(self, entries=(), closed=False)

    def _open(self) -> tuple[Entry, ...]:
        most = 1 if self.closed else self.reuse
        return tuple(entry for entry in self.entries if entry.uses < most)

    def _leaving(self) -> Entry | None:
        """What a new entry takes the place of: the most used one, and of those the oldest."""
        if self.when_full is WhenFull.DROP:
            return max(self.entries, key=lambda entry: (entry.uses > 0, -entry.version))
        used = [entry for entry in self.entries if entry.uses]
        return max(used, key=lambda entry: (entry.uses, -entry.version)) if used else None


@dataclass
class Ledger:
    """Which samples entered a buffer, and how often what they became was used.

    Args:
        reuse: how often an entry may be used.

    >>> ledger = Ledger(reuse=1)
    >>> ledger.enter(0, [3, 5])
    >>> ledger.use(Entry(version=0, epoch=0, batch=0, uses=1))
    >>> ledger.verify(epoch=0, samples=[5, 3])
    >>> ledger.enter(0, [5])
    >>> ledger.verify(epoch=0, samples=[5, 3])
    Traceback (most recent call last):
        ...
    modulewise.errors.DataError: in epoch 0 sample 5 entered 2 times, expected exactly once
    """

    reuse: int = 1
    entered: dict[int, Counter[int]] = field(default_factory=dict)
    uses: Counter[int] = field(default_factory=Counter)

    def enter(self, epoch: int, samples: Iterable[int]) -> None:
        """These samples have entered, by their ids."""
        self.entered.setdefault(epoch, Counter()).update(samples)

    def use(self, entry: Entry) -> None:
        """An entry has been taken.

        Raises:
            DataError: more often than it may be.
        """
        self.uses[entry.version] += 1
        if self.uses[entry.version] > self.reuse:
            raise DataError(
                f"entry {entry.version} was used {self.uses[entry.version]} times, expected at most {self.reuse}"
            )

    @property
    def most_used(self) -> int:
        """The most uses of any entry."""
        return max(self.uses.values(), default=0)

    def verify(self, *, epoch: int, samples: Iterable[int]) -> None:
        """Every one of these samples has entered exactly once in the epoch, and no other.

        Raises:
            DataError: one was lost, entered twice or is unknown.
        """
        counted, expected = self.entered.get(epoch, Counter()), set(samples)
        for sample in sorted(expected | set(counted)):
            times = 1 if sample in expected else 0
            if counted[sample] != times:
                wanted = "exactly once" if times else "never"
                raise DataError(f"in epoch {epoch} sample {sample} entered {counted[sample]} times, expected {wanted}")
