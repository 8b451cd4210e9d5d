"""What lifted networks share: the variables of a ReLU perceptron with free activations, and its loss at the output.

Layers l = 1..L with maps M_l = [W_l b_l], (out, in + 1), or W_l alone; samples are rows, X_0 (N, in) is the input. X_l
is a free variable that stands for relu(Z_l), Z_l = X_{l-1} W_l^T + b_l, l < L; Z_L is the output.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .blocks import with_ones

__all__ = [
    "Lifted",
    "OutputLoss",
    "affine",
    "input_weight",
    "lifted_forward",
    "map_rows",
    "replaced",
    "squared_norm_bound",
]


@dataclass(frozen=True)
class Lifted:
    """The variables of a lifted network.

    Args:
        maps: M_1..M_L, (out, in + 1) with the bias in the last column, or (out, in).
        free: which columns of each map may move, (in + 1,) or (in,).
        activations: X_0..X_{L-1}, or X_0..X_L where the output is a variable too; (N, width).
    """

    maps: tuple[Tensor, ...]
    free: tuple[Tensor, ...]
    activations: tuple[Tensor, ...]

    @property
    def layers(self) -> int:
        """L."""
        return len(self.maps)

    def preactivation(self, layer: int) -> Tensor:
        """Z_l = X_{l-1} W_l^T + b_l, l = 1..L: (N, out)."""
        return affine(self.activations[layer - 1], self.maps[layer - 1])

    def with_activation(self, layer: int, value: Tensor) -> Lifted:
        """The same with another X_l."""
        return replace(self, activations=replaced(self.activations, layer, value))

    def with_map(self, layer: int, value: Tensor) -> Lifted:
        """The same with another M_l, l = 1..L."""
        return replace(self, maps=replaced(self.maps, layer - 1, value))


@dataclass(frozen=True)
class OutputLoss:
    """A convex loss of every sample at the output.

    Args:
        targets: one-hot rows (N, classes).
        cross_entropy: the cross entropy of softmax(z); otherwise 1/2 ||z - target||^2.

    >>> loss = OutputLoss(torch.tensor([[1.0, 0.0]]), cross_entropy=False)
    >>> loss.value(torch.zeros(1, 2)), loss.error(torch.zeros(1, 2)).tolist()
    (tensor([0.5000]), [[-1.0, 0.0]])
    """

    targets: Tensor
    cross_entropy: bool

    @property
    def curvature(self) -> float:
        """What no second derivative exceeds: diag(p) - p p^T has no eigenvalue above 1/2."""
        return 0.5 if self.cross_entropy else 1.0

    def value(self, z: Tensor) -> Tensor:
        """Every sample's loss, (N,)."""
        if self.cross_entropy:
            return z.logsumexp(1) - (z * self.targets).sum(1)
        return (z - self.targets).square().sum(1) / 2

    def error(self, z: Tensor) -> Tensor:
        """The gradient of every sample's loss, (N, classes)."""
        return (z.softmax(1) if self.cross_entropy else z) - self.targets

    def working_target(self, z: Tensor) -> Tensor:
        """T with loss(z') <= loss(z) + curvature/2 (||z' - T||^2 - ||z - T||^2) for all z'; equal for squared error."""
        return z - self.error(z) / self.curvature


def replaced(values: tuple[Tensor, ...], index: int, value: Tensor) -> tuple[Tensor, ...]:
    """The tuple with another value at an index."""
    return (*values[:index], value, *values[index + 1 :])


def input_weight(x: Tensor, map_: Tensor) -> Tensor:
    """W of a map M = [W b] that reads x (N, in): (out, in)."""
    return map_[:, : x.shape[1]]


def affine(x: Tensor, map_: Tensor) -> Tensor:
    """X W^T + b of x (N, in) and a map (out, in + 1), or X W^T of (out, in).

    >>> affine(torch.ones(1, 2), torch.tensor([[1.0, 2.0, 3.0]])), affine(torch.ones(1, 2), torch.ones(1, 2))
    (tensor([[6.]]), tensor([[2.]]))
    """
    return F.linear(x, input_weight(x, map_), map_[:, -1] if map_.shape[1] > x.shape[1] else None)


def map_rows(x: Tensor, map_: Tensor) -> Tensor:
    """Rows R (N, in + 1) or (N, in) with R M^T = affine(x, M)."""
    return with_ones(x) if map_.shape[1] > x.shape[1] else x


def lifted_forward(lifted: Lifted, *, output: bool = False) -> Lifted:
    """The same with the activations of a forward pass, the output among them where asked for.

    >>> maps = (torch.ones(1, 2), -torch.ones(1, 2))
    >>> lifted_forward(Lifted(maps, (), (torch.ones(1, 1),)), output=True).activations
    (tensor([[1.]]), tensor([[2.]]), tensor([[-3.]]))
    """
    activations = [lifted.activations[0]]
    for map_ in lifted.maps[:-1]:
        activations.append(affine(activations[-1], map_).relu())
    if output:
        activations.append(affine(activations[-1], lifted.maps[-1]))
    return replace(lifted, activations=tuple(activations))


def squared_norm_bound(weight: Tensor, *, squarings: int = 4) -> Tensor:
    """A number not below ||W||_2^2, and at most n^(1 / 2^(squarings + 1)) times as large, n the smaller side of W.

    The largest eigenvalue of a positive semidefinite G is at most ||G||_F, and the square root of that of G^2.

    >>> squared_norm_bound(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    tensor(9.0000)
    """
    small = weight.shape[0] <= weight.shape[1]
    gram = weight @ weight.T if small else weight.T @ weight
    logarithm = gram.new_zeros(())
    for index in range(squarings + 1):
        norm = gram.norm().clamp_min(torch.finfo(gram.dtype).tiny)
        logarithm = logarithm + norm.log() / 2**index
        gram = gram / norm
        gram = gram @ gram
    return logarithm.exp()
