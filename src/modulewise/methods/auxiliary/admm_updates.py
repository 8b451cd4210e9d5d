"""ADMM of Taylor et al. for a ReLU perceptron: its objective, and the closed form of every block's minimum.

Layers l = 1..L, samples are rows, a_0 = X (N, in). z_l stands for the pre-activation a_{l-1} W_l^T + b_l, a_l for
relu(z_l); all are free variables:

    F = 1/2 ||z_L - Y||^2 + <z_L, lambda> + sum_l beta/2 (||z_l - a_{l-1} W_l^T - b_l||^2 + ridge ||W_l, b_l||^2)
        + sum_{l<L} gamma/2 ||a_l - relu(z_l)||^2

In `Blocks` the z are the pre-activations, the a the activations a_0..a_{L-1}, lambda is the multiplier. The minima over
a hidden a_l and z_l are those of block coordinate descent without proximal term (`bcd_updates`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .bcd_updates import Penalties, hidden_activation, hidden_preactivation
from .blocks import Blocks, inner_products, with_ones

__all__ = [
    "Weights",
    "admm_objective",
    "admm_output",
    "admm_shares",
    "admm_sweep",
    "least_squares_map",
    "regularised_inverse",
]


@dataclass(frozen=True)
class Weights:
    """Weights of the terms of F.

    Args:
        beta: of z_l = a_{l-1} W_l^T + b_l, > 0.
        gamma: of a_l = relu(z_l), > 0.
        ridge: of the squared norm of weights and biases, in units of beta, >= 0.
    """

    beta: float = 1.0
    gamma: float = 10.0
    ridge: float = 0.0


def regularised_inverse(rows: Tensor, ridge: float) -> Tensor:
    """(R^T R + ridge I)^-1 of rows R (N, in), in float64 (in, in); the pseudo-inverse where the matrix is singular.

    Directions that the rows do not have, to rounding, are left out: a least-squares step then leaves the weights there
    as they are.

    >>> regularised_inverse(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), 0.0)
    tensor([[0.2500, 0.0000],
            [0.0000, 0.0000]], dtype=torch.float64)
    """
    values, vectors = torch.linalg.eigh(inner_products(rows.double()))
    values = values.clamp(min=0) + ridge
    least = torch.finfo(values.dtype).eps * len(values) * values.max()
    scales = torch.where(values > least, values.clamp(min=least).reciprocal(), 0.0)
    return (vectors * scales) @ vectors.T


def least_squares_map(
    z: Tensor,
    below: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    ridge: float,
    inverse: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(W, b) = argmin ||z - a W^T - b||^2 + ridge (||W||^2 + ||b||^2); without ridge (W, b) = z pinv(a, 1).

    Args:
        z: (N, out).
        below: a (N, in).
        weight: the present W (out, in), from which the change is solved for.
        bias: the present b (out,), or None.
        ridge: >= 0.
        inverse: `regularised_inverse` of the rows, with ones where there is a bias, where it is known.
    """
    rows = below if bias is None else with_ones(below)
    inverse = regularised_inverse(rows, ridge) if inverse is None else inverse
    present = weight if bias is None else torch.cat([weight, bias[:, None]], 1)
    residual = z - F.linear(below, weight, bias)
    # Solved for the change: what rounding leaves is taken up by the next step.
    pull = (residual.T @ rows).double() - ridge * present.double()
    found = (present.double() + pull @ inverse).to(weight)
    return (found, None) if bias is None else (found[:, :-1], found[:, -1])


def admm_output(targets: Tensor, affine: Tensor, multiplier: Tensor, beta: float) -> Tensor:
    """z_L = argmin_z 1/2 ||z - Y||^2 + <z, lambda> + beta/2 ||z - affine||^2, affine = a_{L-1} W_L^T + b_L."""
    return (targets - multiplier + beta * affine) / (1 + beta)


def admm_shares(blocks: Blocks, targets: Tensor, weights: Weights) -> Tensor:
    """Every layer's terms of F, (L,); the last layer's hold the loss and the multiplier's term as well.

    >>> from modulewise.methods.auxiliary.blocks import initial_blocks
    >>> layers = (torch.ones(3, 2), torch.ones(1, 3))
    >>> blocks = initial_blocks(torch.ones(1, 2), layers, (None, None), multiplier=True)
    >>> admm_shares(blocks, torch.tensor([[4.0]]), Weights())
    tensor([0., 2.])
    """
    assert blocks.multiplier is not None
    shares = []
    top = len(blocks.weights) - 1
    for layer, (weight, bias, z) in enumerate(zip(blocks.weights, blocks.biases, blocks.preactivations, strict=True)):
        size = weight.square().sum() + (0.0 if bias is None else bias.square().sum())
        misfit = (z - F.linear(blocks.activations[layer], weight, bias)).square().sum()
        share = weights.beta / 2 * (misfit + weights.ridge * size)
        if layer < top:
            share = share + weights.gamma / 2 * (blocks.activations[layer + 1] - z.relu()).square().sum()
        else:
            share = share + (z - targets).square().sum() / 2 + (z * blocks.multiplier).sum()
        shares.append(share)
    return torch.stack(shares)


def admm_objective(blocks: Blocks, targets: Tensor, weights: Weights) -> Tensor:
    """F, a scalar; without a step of the multiplier a sweep never raises it."""
    return admm_shares(blocks, targets, weights).sum()


def admm_sweep(
    blocks: Blocks, targets: Tensor, weights: Weights, *, warm: bool = False, inverse: Tensor | None = None
) -> Blocks:
    """One iteration: W_l, a_l, z_l from the first layer to the last but one, then W_L, z_L, lambda.

    Args:
        blocks: the present variables, with a multiplier.
        targets: Y (N, classes).
        weights: of the terms.
        warm: leave the multiplier as it is.
        inverse: `regularised_inverse` of the input, which no iteration changes; computed where left out.

    >>> from modulewise.methods.auxiliary.blocks import initial_blocks
    >>> x, y = torch.ones(2, 3), torch.ones(2, 1)
    >>> blocks = initial_blocks(x, (torch.ones(4, 3), torch.ones(1, 4)), (None, None), multiplier=True)
    >>> after = admm_sweep(blocks, y, Weights(), warm=True)
    >>> bool(admm_objective(after, y, Weights()) < admm_objective(blocks, y, Weights()))
    True
    """
    assert blocks.multiplier is not None
    w, b = list(blocks.weights), list(blocks.biases)
    z, a = list(blocks.preactivations), list(blocks.activations)
    penalties = Penalties(gamma=weights.gamma, rho=weights.beta, alpha=0.0)
    top = len(w) - 1
    for layer in range(top + 1):
        known = inverse if layer == 0 else None
        w[layer], b[layer] = least_squares_map(
            z[layer], a[layer], w[layer], b[layer], ridge=weights.ridge, inverse=known
        )
        affine = F.linear(a[layer], w[layer], b[layer])
        if layer == top:
            z[layer] = admm_output(targets, affine, blocks.multiplier, weights.beta)
        else:
            a[layer + 1] = hidden_activation(z[layer], z[layer + 1], w[layer + 1], b[layer + 1], penalties)
            z[layer] = hidden_preactivation(a[layer + 1], affine, z[layer], penalties)
    after = Blocks(tuple(w), tuple(b), tuple(z), tuple(a), blocks.multiplier)
    return after if warm else replace(after, multiplier=blocks.multiplier + weights.beta * (z[top] - affine))
