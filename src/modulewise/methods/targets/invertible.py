"""Layers with an exact inverse: one Linear, then at most one activation whose inverse and slope are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ...errors import MethodError
from ...objective import Site

__all__ = [
    "InvertibleLayer",
    "activation_slope",
    "activation_step",
    "exact_inverse",
    "invertible_layer",
    "orthogonal_",
    "soft_orthogonality",
]

_INSIDE = 1 - 1e-12  # a saturated unit has slope 0, and a target outside the range of act is moved to its edge

Step = Callable[[nn.Module, Tensor, Tensor], Tensor]


def _log1p(value: Tensor) -> Tensor:
    return value.clamp(min=-_INSIDE).log1p()


def _leaky_slope(module: nn.Module, h: Tensor) -> Tensor:
    return torch.where(h > 0, torch.ones_like(h), torch.full_like(h, float(module.negative_slope)))  # type: ignore[arg-type]


def _leaky_step(module: nn.Module, h: Tensor, d: Tensor) -> Tensor:
    before, after = _leaky_slope(module, h), _leaky_slope(module, h + d)
    return torch.where(before == after, d / before, (h + d) / after - h / before)


def _tanh_step(module: nn.Module, h: Tensor, d: Tensor) -> Tensor:
    h = h.clamp(-_INSIDE, _INSIDE)
    return (d / (1 - h.square() - h * d).clamp(min=1 - _INSIDE)).clamp(-_INSIDE, _INSIDE).atanh()


def _sigmoid_step(module: nn.Module, h: Tensor, d: Tensor) -> Tensor:
    h = h.clamp(1 - _INSIDE, _INSIDE)
    return _log1p(d / h) - _log1p(-d / (1 - h))


def _elu_slope(module: nn.Module, h: Tensor) -> Tensor:
    return torch.where(h > 0, torch.ones_like(h), h + float(module.alpha))  # type: ignore[arg-type]


def _elu_step(module: nn.Module, h: Tensor, d: Tensor) -> Tensor:
    alpha, moved = float(module.alpha), h + d  # type: ignore[arg-type]

    def negative(h: Tensor) -> Tensor:
        return _log1p(h.clamp(max=0) / alpha)

    below = _log1p(d / (h + alpha).clamp(min=1 - _INSIDE))
    crossing = torch.where(moved > 0, moved, negative(moved)) - torch.where(h > 0, h, negative(h))
    return torch.where((h > 0) & (moved > 0), d, torch.where((h <= 0) & (moved <= 0), below, crossing))


_STEPS: Mapping[type[nn.Module], Step] = MappingProxyType(
    {
        nn.Identity: lambda module, h, d: d,
        nn.LeakyReLU: _leaky_step,
        nn.Tanh: _tanh_step,
        nn.Sigmoid: _sigmoid_step,
        nn.ELU: _elu_step,
    }
)
_SLOPES: Mapping[type[nn.Module], Callable[[nn.Module, Tensor], Tensor]] = MappingProxyType(
    {
        nn.Identity: lambda module, h: torch.ones_like(h),
        nn.LeakyReLU: _leaky_slope,
        nn.Tanh: lambda module, h: 1 - h.square(),
        nn.Sigmoid: lambda module, h: h * (1 - h),
        nn.ELU: _elu_slope,
    }
)


def activation_step(activation: nn.Module, h: Tensor, d: Tensor) -> Tensor:
    """act^{-1}(h + d) - act^{-1}(h), elementwise, written so that a small d loses no digits to h.

    >>> activation_step(nn.LeakyReLU(0.5), torch.tensor([-1.0, 2.0]), torch.tensor([0.5, 1.0]))
    tensor([1., 1.])
    """
    return _STEPS[type(activation)](activation, h, d)


def activation_slope(activation: nn.Module, h: Tensor) -> Tensor:
    """act'(a) at the a with act(a) = h; elementwise.

    >>> activation_slope(nn.LeakyReLU(0.5), torch.tensor([-1.0, 2.0]))
    tensor([0.5000, 1.0000])
    """
    return _SLOPES[type(activation)](activation, h)


def exact_inverse(activation: nn.Module, weight: Tensor, h: Tensor, d: Tensor) -> Tensor:
    """f^{-1}(h + d) - f^{-1}(h) for f(x) = act(W x + b); for a W with fewer rows than columns, the shortest such step.

    That step is what the inverse of the square layer gives whose added rows are orthogonal to those of W, and whose
    added outputs keep their values: the auxiliary outputs of GAIT-prop.

    Args:
        activation: act.
        weight: W (O, I), O <= I, of full rank.
        h: (..., O).
        d: same shape.

    Returns:
        (..., I).

    >>> exact_inverse(nn.Identity(), torch.tensor([[2.0, 0.0]]), torch.zeros(1, 1), torch.ones(1, 1))
    tensor([[0.5000, 0.0000]])
    """
    step = activation_step(activation, h, d)
    if weight.shape[0] == weight.shape[1]:
        back: Tensor = torch.linalg.solve(weight, step.mT).mT
        return back
    return torch.linalg.solve(weight @ weight.T, step.mT).mT @ weight


def soft_orthogonality(weight: Tensor) -> Tensor:
    """||W W^T - diag(W W^T)||^2: sum of the squared inner products of different rows, each pair twice.

    >>> soft_orthogonality(torch.tensor([[1.0, 1.0], [0.0, 2.0]]))
    tensor(8.)
    """
    gram = weight @ weight.T
    return (gram - gram.diagonal().diag()).square().sum()


def orthogonal_(model: nn.Module, *, gain: float = 1.0) -> nn.Module:
    """Draw the weight of every Linear of a model anew, with orthogonal rows or columns of length gain; biases 0.

    Args:
        model: changed in place, and returned.
        gain: > 0.

    >>> layer = orthogonal_(nn.Linear(3, 3))
    >>> torch.allclose(layer.weight @ layer.weight.T, torch.eye(3), atol=1e-5)
    True
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.orthogonal_(module.weight, gain=gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


@dataclass(frozen=True)
class InvertibleLayer:
    """A part that is act(W x + b).

    Args:
        linear: the layer.
        activation: what follows it.
    """

    linear: nn.Linear
    activation: nn.Module

    def __call__(self, h: Tensor) -> Tensor:
        """What the part makes of its input."""
        made: Tensor = self.activation(self.linear(h))
        return made


def invertible_layer(site: Site) -> InvertibleLayer:
    """The one layer of a part, for a site above the first.

    Raises:
        MethodError: the part is not one Linear and at most one known activation after it, or the layer widens, or it
            narrows before the last part.
    """
    layers = list(_leaves(site.modules()))
    kinds = [type(module) for _, module in layers]
    names = ", ".join(f"{name} ({type(module).__name__})" for name, module in layers) or "none"
    known = [index for index, kind in enumerate(kinds) if kind is nn.Linear]
    if len(known) != 1 or known[0] != 0 or len(layers) > 2:
        raise MethodError(
            f"part {site.part} calls the layers {names}; an exact inverse needs one Linear and at most one activation "
            "after it: cut after every activation"
        )
    if len(layers) == 2 and kinds[1] not in _STEPS:
        raise MethodError(
            f"part {site.part}: {layers[1][0]} ({kinds[1].__name__}) has no known inverse; use one of "
            + ", ".join(sorted(kind.__name__ for kind in _STEPS))
        )
    name, linear = layers[0]
    assert isinstance(linear, nn.Linear)
    activation = layers[1][1] if len(layers) == 2 else nn.Identity()
    slope = getattr(activation, "negative_slope", getattr(activation, "alpha", 1.0))
    if not slope > 0:
        raise MethodError(f"part {site.part}: {layers[1][0]} ({activation}) has no inverse; give it a factor above 0")
    rows, columns = linear.weight.shape
    if rows > columns or (rows != columns and not site.last):
        raise MethodError(
            f"part {site.part}: {name} maps {columns} features to {rows} and has no exact inverse; expected equal "
            "widths (fewer outputs in the last part alone): change the width, or cut elsewhere"
        )
    return InvertibleLayer(linear, activation)


def _leaves(modules: Sequence[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Module]]:
    """The layers of a part in order, out of their Sequentials; those that change no value of a row are left out."""
    for name, module in modules:
        if isinstance(module, nn.Sequential):
            yield from _leaves([(f"{name}.{inner}", child) for inner, child in module.named_children()])
        elif not isinstance(module, nn.Identity | nn.Flatten) and not (isinstance(module, nn.Dropout) and not module.p):
            yield name, module
