"""Reading what goes into modules and what comes out of them, for the length of a `with` block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["tapped"]


@contextmanager
def tapped(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, tuple[Any, Any]]]:
    """Gather (first argument, output) of every call of some modules; of several calls the last one counts.

    Args:
        modules: what to read, by name.

    Yields:
        What was read so far, by name, with its graph. The hooks are gone on exit.

    >>> import torch
    >>> relu = nn.ReLU()
    >>> with tapped({"relu": relu}) as seen:
    ...     _ = relu(torch.tensor([-1.0]))
    >>> seen["relu"], len(relu._forward_hooks)
    ((tensor([-1.]), tensor([0.])), 0)
    """
    seen: dict[str, tuple[Any, Any]] = {}

    def reader(name: str) -> Any:
        def read(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            seen[name] = (inputs[0] if inputs else None, output)

        return read

    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(reader(name)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()
