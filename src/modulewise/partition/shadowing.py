"""Standing in for a module's call, for the length of a `with` block, without touching its class or its hooks.

`nn.Module.__call__` looks for a per-instance call (`_compiled_call_impl`, where `module.compile()` puts its own) before
it runs hooks and forward. A shadow is put there and what was there before is put back; nothing else of the module is
touched, and hooks that the user registered do not see stand-in values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["is_compiled", "original_call", "scratch_attributes", "scratch_buffers", "shadowed"]

SHADOW = "_compiled_call_impl"
_ABSENT = object()


def original_call(module: nn.Module) -> Callable[..., Any]:
    """What calling the module does: a compiled call where the user made one, else hooks and forward."""
    return module.__dict__.get(SHADOW) or module._call_impl


def is_compiled(module: nn.Module) -> bool:
    """Whether the user compiled the module (`torch.compile(module)`, `module.compile()`); to be asked unshadowed."""
    return "_orig_mod" in module._modules or module.__dict__.get(SHADOW) is not None


class Shadows:
    """A set of shadows that can be taken off early, all or some."""

    __slots__ = ("_before",)

    def __init__(self) -> None:
        self._before: list[tuple[dict[str, Any], Any]] = []

    def put(self, module: nn.Module, call: Callable[..., Any]) -> None:
        """Put one shadow on."""
        attributes = module.__dict__
        self._before.append((attributes, attributes.get(SHADOW, _ABSENT)))
        attributes[SHADOW] = call

    def remove(self) -> None:
        """Take all off, last first; once off, nothing more to do."""
        while self._before:
            attributes, before = self._before.pop()
            if before is _ABSENT:
                attributes.pop(SHADOW, None)
            else:
                attributes[SHADOW] = before


@contextmanager
def shadowed(calls: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Let each module's call be the given function for the length of the block."""
    shadows = Shadows()
    try:
        for module, call in calls.items():
            shadows.put(module, call)
        yield
    finally:
        shadows.remove()


@contextmanager
def scratch_buffers(model: nn.Module) -> Iterator[None]:
    """Let the modules write to copies of their buffers; the originals, same objects, same values, are back on exit.

    Copies, rather than a restore after the fact: a graph made in the block keeps the values it saved.
    """
    originals = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    copies: dict[int, Any] = {}
    try:
        for buffers, before in originals:
            for name, buffer in before.items():
                if buffer is not None:
                    buffers[name] = copies.setdefault(id(buffer), buffer.clone())
        yield
    finally:
        for buffers, before in originals:
            _refill(buffers, before)


@contextmanager
def scratch_attributes(model: nn.Module) -> Iterator[None]:
    """Put back, on exit, what a forward keeps on its modules: attributes, lists, dictionaries, tensors, generators.

    Buffers are `scratch_buffers`'s care; what an attribute's own attributes hold is left alone.
    """
    before = [(module.__dict__, dict(module.__dict__)) for module in model.modules()]
    contents: list[tuple[Any, Any]] = []
    values: list[tuple[Tensor, int, Tensor]] = []
    generators: list[tuple[torch.Generator, Tensor]] = []
    for _, attributes in before:
        for name, attribute in attributes.items():
            if name == "_buffers":
                continue
            kind = next((kind for kind in (list, dict, set) if isinstance(attribute, kind)), None)
            if kind is not None:
                contents.append((attribute, kind(attribute)))
            elif isinstance(attribute, Tensor) and not attribute.is_inference():
                values.append((attribute, attribute._version, attribute.detach().clone()))
            elif isinstance(attribute, torch.Generator):
                generators.append((attribute, attribute.get_state()))
    try:
        yield
    finally:
        for attributes, originals in before:
            if attributes.keys() != originals.keys() or any(attributes[key] is not originals[key] for key in originals):
                attributes.clear()
                attributes.update(originals)
        for container, held in contents:
            _refill(container, held)
        for tensor, version, value in values:
            if tensor._version != version:
                with torch.no_grad():
                    tensor.copy_(value)
        for generator, state in generators:
            generator.set_state(state)


def _refill(container: Any, copy: Any) -> None:
    """Give a list, dictionary or set what it held, where it now holds something else."""
    now, then = list(container), list(copy)
    if isinstance(container, dict):
        now, then = [*now, *container.values()], [*then, *copy.values()]
    if len(now) != len(then) or any(a is not b for a, b in zip(now, then, strict=True)):
        container.clear()
        (container.extend if isinstance(container, list) else container.update)(copy)
