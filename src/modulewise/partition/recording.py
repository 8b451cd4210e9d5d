"""What one forward did: which module was called when, and which tensors each operation read and made.

A clock ticks at every operation, module entry and module exit, so that "before the cut" and "after the cut" are
comparisons of integers. `recorder.record` makes a recording.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

__all__ = ["END", "Call", "Escape", "Operation", "Recording", "Slot", "Value"]

END = 1 << 60
"""The clock of the model's return."""


@dataclass(frozen=True)
class Slot:
    """A tensor seen by an operation: its storage, the range of elements it spans, its shape."""

    key: int
    low: int
    high: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def within(self, other: Slot) -> bool:
        """Whether this tensor spans no element outside the other's range of the same storage."""
        return self.key == other.key and other.low <= self.low and self.high <= other.high

    def overlaps(self, other: Slot) -> bool:
        """Whether the two ranges of one storage meet."""
        return self.key == other.key and self.low <= other.high and other.low <= self.high


@dataclass
class Value:
    """A storage: when it was made, where, and what it depends on.

    Attributes:
        drawn: the clock from which it depends on random numbers; -1 where it never does.
        since: the clock from which it depends on upstream parameters, rather than on the batch or a fixed table alone;
            -1 where it never does.
    """

    birth: int
    origin: str
    batch: bool = False
    parameter: bool = False
    trainable: bool = False
    drawn: int = -1
    since: int = -1
    last_read: int = -1
    reader: str = ""

    def upstream(self, clock: int = END) -> bool:
        """Whether, at a clock, the value depends on upstream parameters."""
        return 0 <= self.since <= clock

    def gather(self, other: Value, clock: int) -> None:
        """Depend on what another value depends on."""
        self.batch |= other.batch
        self.parameter |= other.parameter
        self.trainable |= other.trainable
        if self.drawn < 0 <= other.drawn:
            self.drawn = clock
        if self.since < 0 and (self.trainable or (self.batch and self.parameter)):
            self.since = clock


@dataclass(frozen=True)
class Operation:
    """One operation: what it read, made and changed in place, and whether it drew random numbers."""

    clock: int
    name: str
    where: str
    reads: tuple[Slot, ...]
    makes: tuple[Slot, ...]
    changes: tuple[int, ...]
    random: bool
    segment: int | None = None


@dataclass(eq=False)
class Call:
    """One call of one module.

    Attributes:
        gradients: whether gradients were on when it was called.
        segment: the checkpointed segment it was called in, if any.
    """

    name: str
    module: nn.Module
    enter: int
    parent: Call | None = None
    exit: int = END
    children: list[Call] = field(default_factory=list)
    inputs: tuple[Slot, ...] = ()
    leaves: list[Any] = field(default_factory=list)
    structure: Any = None
    gradients: bool = True
    segment: int | None = None

    @property
    def outputs(self) -> list[Slot]:
        """The tensors it returned."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Slot)]

    @property
    def counts(self) -> bool:
        """Whether it returned a number that is no tensor."""
        return any(isinstance(leaf, bool | int | float | complex) for leaf in self.leaves)

    def frames(self) -> list[Call]:
        """The calls it happened in, outermost first, and itself."""
        return [*(self.parent.frames() if self.parent is not None else ()), self]


@dataclass(frozen=True)
class Escape:
    """A tensor's value that was read into Python (`.item()`, `if tensor:`), where no recording can follow it."""

    clock: int
    call: Call
    upstream: bool
    batch: bool
    random: bool

    def outermost_closed(self, clock: int) -> Call | None:
        """Of the calls it happened in, the outermost that has returned at a clock; None where all still run."""
        return next((call for call in self.call.frames() if call.exit <= clock), None)


@dataclass
class Recording:
    """What one forward did.

    Attributes:
        constants: for every storage of parameters and buffers, their names and spans, and which are parameters.
    """

    root: Call
    calls: list[Call]
    operations: list[Operation]
    values: dict[int, Value]
    constants: dict[int, list[tuple[str, Slot, bool]]]
    inputs: set[int]
    output: list[Slot]
    escapes: list[Escape]
