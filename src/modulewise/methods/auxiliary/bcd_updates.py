"""Block coordinate descent for a ReLU perceptron: its objective, and the closed form of every block's minimum.

Layers l = 1..L with weights W_l (out, in) and biases b_l (out,); samples are rows, V_0 = X (N, in). U_l
stands for the pre-activation V_{l-1} W_l^T + b_l and V_l for the activation s_l(U_l), with s_l = relu for l <
L and the identity for l = L. All are free variables, tied by penalties:

    F = 1/2 ||V_L - Y||^2 + sum_l gamma/2 ||V_l - s_l(U_l)||^2 + rho/2 ||U_l - V_{l-1} W_l^T - b_l||^2

Blocks that F does not bound strongly by itself (V_L, hidden U_l, weights) carry alpha/2 times the squared
distance to their present value. Every function below returns the exact minimum over one block, the others
fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from .blocks import Blocks, inner_products, with_ones

__all__ = [
    "Penalties",
    "affine_map",
    "bcd_objective",
    "bcd_shares",
    "bcd_sweep",
    "hidden_activation",
    "hidden_preactivation",
    "output_activation",
    "output_preactivation",
]


@dataclass(frozen=True)
class Penalties:
    """Weights of the penalties.

    Args:
        gamma: of V_l = s_l(U_l), > 0.
        rho: of U_l = V_{l-1} W_l^T + b_l, > 0.
        alpha: of the proximal terms, >= 0.
    """

    gamma: float = 1.0
    rho: float = 1.0
    alpha: float = 5.0


def bcd_shares(blocks: Blocks, targets: Tensor, penalties: Penalties) -> Tensor:
    """Every layer's terms of F, (L,); the last layer's hold the distance to the targets (N, out) as well.

    >>> from modulewise.methods.auxiliary.blocks import initial_blocks
    >>> blocks = initial_blocks(torch.ones(1, 2), (torch.ones(3, 2), torch.ones(1, 3)), (None, None))
    >>> bcd_shares(blocks, torch.tensor([[4.0]]), Penalties())
    tensor([0., 2.])
    """
    shares = []
    layers = zip(blocks.weights, blocks.biases, blocks.preactivations, pairwise(blocks.activations), strict=True)
    for layer, (weight, bias, u, (below, v)) in enumerate(layers, start=1):
        last = layer == len(blocks.weights)
        share = penalties.gamma / 2 * (v - (u if last else u.relu())).square().sum()
        share = share + penalties.rho / 2 * (u - F.linear(below, weight, bias)).square().sum()
        shares.append(share + (v - targets).square().sum() / 2 if last else share)
    return torch.stack(shares)


def bcd_objective(blocks: Blocks, targets: Tensor, penalties: Penalties) -> Tensor:
    """F, a scalar; a sweep never raises it."""
    return bcd_shares(blocks, targets, penalties).sum()


def output_activation(targets: Tensor, u: Tensor, present: Tensor, penalties: Penalties) -> Tensor:
    """V_L = argmin_V 1/2 ||V - Y||^2 + gamma/2 ||V - U_L||^2 + alpha/2 ||V - present||^2."""
    gamma, alpha = penalties.gamma, penalties.alpha
    return (targets + gamma * u + alpha * present) / (1 + gamma + alpha)


def output_preactivation(v: Tensor, affine: Tensor, penalties: Penalties) -> Tensor:
    """U_L = argmin_U gamma/2 ||V_L - U||^2 + rho/2 ||U - affine||^2, affine = V_{L-1} W_L^T + b_L."""
    gamma, rho = penalties.gamma, penalties.rho
    return (gamma * v + rho * affine) / (gamma + rho)


def hidden_activation(u: Tensor, above: Tensor, weight: Tensor, bias: Tensor | None, penalties: Penalties) -> Tensor:
    """V_l = argmin_V gamma/2 ||V - relu(U_l)||^2 + rho/2 ||U_{l+1} - V W^T - b||^2, W and b of layer l + 1.

    V = relu(U_l) + (U_{l+1} - relu(U_l) W^T - b) (W W^T + gamma/rho I)^-1 W: a system of the layer above's width, and
    no difference of large numbers.
    """
    active = u.relu()
    identity = torch.eye(len(weight), dtype=u.dtype, device=u.device)
    pull = torch.linalg.solve(weight @ weight.T + penalties.gamma / penalties.rho * identity, weight)
    return active + (above - F.linear(active, weight, bias)) @ pull


def hidden_preactivation(v: Tensor, affine: Tensor, present: Tensor, penalties: Penalties) -> Tensor:
    """U_l = argmin_U gamma/2 ||V_l - relu(U)||^2 + rho/2 ||U - affine||^2 + alpha/2 ||U - present||^2.

    Entry by entry: the better of the minimum over U <= 0 and the minimum over U >= 0.
    """
    gamma, rho, alpha = penalties.gamma, penalties.rho, penalties.alpha
    pull = rho * affine + alpha * present
    negative = (pull / (rho + alpha)).clamp(max=0)
    positive = ((gamma * v + pull) / (gamma + rho + alpha)).clamp(min=0)

    def cost(u: Tensor) -> Tensor:
        away = rho * (u - affine).square() + alpha * (u - present).square()
        return gamma * (v - u.relu()).square() + away

    return torch.where(cost(negative) <= cost(positive), negative, positive)


def affine_map(
    u: Tensor,
    below: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    penalties: Penalties,
    *,
    affine: Tensor | None = None,
    products: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(W, b) = argmin rho/2 ||U - V W^T - b||^2 + alpha/2 (||W - present W||^2 + ||b - present b||^2), jointly.

    Args:
        u: U (N, out).
        below: V (N, in).
        weight: the present W (out, in).
        bias: the present b (out,), or None.
        penalties: rho and alpha.
        affine: the present V W^T + b (N, out), where it is known; computed where left out.
        products: `inner_products(below)` with ones where there is a bias, where it is known.
    """
    rows = below if bias is None else with_ones(below)
    products = inner_products(rows) if products is None else products
    residual = u - (F.linear(below, weight, bias) if affine is None else affine)
    identity = torch.eye(rows.shape[1], dtype=u.dtype, device=u.device)
    system = penalties.alpha * identity + penalties.rho * products
    # Solved for the change, which is small: in float32 the present weights then lose no digits to the system.
    change = torch.linalg.solve(system, penalties.rho * rows.T @ residual).T
    if bias is None:
        return weight + change, None
    return weight + change[:, :-1], bias + change[:, -1]


def bcd_sweep(blocks: Blocks, targets: Tensor, penalties: Penalties, *, products: Tensor | None = None) -> Blocks:
    """One sweep from the last layer to the first: V_l, U_l, (W_l, b_l), each at its exact minimum.

    Args:
        blocks: the present variables.
        targets: Y (N, out).
        penalties: weights of the penalties.
        products: `input_products(blocks)`, which no sweep changes; computed where left out.

    >>> from modulewise.methods.auxiliary.blocks import initial_blocks
    >>> x, y = torch.ones(2, 3), torch.ones(2, 1)
    >>> blocks = initial_blocks(x, (torch.ones(4, 3), torch.ones(1, 4)), (None, None))
    >>> after = bcd_sweep(blocks, y, Penalties())
    >>> bool(bcd_objective(after, y, Penalties()) < bcd_objective(blocks, y, Penalties()))
    True
    """
    w, b = list(blocks.weights), list(blocks.biases)
    u, v = list(blocks.preactivations), list(blocks.activations)
    top = len(w) - 1
    for layer in range(top, -1, -1):
        affine = F.linear(v[layer], w[layer], b[layer])
        if layer == top:
            v[layer + 1] = output_activation(targets, u[layer], v[layer + 1], penalties)
            u[layer] = output_preactivation(v[layer + 1], affine, penalties)
        else:
            v[layer + 1] = hidden_activation(u[layer], u[layer + 1], w[layer + 1], b[layer + 1], penalties)
            u[layer] = hidden_preactivation(v[layer + 1], affine, u[layer], penalties)
        known = products if layer == 0 else None
        w[layer], b[layer] = affine_map(
            u[layer], v[layer], w[layer], b[layer], penalties, affine=affine, products=known
        )
    return Blocks(tuple(w), tuple(b), tuple(u), tuple(v))
