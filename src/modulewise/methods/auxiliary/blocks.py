"""The variables of a perceptron taken apart: weights, and pre-activations and activations of every sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Blocks", "initial_blocks", "inner_products", "input_products", "with_ones"]


@dataclass(frozen=True)
class Blocks:
    """All variables of an objective on auxiliary variables; samples are rows.

    Args:
        weights: W_1..W_L, (out, in).
        biases: b_1..b_L, (out,); None for a layer without.
        preactivations: U_1..U_L, (N, out); U_l stands for V_{l-1} W_l^T + b_l.
        activations: V_0..V_L, or V_0..V_{L-1} where there is a multiplier; V_l stands for relu(U_l), V_L for U_L; V_0 =
            X is fixed.
        multiplier: (N, classes), of the constraint U_L = V_{L-1} W_L^T + b_L; None where the method has none.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    preactivations: tuple[Tensor, ...]
    activations: tuple[Tensor, ...]
    multiplier: Tensor | None = None


def initial_blocks(
    x: Tensor, weights: tuple[Tensor, ...], biases: tuple[Tensor | None, ...], *, multiplier: bool = False
) -> Blocks:
    """The blocks of a forward pass on x (N, in), where every variable is what it stands for.

    Args:
        x: the input (N, in).
        weights: of every layer.
        biases: of every layer.
        multiplier: whether to have one, zero at first, instead of V_L.

    >>> initial_blocks(torch.ones(1, 2), (torch.ones(1, 2), -torch.ones(1, 1)), (None, None)).activations[-1]
    tensor([[-2.]])
    """
    preactivations: list[Tensor] = []
    activations = [x]
    for weight, bias in zip(weights, biases, strict=True):
        preactivations.append(F.linear(activations[-1], weight, bias))
        hidden = len(preactivations) < len(weights)
        activations.append(preactivations[-1].relu() if hidden else preactivations[-1].clone())
    if not multiplier:
        return Blocks(weights, biases, tuple(preactivations), tuple(activations))
    zeros = torch.zeros_like(preactivations[-1])
    return Blocks(weights, biases, tuple(preactivations), tuple(activations[:-1]), zeros)


def with_ones(rows: Tensor) -> Tensor:
    """The rows (N, in) with a column of ones, whose weight is the bias: (N, in + 1)."""
    return torch.cat([rows, rows.new_ones(len(rows), 1)], 1)


def inner_products(rows: Tensor) -> Tensor:
    """R^T R of rows R (N, in): (in, in)."""
    return rows.T @ rows


def input_products(blocks: Blocks) -> Tensor:
    """`inner_products` of the input, with ones where the first layer has a bias; no step changes it.

    >>> input_products(initial_blocks(torch.ones(3, 1), (torch.ones(1, 1),), (torch.zeros(1),)))
    tensor([[3., 3.],
            [3., 3.]])
    """
    x = blocks.activations[0]
    return inner_products(x if blocks.biases[0] is None else with_ones(x))
