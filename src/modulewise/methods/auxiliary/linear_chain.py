"""Find the layers of a perceptron: a chain of linear layers with a ReLU between each two."""

from __future__ import annotations

from torch import nn

from ...errors import MethodError

__all__ = ["linear_chain"]

_SILENT = (nn.Flatten, nn.Identity)


def linear_chain(model: nn.Module) -> tuple[tuple[str, nn.Linear], ...]:
    """The (name, layer) pairs of a model made of Linear, ReLU, ..., Linear, in order of `model.named_modules()`.

    Args:
        model: any nesting of containers without parameters of their own; Flatten and Identity are passed
            over.

    Raises:
        MethodError: the model is another one; the first module that does not fit is named.

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
                f"module {name!r} is a {type(module).__name__} where block coordinate descent expects a "
                f"{expected.__name__}; give a chain of Linear, ReLU, ..., Linear"
            )
        if isinstance(module, nn.Linear):
            layers.append((name, module))
        expected = nn.ReLU if expected is nn.Linear else nn.Linear
    if not layers or expected is nn.Linear:
        end = f"ends with the ReLU after {layers[-1][0]!r}" if layers else "has no linear layer"
        raise MethodError(f"the model {end}; give a chain of Linear, ReLU, ..., Linear")
    parameters = [id(parameter) for _, layer in layers for parameter in layer.parameters()]
    if len(set(parameters)) < len(parameters):
        raise MethodError("two linear layers share a parameter; block coordinate descent needs one of its own in each")
    return tuple(layers)
