"""dlADMM of Wang et al. for a ReLU perceptron: its augmented Lagrangian, and the step of every block.

Layers l = 1..L, samples are rows, a_0 = X (N, in), z_l stands for a_{l-1} W_l^T + b_l and a_l for relu(z_l). Hidden
layers are tied by penalties, the output layer by a multiplier u:

    L = sum_n CE(z_L, y) + <u, r> + rho/2 ||r||^2
        + sum_{l<L} nu/2 (||z_l - a_{l-1} W_l^T - b_l||^2 + ||a_l - relu(z_l)||^2)
    r = z_L - a_{L-1} W_L^T - b_L

In `Blocks` the z are the pre-activations, the a the activations a_0..a_{L-1}, u is the multiplier. Weights and hidden
a_l take one gradient step under a quadratic upper bound, whose curvature backtracking finds; all others are at their
exact minimum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .bcd_updates import Penalties, hidden_preactivation
from .blocks import Blocks
from .softmax_proximal import softmax_proximal

__all__ = [
    "Curvatures",
    "activation_step",
    "backtracked",
    "dladmm_lagrangian",
    "dladmm_shares",
    "dladmm_sweep",
    "weight_step",
]


@dataclass(frozen=True)
class Curvatures:
    """Weights of the penalties, and where backtracking starts.

    Args:
        rho: of the output layer's constraint, > 0.
        nu: of the hidden layers' penalties, > 0.
        theta: first guess of the curvature along a step of the weights, > 0.
        tau: first guess along a step of the activations, > 0.
    """

    rho: float
    nu: float
    theta: float
    tau: float


def backtracked(curvature: Tensor, start: float) -> Tensor:
    """The first of start, 2 start, 4 start, ... that is not below the curvature, a scalar.

    For a quadratic f with gradient G the condition of backtracking, f(w - G/t) <= f(w) - <G, G>/t + t/2 ||G/t||^2,
    holds exactly where t is not below the curvature <G, H G> / <G, G>; so no loop needs to try.

    >>> backtracked(torch.tensor(5.0), 1.5), backtracked(torch.tensor(0.0), 1.5)
    (tensor(6.), tensor(1.5000))
    """
    doublings = (curvature / start).clamp(min=1).log2().ceil()
    return start * torch.exp2(doublings)


def _curvature(gradient: Tensor, moved: Tensor, weight: float) -> Tensor:
    """The curvature weight ||moved||^2 / ||gradient||^2; zero for no gradient."""
    size = gradient.square().sum()
    return torch.where(size > 0, weight * moved.square().sum() / size.clamp(min=torch.finfo(size.dtype).tiny), 0.0)


def weight_step(
    residual: Tensor, below: Tensor, weight: Tensor, *, penalty: float, start: float
) -> tuple[Tensor, Tensor]:
    """The step W - G / theta, G = -penalty R^T a the gradient of penalty/2 ||R||^2, and R after it.

    Args:
        residual: R = z - a W^T - b (+ u / rho at the output), (N, out).
        below: a (N, in).
        weight: W (out, in).
        penalty: nu, or rho at the output.
        start: the first guess of theta, which backtracking doubles.
    """
    gradient = -penalty * residual.T @ below
    moved = below @ gradient.T
    theta = backtracked(_curvature(gradient, moved, penalty), start)
    return weight - gradient / theta, residual + moved / theta


def activation_step(
    a: Tensor, z: Tensor, residual: Tensor, weight: Tensor, *, nu: float, penalty: float, start: float
) -> tuple[Tensor, Tensor]:
    """The step a - G / tau, G the gradient of penalty/2 ||R||^2 + nu/2 ||a - relu(z)||^2, and R after it.

    Args:
        a: (N, features).
        z: what it is the activation of, (N, features).
        residual: R of the layer above, (N, out).
        weight: W of the layer above, (out, features).
        nu: weight of a = relu(z).
        penalty: weight of the layer above: nu, or rho at the output.
        start: the first guess of tau, which backtracking doubles.
    """
    gradient = nu * (a - z.relu()) - penalty * residual @ weight
    moved = gradient @ weight.T
    tau = backtracked(nu + _curvature(gradient, moved, penalty), start)
    return a - gradient / tau, residual + moved / tau


def dladmm_shares(blocks: Blocks, targets: Tensor, curvatures: Curvatures) -> Tensor:
    """Every layer's terms of the augmented Lagrangian, (L,); the last layer's hold the loss and the multiplier's term.

    >>> from modulewise.methods.auxiliary.blocks import initial_blocks
    >>> layers = (torch.ones(3, 2), torch.zeros(2, 3))
    >>> blocks = initial_blocks(torch.ones(1, 2), layers, (None, None), multiplier=True)
    >>> dladmm_shares(blocks, torch.tensor([[1.0, 0.0]]), Curvatures(rho=1.0, nu=1.0, theta=1.0, tau=1.0))
    tensor([0.0000, 0.6931])
    """
    assert blocks.multiplier is not None
    shares = []
    for layer, z in enumerate(blocks.preactivations):
        r = z - F.linear(blocks.activations[layer], blocks.weights[layer], blocks.biases[layer])
        if layer < len(blocks.weights) - 1:
            misfit = r.square().sum() + (blocks.activations[layer + 1] - z.relu()).square().sum()
            shares.append(curvatures.nu / 2 * misfit)
        else:
            loss = (z.logsumexp(1) - (z * targets).sum(1)).sum()
            shares.append(loss + (blocks.multiplier * r).sum() + curvatures.rho / 2 * r.square().sum())
    return torch.stack(shares)


def dladmm_lagrangian(blocks: Blocks, targets: Tensor, curvatures: Curvatures) -> Tensor:
    """The augmented Lagrangian, a scalar; with rho above 1 no sweep after the first raises it."""
    return dladmm_shares(blocks, targets, curvatures).sum()


class _Sweep:
    """One sweep in progress: each step with the newest others, and what it changes in its layer's residual."""

    def __init__(self, blocks: Blocks, targets: Tensor, curvatures: Curvatures) -> None:
        assert blocks.multiplier is not None
        self.w, self.b = list(blocks.weights), list(blocks.biases)
        self.z, self.a = list(blocks.preactivations), list(blocks.activations)
        self.u, self.targets, self.c = blocks.multiplier, targets, curvatures
        self.top = len(self.w) - 1
        self.pulled = self.u / curvatures.rho
        layers = zip(self.z, self.a, self.w, self.b, strict=True)
        self.r = [z - F.linear(a, w, b) for z, a, w, b in layers]
        self.r[-1] = self.r[-1] + self.pulled

    def penalty(self, layer: int) -> float:
        return self.c.rho if layer == self.top else self.c.nu

    def move_z(self, layer: int) -> None:
        centre = self.z[layer] - self.r[layer]
        if layer == self.top:
            self.z[layer] = softmax_proximal(centre, self.targets, self.c.rho)
        else:
            equal = Penalties(gamma=self.c.nu, rho=self.c.nu, alpha=0.0)
            self.z[layer] = hidden_preactivation(self.a[layer + 1], centre, self.z[layer], equal)
        self.r[layer] = self.z[layer] - centre

    def move_a(self, layer: int) -> None:
        """The activation that this layer reads, where it is not the input."""
        self.a[layer], self.r[layer] = activation_step(
            self.a[layer],
            self.z[layer - 1],
            self.r[layer],
            self.w[layer],
            nu=self.c.nu,
            penalty=self.penalty(layer),
            start=self.c.tau,
        )

    def move_b(self, layer: int) -> None:
        """To its minimum, where the residuals have no mean."""
        bias, mean = self.b[layer], self.r[layer].mean(0)
        if bias is not None:
            self.b[layer], self.r[layer] = bias + mean, self.r[layer] - mean

    def move_w(self, layer: int) -> None:
        self.w[layer], self.r[layer] = weight_step(
            self.r[layer], self.a[layer], self.w[layer], penalty=self.penalty(layer), start=self.c.theta
        )


def dladmm_sweep(blocks: Blocks, targets: Tensor, curvatures: Curvatures) -> Blocks:
    """One iteration: z_l, b_l, W_l, a_{l-1} from the last layer down, W_l, b_l, z_l, a_l up again, then u += rho r.

    >>> from modulewise.methods.auxiliary.blocks import initial_blocks
    >>> x, y = torch.ones(2, 3), torch.eye(2)
    >>> blocks = initial_blocks(x, (torch.ones(4, 3), torch.zeros(2, 4)), (None, None), multiplier=True)
    >>> dladmm_sweep(blocks, y, Curvatures(rho=1.0, nu=1.0, theta=1.0, tau=1.0)).preactivations[-1]
    tensor([[ 0.3374, -0.3374],
            [-0.3374,  0.3374]])
    """
    state = _Sweep(blocks, targets, curvatures)
    for layer in range(state.top, -1, -1):
        if layer < state.top:
            state.move_a(layer + 1)
        state.move_z(layer)
        state.move_b(layer)
        state.move_w(layer)
    for layer in range(state.top + 1):
        state.move_w(layer)
        state.move_b(layer)
        state.move_z(layer)
        if layer < state.top:
            state.move_a(layer + 1)
    # The residual of the output holds u / rho already: rho times it is u + rho r.
    return Blocks(tuple(state.w), tuple(state.b), tuple(state.z), tuple(state.a), curvatures.rho * state.r[state.top])
