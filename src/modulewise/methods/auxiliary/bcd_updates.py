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

__all__ = [
    "Blocks",
    "Penalties",
    "affine_map",
    "bcd_objective",
    "bcd_shares",
    "bcd_sweep",
    "hidden_activation",
    "hidden_preactivation",
    "initial_blocks",
    "output_activation",
    "output_preactivation",
]


@dataclass(frozen=True)
class Penalties:
    """Weights of the penalties.

    Args:
        gamma: of V_l = s_l(U_l), > 0.
        rho: of U_l = V_{l-1} W_l^T + b_l, > 0.
        alpha: of the proximal terms, > 0.
    """

    gamma: float = 1.0
    rho: float = 1.0
    alpha: float = 5.0


@dataclass(frozen=True)
class Blocks:
    """All variables of the objective.

    Args:
        weights: W_1..W_L, (out, in).
        biases: b_1..b_L, (out,); None for a layer without.
        preactivations: U_1..U_L, (N, out).
        activations: V_0..V_L; V_0 = X is fixed.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    preactivations: tuple[Tensor, ...]
    activations: tuple[Tensor, ...]


def initial_blocks(x: Tensor, weights: tuple[Tensor, ...], biases: tuple[Tensor | None, ...]) -> Blocks:
    """The blocks of a forward pass on x (N, in), where all penalties are zero.

    >>> initial_blocks(torch.ones(1, 2), (torch.ones(1, 2), -torch.ones(1, 1)), (None, None)).activations[-1]
    tensor([[-2.]])
    """
    preactivations: list[Tensor] = []
    activations = [x]
    for weight, bias in zip(weights, biases, strict=True):
        preactivations.append(F.linear(activations[-1], weight, bias))
        hidden = len(preactivations) < len(weights)
        activations.append(preactivations[-1].relu() if hidden else preactivations[-1].clone())
    return Blocks(weights, biases, tuple(preactivations), tuple(activations))


def bcd_shares(blocks: Blocks, targets: Tensor, penalties: Penalties) -> Tensor:
    """Every layer's terms of F, (L,); the last layer's hold the distance to the targets (N, out) as well.

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
    """V_l = argmin_V gamma/2 ||V - relu(U_l)||^2 + rho/2 ||U_{l+1} - V W^T - b||^2, W and b of layer l + 1."""
    gamma, rho = penalties.gamma, penalties.rho
    residual = above if bias is None else above - bias
    system = gamma * torch.eye(weight.shape[1], dtype=u.dtype, device=u.device) + rho * weight.T @ weight
    return torch.linalg.solve(system, (gamma * u.relu() + rho * residual @ weight).T).T


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
    u: Tensor, below: Tensor, weight: Tensor, bias: Tensor | None, penalties: Penalties
) -> tuple[Tensor, Tensor | None]:
    """(W, b) = argmin rho/2 ||U - V W^T - b||^2 + alpha/2 (||W - present W||^2 + ||b - present b||^2), jointly."""
    present = weight if bias is None else torch.cat([weight, bias[:, None]], 1)
    rows = below if bias is None else torch.cat([below, below.new_ones(len(below), 1)], 1)
    identity = torch.eye(rows.shape[1], dtype=u.dtype, device=u.device)
    system = penalties.alpha * identity + penalties.rho * rows.T @ rows
    # Solved for the change, which is small: in float32 the present weights then lose no digits to the system.
    change = torch.linalg.solve(system, penalties.rho * rows.T @ (u - rows @ present.T)).T
    solution = present + change
    return (solution, None) if bias is None else (solution[:, :-1], solution[:, -1])


def bcd_sweep(blocks: Blocks, targets: Tensor, penalties: Penalties) -> Blocks:
    """One sweep from the last layer to the first: V_l, U_l, (W_l, b_l), each at its exact minimum.

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
        w[layer], b[layer] = affine_map(u[layer], v[layer], w[layer], b[layer], penalties)
    return Blocks(tuple(w), tuple(b), tuple(u), tuple(v))
