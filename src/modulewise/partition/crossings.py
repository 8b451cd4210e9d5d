"""What crosses a cut, read off a recording: candidate cuts, forbidden skips, ports, side inputs, layouts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import accumulate

import torch

from .boundary import Boundary
from .recording import Call, Operation, Recording, Slot

__all__ = [
    "Skip",
    "boundary_of",
    "candidates",
    "needed_before",
    "parameters_between",
    "reads_between",
    "skips",
]


@dataclass(frozen=True)
class Skip:
    """A tensor that crosses a cut beside the boundary: made in `origin`, read in `reader`."""

    origin: str
    reader: str


def _is_float(slot: Slot) -> bool:
    return slot.dtype.is_floating_point or slot.dtype.is_complex


def single_output(call: Call) -> Slot | None:
    """The one tensor a call returned; None where it returned none, several, or an integer tensor."""
    outputs = call.outputs
    return outputs[0] if len(outputs) == 1 and _is_float(outputs[0]) and outputs[0].shape else None


def _crossing_counts(recording: Recording) -> list[int]:
    """counts[p] = number of upstream values made at or before clock p and read after it."""
    length = recording.root.exit + 2
    steps = [0] * (length + 1)
    for value in recording.values.values():
        if value.upstream and value.birth >= 0 and value.last_read > value.birth:
            steps[value.birth] += 1
            steps[min(value.last_read, length)] -= 1
    return list(accumulate(steps))


def _reads_after(recording: Recording) -> dict[int, list[tuple[int, Slot]]]:
    """For every storage, the clock and span of its reads."""
    reads: dict[int, list[tuple[int, Slot]]] = {}
    for operation in recording.operations:
        for slot in operation.reads:
            reads.setdefault(slot.key, []).append((operation.clock, slot))
    return reads


def _lone(call: Call, slot: Slot, recording: Recording, counts: list[int], reads: dict) -> bool:
    """Whether the call's output alone, of all that depends on upstream parameters, is read after the call."""
    value = recording.values[slot.key]
    if not value.upstream or value.birth < 0 or value.last_read <= call.exit or counts[call.exit] != 1:
        return False
    return all(read.within(slot) for clock, read in reads.get(slot.key, ()) if clock > call.exit)


def candidates(recording: Recording) -> list[Call]:
    """Every place where one boundary tensor alone crosses, in order; of calls that end at one place the outermost."""
    times = Counter(call.name for call in recording.calls)
    counts, reads = _crossing_counts(recording), _reads_after(recording)
    first_owner, last_owner = _parameter_span(recording)
    found: list[Call] = []
    busy = {operation.clock for operation in recording.operations}
    for call in recording.calls:
        slot = single_output(call)
        if slot is None or times[call.name] != 1 or not first_owner < call.exit < last_owner:
            continue
        if not _lone(call, slot, recording, counts, reads):
            continue
        if found and not any(clock in busy for clock in range(found[-1].exit, call.exit)):
            found.pop()
        found.append(call)
    return found


def _parameter_span(recording: Recording) -> tuple[int, int]:
    """The clocks of the first and the last operation that read a parameter."""
    clocks = [
        operation.clock
        for operation in recording.operations
        if any(slot.key in recording.constants and recording.values[slot.key].parameter for slot in operation.reads)
    ]
    return (clocks[0], clocks[-1]) if clocks else (0, 0)


def skips(recording: Recording, cuts: list[Call]) -> dict[int, list[Skip]]:
    """For every cut, by index, what crosses it besides the boundaries at and before it."""
    found: dict[int, list[Skip]] = {}
    slots = [cut.outputs[0] for cut in cuts]
    reads = _reads_after(recording)
    allowed = {slot.key for slot in slots}
    for index, (cut, slot) in enumerate(zip(cuts, slots, strict=True)):
        earlier = {s.key for s in slots[: index + 1]}
        for key, value in recording.values.items():
            crosses = value.upstream and 0 <= value.birth <= cut.exit < value.last_read
            if crosses and (key not in earlier or key not in allowed):
                found.setdefault(index, []).append(Skip(value.origin, value.reader))
        late = [read for clock, read in reads.get(slot.key, ()) if clock > cut.exit]
        if not all(any(read.within(s) for s in slots[: index + 1]) for read in late):
            found.setdefault(index, []).append(Skip(cut.name, recording.values[slot.key].reader))
    return found


def reads_between(recording: Recording, start: int, stop: int) -> dict[int, list[Slot]]:
    """The storages made at or before `start` that are read in (start, stop], with the spans read."""
    found: dict[int, list[Slot]] = {}
    for operation in recording.operations:
        if start < operation.clock <= stop:
            for slot in operation.reads:
                value = recording.values[slot.key]
                if value.birth <= start and slot.key not in recording.constants:
                    found.setdefault(slot.key, []).append(slot)
    if stop > recording.root.exit:
        for slot in recording.output:
            if recording.values[slot.key].birth <= start:
                found.setdefault(slot.key, []).append(slot)
    return found


def needed_before(recording: Recording, start: int, keys: set[int]) -> set[int]:
    """The clocks of the operations before `start` that make the side inputs with these keys (their backward slice)."""
    made: dict[int, list[Operation]] = {}
    for operation in recording.operations:
        if operation.clock <= start:
            for key in {slot.key for slot in operation.makes} | set(operation.changes):
                made.setdefault(key, []).append(operation)
    clocks: set[int] = set()
    stack = [key for key in keys if key not in recording.inputs]
    seen = set(stack)
    while stack:
        for operation in made.get(stack.pop(), ()):
            clocks.add(operation.clock)
            for slot in operation.reads:
                if slot.key not in seen and not recording.values[slot.key].upstream:
                    seen.add(slot.key)
                    stack.append(slot.key)
    return clocks


def parameters_between(recording: Recording, start: int, stop: int) -> dict[str, str]:
    """The parameters read in (start, stop], each with the module that read it."""
    found: dict[str, str] = {}
    for operation in recording.operations:
        if start < operation.clock <= stop:
            for slot in operation.reads:
                if slot.key in recording.constants and recording.values[slot.key].parameter:
                    found.setdefault(recording.constants[slot.key], operation.where)
    return found


_CHANNELS_FIRST = ("convolution", "batch_norm", "pool", "upsample", "group_norm", "instance_norm")
_CHANNELS_LAST = ("layer_norm", "rms_norm", "addmm", "::mm", "linear", "bmm", "scaled_dot_product")


def _decisive(operation: Operation, touched: Slot, boundary: Slot) -> int | None:
    """The channel axis that an operation reading this tensor gives away, if it does; a flattened view says nothing."""
    if any(word in operation.name for word in _CHANNELS_FIRST):
        return 1 if len(touched.shape) == len(boundary.shape) else None
    if any(word in operation.name for word in _CHANNELS_LAST):
        return -1 if touched.shape[-1] == boundary.shape[-1] else None
    return None


def _channel_axis(recording: Recording, slot: Slot, clock: int) -> int:
    """Where the channels of a boundary are, told by the first operation after or before it that needs to know."""
    if len(slot.shape) <= 2:
        return 1
    for operations in (
        [o for o in recording.operations if o.clock > clock],
        [o for o in reversed(recording.operations) if o.clock <= clock],
    ):
        followed = {slot.key}
        for operation in operations:
            inward, outward = (operation.reads, operation.makes)
            if operation.clock <= clock:
                inward, outward = outward, inward
            touched = [s for s in inward if s.key in followed]
            if not touched:
                continue
            axis = _decisive(operation, touched[0], slot)
            if axis is not None:
                return axis
            followed |= {s.key for s in outward if s.shape == slot.shape}
    return 1 if len(slot.shape) >= 4 else -1


def boundary_of(recording: Recording, call: Call, size: int | None = None) -> Boundary:
    """The boundary at a call's output."""
    slot = call.outputs[0]
    dtype = slot.dtype if slot.dtype.is_floating_point else torch.float32
    return Boundary(call.name, slot.shape, dtype, _channel_axis(recording, slot, call.exit))
