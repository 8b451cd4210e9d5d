"""What crosses a cut, read off a recording: candidate cuts, forbidden skips, ports, side inputs, layouts."""

from __future__ import annotations

from bisect import bisect
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate

import torch

from .boundary import Boundary
from .recording import END, Call, Operation, Recording, Slot
from .shadowing import is_compiled

__all__ = [
    "Skip",
    "boundary_of",
    "candidates",
    "needed_before",
    "parameters_between",
    "reads_between",
    "single_output",
    "skips",
    "unfit",
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
    """counts[p] = number of values that are upstream at clock p and read after it."""
    length = recording.root.exit + 2
    steps = [0] * (length + 1)
    for value in recording.values.values():
        if value.upstream() and value.last_read > value.since:
            steps[value.since] += 1
            steps[min(value.last_read, length)] -= 1
    return list(accumulate(steps))


def _reads_after(recording: Recording) -> dict[int, list[tuple[int, Slot]]]:
    """For every storage, the clock and span of its reads, the model's return included."""
    reads: dict[int, list[tuple[int, Slot]]] = {}
    for operation in recording.operations:
        for slot in operation.reads:
            reads.setdefault(slot.key, []).append((operation.clock, slot))
    for slot in recording.output:
        reads.setdefault(slot.key, []).append((END, slot))
    return reads


def _lone(call: Call, slot: Slot, recording: Recording, counts: list[int], reads: dict) -> bool:
    """Whether the call's output alone, of all that depends on upstream parameters, is read after the call."""
    value = recording.values[slot.key]
    if not value.upstream(call.exit) or not value.batch or value.last_read <= call.exit or counts[call.exit] != 1:
        return False
    return all(read.within(slot) for clock, read in reads.get(slot.key, ()) if clock > call.exit)


def unfit(recording: Recording, call: Call) -> str | None:
    """Why the forward cannot be entered or left at a call, whatever it returns; None where it can."""
    if not call.gradients and any(recording.values[slot.key].trainable for slot in call.outputs):
        return (
            "is called with gradients off (reentrant checkpointing or no_grad around it), expected them on; use "
            "torch.utils.checkpoint with use_reentrant=False, or cut elsewhere"
        )
    if call.segment is not None and any(
        operation.segment == call.segment and not call.enter < operation.clock < call.exit
        for operation in recording.operations
    ):
        return (
            "lies inside a checkpointed segment (torch.utils.checkpoint), expected a segment to lie inside one part; "
            "cut where a segment begins or ends"
        )
    outside = next((frame for frame in call.frames()[:-1] if is_compiled(frame.module)), None)
    if outside is not None:
        return (
            f"lies inside {outside.name!r}, which is compiled, so that its forward cannot be left there; cut before "
            "compiling and let Trainer(compile=True) compile the parts"
        )
    for escape in recording.escapes:
        if escape.upstream and escape.clock <= call.exit:
            closed = escape.outermost_closed(call.exit)
            if closed is None or closed.counts:
                return (
                    f"comes after {escape.call.name or 'the forward'!r} has read a value of part of the model into "
                    "Python (.item(), .tolist(), `if tensor:`), which crosses the cut unseen; move that into a module "
                    "that returns tensors, or cut before it"
                )
    return None


def candidates(recording: Recording) -> list[Call]:
    """Every place where one boundary tensor alone crosses, in order; of calls that end at one place the outermost."""
    times = Counter(call.name for call in recording.calls)
    counts, reads = _crossing_counts(recording), _reads_after(recording)
    first_owner, last_owner = _parameter_span(recording)
    found: list[Call] = []
    busy = [operation.clock for operation in recording.operations]
    for call in recording.calls:
        slot = single_output(call)
        if slot is None or times[call.name] != 1 or not first_owner < call.exit < last_owner:
            continue
        if not _lone(call, slot, recording, counts, reads) or unfit(recording, call) is not None:
            continue
        if found and bisect(busy, found[-1].exit) == bisect(busy, call.exit):
            found.pop()
        found.append(call)
    return found


def _parameter_span(recording: Recording) -> tuple[int, int]:
    """The clocks of the first and the last operation that read a parameter."""
    clocks = [
        operation.clock
        for operation in recording.operations
        if any(learned for slot in operation.reads for *_, learned in recording.constants.get(slot.key, ()))
    ]
    return (clocks[0], clocks[-1]) if clocks else (0, 0)


def skips(recording: Recording, cuts: list[Call]) -> dict[int, list[Skip]]:
    """For every cut, by index, what crosses it besides the boundaries at and before it."""
    found: dict[int, list[Skip]] = {}
    slots = [cut.outputs[0] for cut in cuts]
    reads = _reads_after(recording)
    changes: dict[int, list[Operation]] = {}
    for operation in recording.operations:
        for key in operation.changes:
            changes.setdefault(key, []).append(operation)
    for index, cut in enumerate(cuts):
        earlier = {slot.key: position for position, slot in enumerate(slots[: index + 1])}
        for key, value in recording.values.items():
            if not value.upstream(cut.exit) or value.last_read <= cut.exit:
                continue
            if key not in earlier:
                found.setdefault(index, []).append(Skip(value.origin, value.reader))
                continue
            # A boundary changed in place by a part between is no longer the boundary that was handed on.
            span, made = slots[earlier[key]], cuts[earlier[key]].exit
            found.setdefault(index, []).extend(
                Skip(operation.where or "the forward", value.reader)
                for operation in changes.get(key, ())
                if made < operation.clock <= cut.exit
            )
            if not all(read.within(span) for clock, read in reads[key] if clock > cut.exit):
                found.setdefault(index, []).append(Skip(value.origin, value.reader))
    return {index: routes for index, routes in found.items() if routes}


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


def needed_before(recording: Recording, start: int, keys: set[int]) -> list[Operation]:
    """The operations before `start` that make the side inputs with these keys (their backward slice)."""
    made: dict[int, list[Operation]] = {}
    for operation in recording.operations:
        if operation.clock <= start:
            for key in {slot.key for slot in operation.makes} | set(operation.changes):
                made.setdefault(key, []).append(operation)
    found: dict[int, Operation] = {}
    stack = [key for key in keys if key not in recording.inputs]
    seen = set(stack)
    while stack:
        for operation in made.get(stack.pop(), ()):
            found[operation.clock] = operation
            for slot in operation.reads:
                if slot.key not in seen and not recording.values[slot.key].upstream(start):
                    seen.add(slot.key)
                    stack.append(slot.key)
    return list(found.values())


def parameters_between(recording: Recording, start: int, stop: int) -> dict[str, str]:
    """The parameters read in (start, stop], each with the module that read it."""
    found: dict[str, str] = {}
    for operation in recording.operations:
        if start < operation.clock <= stop:
            for slot in operation.reads:
                for name, span, learned in recording.constants.get(slot.key, ()):
                    if learned and slot.overlaps(span):
                        found.setdefault(name, operation.where)
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


def boundary_of(recording: Recording, call: Call) -> Boundary:
    """The boundary at a call's output."""
    slot = call.outputs[0]
    dtype = slot.dtype if slot.dtype.is_floating_point else torch.float32
    return Boundary(call.name, slot.shape, dtype, _channel_axis(recording, slot, call.exit))
