"""Record one forward: below autograd, on the user's own forward, with shadows that are taken off in a `finally`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ..errors import PartitionError
from .recording import END, Call, Escape, Operation, Recording, Slot, Value
from .shadowing import original_call, shadowed
from .tree import call_model, tensors

__all__ = ["record"]

PLAIN = (bool, int, float, complex, str, torch.Size, torch.dtype, torch.device)


class _Recorder(TorchDispatchMode):
    def __init__(self, model: nn.Module, x: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.clock = 0
        self.values: dict[int, Value] = {}
        self.operations: list[Operation] = []
        self.escapes: list[Escape] = []
        self.held: dict[int, Any] = {}
        self.constants: dict[int, list[tuple[str, Slot, bool]]] = {}
        self.names = {module: name for name, module in model.named_modules()}
        self.root = Call("", model, 0)
        self.stack = [self.root]
        self.calls: list[Call] = []
        self.refused: PartitionError | None = None
        for name, tensor in [*model.named_buffers(), *model.named_parameters()]:
            slot, learned = self.slot(tensor), isinstance(tensor, nn.Parameter)
            self.constants.setdefault(slot.key, []).append((name, slot, learned))
            value = self.values.setdefault(slot.key, Value(-1, name))
            value.parameter |= learned
            value.trainable |= learned and tensor.requires_grad
        self.buffers = {key for key, tensors in self.constants.items() if not any(learned for *_, learned in tensors)}
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
        low = int(tensor.storage_offset())
        high = low + sum((s - 1) * int(t) for s, t in zip(shape, tensor.stride(), strict=True) if s)
        return Slot(key, low, high, shape, tensor.dtype)

    def segment(self) -> int | None:
        """Which non-reentrant checkpoint is being run, if any."""
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
        if hooks is None or hooks[0].__module__ != "torch.utils.checkpoint":
            return None
        # Held, so that no later checkpoint is given the same address.
        self.held[id(hooks[0])] = hooks[0]
        return id(hooks[0])

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
            self.escapes.append(Escape(clock, call, value.upstream(), value.batch, value.drawn >= 0))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        clock, frame = self.tick(), self.stack[-1].name
        where = frame or f"the forward ({func._schema.name.removeprefix('aten::')})"
        given = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        reads = tuple(self.slot(t) for t in given)
        sources = [self.read(slot, clock, where) for slot in reads]
        changes = self._changed(func, args, kwargs, reads)
        self._refuse_changes(changes, where)
        out = func(*args, **kwargs)
        if func._schema.name in ("aten::_local_scalar_dense", "aten::equal"):
            self.escape(given)
        makes = tuple(self.slot(t) for t in tree_flatten(out)[0] if isinstance(t, Tensor))
        random = torch.Tag.nondeterministic_seeded in func.tags
        for key in {slot.key for slot in makes if slot.key not in self.constants} | set(changes):
            value = self.values.setdefault(key, Value(clock, where))
            if random and value.drawn < 0:
                value.drawn = clock
            for source in sources:
                value.gather(source, clock)
        self.operations.append(
            Operation(clock, func._schema.name, frame, reads, makes, changes, random, self.segment())
        )
        return out

    def _changed(self, func: Any, args: Any, kwargs: Any, reads: tuple[Slot, ...]) -> tuple[int, ...]:
        if "batch_norm" in func._schema.name:  # writes its statistics, though its schema says nothing of it
            return tuple(slot.key for slot in reads if slot.key in self.buffers)
        keys = []
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = args[position] if position < len(args) else kwargs.get(argument.name)
                keys += [self._key(t) for t in tree_flatten(given)[0] if isinstance(t, Tensor)]
        return tuple(keys)

    def _refuse_changes(self, keys: tuple[int, ...], where: str) -> None:
        """Refuse, before it is done, what would do its work once for every part instead of once."""
        for key in keys:
            parameter = next((name for name, _, learned in self.constants.get(key, ()) if learned), None)
            if parameter is not None or key in self.inputs:
                what = "its input" if parameter is None else f"parameter {parameter!r}"
                self.refused = PartitionError(
                    f"the model's forward changes {what} in place (in {where!r}), expected it to be "
                    "left as it is, since every part reads it; use the operation that returns a new tensor"
                )
                raise self.refused

    def call(self, module: nn.Module) -> Callable[..., Any]:
        run = original_call(module)

        def recorded(*args: Any, **kwargs: Any) -> Any:
            call = Call(self.names[module], module, self.tick(), self.stack[-1])
            call.gradients, call.segment = torch.is_grad_enabled(), self.segment()
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
