"""One recorded forward: which module was called when, and which tensors each operation read and made.

The recording is made below autograd, on the user's own forward, with shadows on every module's call that are taken
off in a `finally`. A clock ticks at every operation, module entry and module exit, so that "before the cut" and
"after the cut" are comparisons of integers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from .shadowing import original_call, shadowed
from .tree import call_model, tensors

__all__ = ["Call", "Operation", "Recording", "Slot", "Value", "record"]

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


@dataclass
class Value:
    """A storage: when it was made, where, and what it depends on."""

    birth: int
    origin: str
    batch: bool = False
    parameter: bool = False
    trainable: bool = False
    last_read: int = -1
    reader: str = ""

    @property
    def upstream(self) -> bool:
        """Whether the value depends on upstream parameters, rather than on the batch or a fixed table alone."""
        return self.trainable or (self.batch and self.parameter)


@dataclass(frozen=True)
class Operation:
    """One operation: what it read, made and changed in place."""

    clock: int
    name: str
    where: str
    reads: tuple[Slot, ...]
    makes: tuple[Slot, ...]
    changes: tuple[int, ...]


@dataclass
class Call:
    """One call of one module."""

    name: str
    module: nn.Module
    enter: int
    exit: int = -1
    children: list[Call] = field(default_factory=list)
    inputs: tuple[Slot, ...] = ()
    leaves: list[Any] = field(default_factory=list)
    structure: Any = None

    @property
    def outputs(self) -> list[Slot]:
        """The tensors it returned."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Slot)]


@dataclass
class Recording:
    """What one forward did."""

    root: Call
    calls: list[Call]
    operations: list[Operation]
    values: dict[int, Value]
    constants: dict[int, str]
    inputs: set[int]
    output: list[Slot]

    def count(self, name: str) -> int:
        """How often a module was called."""
        return sum(call.name == name for call in self.calls)


class _Recorder(TorchDispatchMode):
    def __init__(self, model: nn.Module, x: Any) -> None:
        super().__init__()
        self.clock = 0
        self.values: dict[int, Value] = {}
        self.operations: list[Operation] = []
        self.held: dict[int, StorageWeakRef] = {}
        self.constants: dict[int, str] = {}
        self.names = {module: name for name, module in model.named_modules()}
        self.root = Call("", model, 0)
        self.stack = [self.root]
        self.calls: list[Call] = []
        for name, buffer in model.named_buffers():
            self.constants[self._key(buffer)] = name
            self.values[self._key(buffer)] = Value(-1, name)
        for name, parameter in model.named_parameters():
            self.constants[self._key(parameter)] = name
            self.values[self._key(parameter)] = Value(-1, name, parameter=True, trainable=parameter.requires_grad)
        self.inputs = {self._key(leaf) for leaf in tensors(x)}
        for key in self.inputs:
            self.values.setdefault(key, Value(-1, "the input", batch=True)).batch = True

    def _key(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.held:
            # The weak reference keeps the address from being given to another storage.
            self.held[key] = StorageWeakRef(storage)
        return key

    def slot(self, tensor: Tensor) -> Slot:
        low = tensor.storage_offset()
        high = low + sum((s - 1) * t for s, t in zip(tensor.shape, tensor.stride(), strict=True) if s)
        return Slot(self._key(tensor), low, high, tuple(tensor.shape), tensor.dtype)

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def read(self, slot: Slot, clock: int, where: str) -> Value:
        value = self.values.setdefault(slot.key, Value(-1, "a constant"))
        value.last_read, value.reader = clock, where
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        clock, where = self.tick(), self.stack[-1].name
        given = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        reads = tuple(self.slot(t) for t in given)
        sources = [self.read(slot, clock, where) for slot in reads]
        out = func(*args, **kwargs)
        makes = tuple(self.slot(t) for t in tree_flatten(out)[0] if isinstance(t, Tensor))
        changes = self._changed(func, args, kwargs) if func._schema.is_mutable else ()
        for key in {slot.key for slot in makes} | set(changes):
            value = self.values.setdefault(key, Value(clock, where))
            for source in sources:
                value.batch |= source.batch
                value.parameter |= source.parameter
                value.trainable |= source.trainable
        self.operations.append(Operation(clock, func._schema.name, where, reads, makes, changes))
        return out

    def _changed(self, func: Any, args: Any, kwargs: Any) -> tuple[int, ...]:
        keys = []
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = args[position] if position < len(args) else kwargs.get(argument.name)
                keys += [self._key(t) for t in tree_flatten(given)[0] if isinstance(t, Tensor)]
        return tuple(keys)

    def call(self, module: nn.Module) -> Callable[..., Any]:
        run = original_call(module)

        def recorded(*args: Any, **kwargs: Any) -> Any:
            call = Call(self.names[module], module, self.tick())
            call.inputs = tuple(self.slot(t) for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor))
            self.stack[-1].children.append(call)
            self.stack.append(call)
            try:
                out = run(*args, **kwargs)
            finally:
                self.stack.pop()
            leaves, call.structure = tree_flatten(out)
            call.leaves = [self.slot(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            call.exit = self.tick()
            self.calls.append(call)
            return out

        return recorded


def record(model: nn.Module, x: Any) -> Recording:
    """Record one forward of the model on x, in its present mode, leaving no gradient graph.

    Buffers and generators are the caller's care (see `verification.undisturbed`).
    """
    recorder = _Recorder(model, x)
    shadows = {module: recorder.call(module) for module in recorder.names if module is not model}
    with torch.no_grad(), shadowed(shadows), recorder:
        out = call_model(model, x)
    output = [recorder.slot(leaf) for leaf in tensors(out)]
    for slot in output:
        recorder.read(slot, END, "the model's output")
    recorder.root.exit = recorder.tick()
    return Recording(
        root=recorder.root,
        calls=recorder.calls,
        operations=recorder.operations,
        values=recorder.values,
        constants=recorder.constants,
        inputs=recorder.inputs,
        output=output,
    )
