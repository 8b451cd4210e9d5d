"""Standing in for a module's call, for the length of a `with` block, without touching its class or its hooks.

`nn.Module.__call__` looks for a per-instance call (`_compiled_call_impl`, where `module.compile()` puts its own) before
it runs hooks and forward. A shadow is put there and what was there before is put back; nothing else of the module is
touched, and hooks that the user registered do not see stand-in values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["original_call", "scratch_buffers", "shadowed"]

SHADOW = "_compiled_call_impl"
_ABSENT = object()


def original_call(module: nn.Module) -> Callable[..., Any]:
    """What calling the module does without a shadow: a compiled call where the user made one, else hooks and forward."""
    return module.__dict__.get(SHADOW) or module._call_impl


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
    owners = [module for module in model.modules() if module._buffers]
    originals = [(module._buffers, dict(module._buffers)) for module in owners]
    copies: dict[int, Any] = {}
    try:
        for buffers, before in originals:
            for name, buffer in before.items():
                if buffer is not None:
                    buffers[name] = copies.setdefault(id(buffer), buffer.clone())
        yield
    finally:
        for buffers, before in originals:
            buffers.update(before)
