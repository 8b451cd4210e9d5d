"""Targets of the output: the label, the label beside fixed random features, or a step down the loss."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...errors import MethodError
from .targets_objective import FirstTarget, OutputTarget

__all__ = ["AuxiliaryTarget", "GradientTarget", "LabelTarget", "class_axis", "label_distribution", "random_features"]


def class_axis(output: Tensor, y: Tensor) -> int:
    """The axis of the classes in an output whose other axes are those of the labels.

    Args:
        output: (N, C), (N, C, ...) or (N, ..., C).
        y: class indices (N,) or (N, ...).

    Raises:
        MethodError: the shapes do not fit.

    >>> class_axis(torch.zeros(2, 5, 7), torch.zeros(2, 5)), class_axis(torch.zeros(2, 7), torch.zeros(2))
    (-1, 1)
    """
    if output.shape[:1] + output.shape[2:] == y.shape:
        return 1
    if output.shape[:-1] == y.shape:
        return -1
    raise MethodError(
        f"an output {tuple(output.shape)} and labels {tuple(y.shape)} were given, expected one label for every place "
        "of the output; give labels (N,) with an output (N, C), (N, ...) with (N, C, ...) or (N, ..., C)"
    )


def label_distribution(output: Tensor, y: Tensor) -> Tensor:
    """The one-hot label, shaped like the output; where the label is -100, the output's own softmax: no move.

    >>> label_distribution(torch.zeros(2, 2), torch.tensor([1, -100])).tolist()
    [[0.0, 1.0], [0.5, 0.5]]
    """
    axis = class_axis(output, y)
    hot = nn.functional.one_hot(y.clamp(min=0).long(), output.shape[axis]).movedim(-1, axis).to(output.dtype)
    return torch.where((y == -100).unsqueeze(axis), output.softmax(axis), hot)


def random_features(h: Tensor, weight: Tensor) -> Tensor:
    """tanh(R h), (N, A), of h (N, ...) with F elements a sample and R (A, F) fixed.

    >>> random_features(torch.zeros(2, 3), torch.ones(4, 3)).shape
    torch.Size([2, 4])
    """
    return torch.tanh(h.flatten(1) @ weight.to(h.dtype).T)


def _integer(y: Any) -> bool:
    if not isinstance(y, Tensor):
        raise MethodError(f"labels were given as {type(y).__name__}; a target of the output needs a tensor of labels")
    return not y.is_floating_point()


def _flat(output: Tensor, outputs: int) -> Tensor:
    flat = output.flatten(1)
    if flat.shape[1] != outputs:
        raise MethodError(f"a sample has {flat.shape[1]} outputs, outputs={outputs} was given; give their number")
    return flat


class LabelTarget(OutputTarget):
    """Integer labels: softmax(o) and the one-hot label. Floating ones: o and the label, or distributions.

    Args:
        outputs: number of elements of one sample's output.
        distribution: floating labels are distributions over the classes (last axis), to be compared with softmax(o).
    """

    def __init__(self, outputs: int, *, distribution: bool = False) -> None:
        super().__init__()
        self._outputs, self._distribution = outputs, distribution

    def seen(self, output: Tensor, h_in: Tensor, y: Any) -> Tensor:
        """softmax(o), or o, (N, E)."""
        if _integer(y):
            output = output.softmax(class_axis(output, y))
        elif self._distribution:
            output = output.softmax(-1)
        return _flat(output, self._outputs)

    def wanted(self, output: Tensor, h_in: Tensor, y: Any, gradient: Tensor | None) -> Tensor:
        """The label, (N, E)."""
        if _integer(y):
            return _flat(label_distribution(output, y), self._outputs)
        if y.shape != output.shape:
            raise MethodError(
                f"an output {tuple(output.shape)} and labels {tuple(y.shape)} were given, expected the same shape; "
                "give floating labels the shape of the output"
            )
        return _flat(y.to(output.dtype), self._outputs)


class AuxiliaryTarget(OutputTarget):
    """[o, z] and [label, z], with z = tanh(R h_in), R fixed and random with entries N(0, 1/F).

    Args:
        inner: what is read and wanted of the output itself.
        features: F, elements of one sample of what enters the part.
        auxiliary: A, number of random features, >= 1.
    """

    weight: Tensor

    def __init__(self, inner: OutputTarget, *, features: int, auxiliary: int) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("weight", torch.randn(auxiliary, features) / features**0.5)

    def seen(self, output: Tensor, h_in: Tensor, y: Any) -> Tensor:
        """[o, z], (N, E + A)."""
        read = self.inner.seen(output, h_in, y)
        return torch.cat([read, random_features(h_in, self.weight).to(read.dtype)], 1)

    def wanted(self, output: Tensor, h_in: Tensor, y: Any, gradient: Tensor | None) -> Tensor:
        """[label, z], (N, E + A)."""
        read = self.inner.wanted(output, h_in, y, gradient)
        return torch.cat([read, random_features(h_in, self.weight).to(read.dtype)], 1)


class GradientTarget(OutputTarget):
    """The raw output o, and one step down the task loss from it.

    Args:
        outputs: number of elements of one sample's output.
        first: makes the target out of o and dL/do.
    """

    by_gradient: ClassVar[bool] = True

    def __init__(self, outputs: int, *, first: FirstTarget) -> None:
        super().__init__()
        self._outputs, self._first = outputs, first

    def seen(self, output: Tensor, h_in: Tensor, y: Any) -> Tensor:
        """The raw output, (N, E)."""
        return _flat(output, self._outputs)

    def wanted(self, output: Tensor, h_in: Tensor, y: Any, gradient: Tensor | None) -> Tensor:
        """The target of the output, (N, E)."""
        assert gradient is not None, "the gradient of the output is made in forward"
        return _flat(self._first(output, gradient), self._outputs)
