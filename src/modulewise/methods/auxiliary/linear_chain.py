"""Find the layers of a perceptron: a chain of linear layers with a ReLU between each two."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import nn

from ...errors import MethodError

if TYPE_CHECKING:
    from ...partition import Part

__all__ = ["chain_members", "linear_chain"]

_SILENT = (nn.Flatten, nn.Identity)


def linear_chain(model: nn.Module, *, parts: Iterable[Part] = ()) -> tuple[tuple[str, nn.Linear], ...]:
    """The (name, layer) pairs of a model made of Linear, ReLU, ..., Linear, in order of `model.named_modules()`.

    Args:
        model: any nesting of containers without parameters of their own; Flatten and Identity are passed
            over.
        parts: the parts of a partition of it, for the message.

    Raises:
        MethodError: the model is another one; the first module that does not fit is named, and its part.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> [name for name, layer in linear_chain(model)]
    ['1', '3']
    """
    layers: list[tuple[str, nn.Linear]] = []
    expected: type[nn.Module] = nn.Linear
    for name, module in model.named_modules():
        container = any(True for _ in module.children()) and not any(True for _ in module.parameters(recurse=False))
        if container or type(module) in _SILENT:
            continue
        if type(module) is not expected:
            raise MethodError(
                f"{_owner(name, parts)}module {name!r} is a {type(module).__name__} where the method's closed forms "
                f"expect a {expected.__name__}; give a chain of Linear, ReLU, ..., Linear"
            )
        if isinstance(module, nn.Linear):
            layers.append((name, module))
        expected = nn.ReLU if expected is nn.Linear else nn.Linear
    if not layers or expected is nn.Linear:
        end = f"ends with the ReLU after {layers[-1][0]!r}" if layers else "has no linear layer"
        raise MethodError(f"the model {end}; give a chain of Linear, ReLU, ..., Linear")
    parameters = [id(parameter) for _, layer in layers for parameter in layer.parameters()]
    if len(set(parameters)) < len(parameters):
        raise MethodError("two linear layers share a parameter; the method solves for each layer alone: untie them")
    return tuple(layers)


def chain_members(chain: Sequence[tuple[str, nn.Linear]], parts: Iterable[Part]) -> list[list[int]]:
    """For every part the indices of its layers in the chain."""
    names = [f"{name}.weight".lstrip(".") for name, _ in chain]
    return [[layer for layer, name in enumerate(names) if name in part.parameter_names] for part in parts]


def _owner(name: str, parts: Iterable[Part]) -> str:
    """The words for the part that calls the module of this name, or one that holds it; empty where none does."""
    for index, part in enumerate(parts):
        if any(name == outer or name.startswith(f"{outer}.") for outer, _ in part.modules()):
            return f"part {index}, "
    return ""
