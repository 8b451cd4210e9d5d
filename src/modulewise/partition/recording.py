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
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ..errors import PartitionError
from .shadowing import is_compiled, original_call, shadowed
from .tree import call_model, tensors

__all__ = ["END", "Call", "Escape", "Operation", "Recording", "Slot", "Value", "record"]

END = 1 << 60
"""The clock of the model's return."""

PLAIN = (bool, int, float, complex, str, torch.Size, torch.dtype, torch.device)


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
        since: the clock from which it depends on upstream parameters, rather than on the batch or a fixed table alone;
            -1 where it never does.
    """

    birth: int
    origin: str
    batch: bool = False
    parameter: bool = False
    trainable: bool = False
    random: bool = False
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
        self.random |= other.random
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
    segment: Any = None


@dataclass
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
    segment: Any = None

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
        constants: for every storage of parameters and buffers, their names and spans.
    """

    root: Call
    calls: list[Call]
    operations: list[Operation]
    values: dict[int, Value]
    constants: dict[int, list[tuple[str, Slot]]]
    inputs: set[int]
    output: list[Slot]
    escapes: list[Escape]


def _segment() -> Any:
    """What identifies the non-reentrant checkpoint that is being run, if any."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks[0] if hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint" else None


class _Recorder(TorchDispatchMode):
    def __init__(self, model: nn.Module, x: Any) -> None:
        super().__init__()
        self.clock = 0
        self.values: dict[int, Value] = {}
        self.operations: list[Operation] = []
        self.escapes: list[Escape] = []
        self.held: dict[int, Any] = {}
        self.constants: dict[int, list[tuple[str, Slot]]] = {}
        self.names = {module: name for name, module in model.named_modules()}
        self.root = Call("", model, 0)
        self.stack = [self.root]
        self.calls: list[Call] = []
        self.refused: PartitionError | None = None
        for name, tensor in [*model.named_buffers(), *model.named_parameters()]:
            slot, learned = self.slot(tensor), isinstance(tensor, nn.Parameter)
            self.constants.setdefault(slot.key, []).append((name, slot))
            value = self.values.setdefault(slot.key, Value(-1, name))
            value.parameter |= learned
            value.trainable |= learned and tensor.requires_grad
        self.inputs = {self._key(leaf) for leaf in tensors(x)}
        for key in self.inputs:
            self.values.setdefault(key, Value(-1, "the input", batch=True)).batch = True

    def _key(self, tensor: Tensor) -> int:
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # sparse tensors have none; the tensor itself is followed instead
            self.held[id(tensor)] = tensor
            return id(tensor)
        key = storage._cdata
        if key not in self.held:
            # The weak reference keeps the address from being given to another storage.
            self.held[key] = StorageWeakRef(storage)
        return key

    def slot(self, tensor: Tensor) -> Slot:
        key, shape = self._key(tensor), tuple(tensor.shape)
        if self.held[key] is tensor:
            return Slot(key, 0, tensor.numel(), shape, tensor.dtype)
        low = tensor.storage_offset()
        high = low + sum((s - 1) * t for s, t in zip(shape, tensor.stride(), strict=True) if s)
        return Slot(key, low, high, shape, tensor.dtype)

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def read(self, slot: Slot, clock: int, where: str) -> Value:
        value = self.values.setdefault(slot.key, Value(-1, "a constant"))
        value.last_read, value.reader = clock, where
        return value

    def escape(self, tensors: list[Tensor]) -> None:
        """Note values that become Python's."""
        clock, call = self.clock, self.stack[-1]
        for slot in [self.slot(tensor) for tensor in tensors]:
            value = self.read(slot, clock, call.name)
            self.escapes.append(Escape(clock, call, value.upstream(), value.batch, value.random))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        clock, where = self.tick(), self.stack[-1].name
        given = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        reads = tuple(self.slot(t) for t in given)
        sources = [self.read(slot, clock, where) for slot in reads]
        changes = self._changed(func, args, kwargs) if func._schema.is_mutable else ()
        self._refuse_changes(changes, where)
        out = func(*args, **kwargs)
        if func._schema.name in ("aten::_local_scalar_dense", "aten::equal"):
            self.escape(given)
        makes = tuple(self.slot(t) for t in tree_flatten(out)[0] if isinstance(t, Tensor))
        random = torch.Tag.nondeterministic_seeded in func.tags
        for key in {slot.key for slot in makes} | set(changes):
            value = self.values.setdefault(key, Value(clock, where))
            value.random |= random
            for source in sources:
                value.gather(source, clock)
        self.operations.append(Operation(clock, func._schema.name, where, reads, makes, changes, random, _segment()))
        return out

    def _changed(self, func: Any, args: Any, kwargs: Any) -> tuple[int, ...]:
        keys = []
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = args[position] if position < len(args) else kwargs.get(argument.name)
                keys += [self._key(t) for t in tree_flatten(given)[0] if isinstance(t, Tensor)]
        return tuple(keys)

    def _refuse_changes(self, keys: tuple[int, ...], where: str) -> None:
        """Refuse, before it is done, what would do its work once for every part instead of once."""
        for key in keys:
            parameter = self.values[key].parameter and key in self.constants
            if parameter or key in self.inputs:
                what = f"parameter {self.constants[key][0][0]!r}" if parameter else "its input"
                self.refused = PartitionError(
                    f"the model's forward changes {what} in place (in {where or 'the forward'!r}), expected it to be "
                    "left as it is, since every part reads it; use the operation that returns a new tensor"
                )
                raise self.refused

    def call(self, module: nn.Module) -> Callable[..., Any]:
        run = original_call(module)

        def recorded(*args: Any, **kwargs: Any) -> Any:
            call = Call(self.names[module], module, self.tick(), self.stack[-1])
            call.gradients, call.segment = torch.is_grad_enabled(), _segment()
            call.inputs = tuple(self.slot(t) for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor))
            self.stack[-1].children.append(call)
            self.stack.append(call)
            try:
                out = run(*args, **kwargs)
            finally:
                self.stack.pop()
            leaves, call.structure = tree_flatten(out)
            call.leaves = [
                self.slot(leaf) if isinstance(leaf, Tensor) else leaf if isinstance(leaf, PLAIN) else None
                for leaf in leaves
            ]
            call.exit = self.tick()
            self.calls.append(call)
            return out

        return recorded


class _Readings(TorchFunctionMode):
    """Notes what leaves torch without an operation: `tolist`, `numpy`."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.__array__):
            self.recorder.escape([args[0]])
        return func(*args, **(kwargs or {}))


def record(model: nn.Module, x: Any) -> Recording:
    """Record one forward of the model on x, in its present mode, with gradients on.

    Buffers and generators are the caller's care (see `verification.undisturbed`).

    Raises:
        PartitionError: the forward changes a parameter or its input in place.
    """
    recorder = _Recorder(model, x)
    shadows = {module: recorder.call(module) for module in recorder.names if module is not model}
    with torch.enable_grad(), shadowed(shadows), _Readings(recorder), recorder:
        out = call_model(model, x)
    if recorder.refused is not None:
        raise recorder.refused
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
        escapes=recorder.escapes,
    )
