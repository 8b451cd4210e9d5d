"""The blocks of a lifted proximal operator machine with ReLU: fixed points for activations, and weights.

    F = 1/N sum_n loss(x_nL, y_n) + sum_l mu_l/N [ 1^T f_l(X_l) 1 + 1^T g_l(Z_l) 1 + 1/2 ||X_l - Z_l||^2 ],
    f(x) = int_0^x (phi^{-1}(y) - y) dy,    g(z) = int_0^z (phi(y) - y) dy,

with Z_l = X_{l-1} W_l^T + b_l and X_L, the output, a variable too. phi is relu below the output: f = 0 for x >= 0,
infinite otherwise, g(z) = -1/2 min(z, 0)^2; at the output phi is the identity and f = g = 0. X_l = phi(Z_l) minimises
the bracket over X_l, and its derivative with respect to Z_l, phi(Z_l) - X_l, is zero there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .fenchel_lifted_updates import fenchel_map
from .lifted_chain import Lifted, OutputLoss, affine, input_weight, lifted_forward, map_rows, squared_norm_bound
from .lifted_ridge import ridge, stiffness
from .lifted_solver import LiftedBlocks

__all__ = ["ProximalBlocks", "damped_fixed_point", "lpom_penalty"]


def lpom_penalty(x: Tensor, z: Tensor) -> Tensor:
    """f(x) + g(z) + 1/2 (x - z)^2 of ReLU for x >= 0, element by element.

    >>> lpom_penalty(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, -2.0, -2.0]))
    tensor([0.0000, 0.0000, 2.5000])
    """
    return (x - z).square() / 2 - z.clamp(max=0).square() / 2


def damped_fixed_point(
    start: Tensor,
    *,
    pull: Callable[[Tensor], Tensor],
    z: Tensor,
    phi: Callable[[Tensor], Tensor],
    slope: Tensor,
    steps: int,
) -> Tensor:
    """X = phi(Z - pull(X)), by iteration; damped where the iteration need not contract.

    It is a proximal gradient step of length 1 on a problem whose gradient X - Z + pull(X) is (1 + slope)-Lipschitz: it
    contracts where slope < 1. Otherwise a step has the length 1/(1 + slope), with the same fixed points, and never
    raises the objective.

    Args:
        start: X (N, d).
        pull: the derivative of what lies above, over mu.
        z: Z (N, d).
        phi: the activation.
        slope: Lipschitz constant of pull, a scalar.
        steps: how many, >= 1.
    """
    length = torch.where(slope < 1, torch.ones_like(slope), 1 / (1 + slope))
    x = start
    for _ in range(steps):
        x = phi(x - length * (x - z + pull(x)))
    return x


def _identity(z: Tensor) -> Tensor:
    return z


@dataclass(frozen=True, kw_only=True)
class ProximalBlocks(LiftedBlocks):
    """Block coordinate descent of F; new weights pay proximal/2 times their squared distance from the present ones.

    Args:
        mu: mu_L, of the output's penalty, > 0.
        ratio: mu_{l+1}/mu_l, > 0.
        proximal: of the distance from the present weights, > 0.
        sweeps: over all blocks, >= 1.
        activation_steps: fixed-point iterations of an activation block, >= 1.
        weight_steps: accelerated proximal gradient steps of a layer's weights, >= 1.
    """

    mu: float
    ratio: float
    proximal: float
    sweeps: int
    activation_steps: int
    weight_steps: int

    def weight(self, layer: int, layers: int) -> float:
        """mu_l, l = 1..L."""
        return self.mu * self.ratio ** (layer - layers)

    def learn(self, lifted: Lifted, loss: OutputLoss) -> Lifted:
        """Sweeps: the activations from the output to the first, then all weights."""
        lifted = lifted_forward(lifted, output=True)
        for _ in range(self.sweeps):
            for layer in range(lifted.layers, 0, -1):
                lifted = lifted.with_activation(layer, self.activation(layer, lifted, loss))
            for layer in range(1, lifted.layers + 1):
                lifted = lifted.with_map(layer, self.map(layer, lifted))
        return lifted

    def activation(self, layer: int, lifted: Lifted, loss: OutputLoss) -> Tensor:
        """X_l = phi(Z_l - mu_{l+1}/mu_l (phi(Z_{l+1}) - X_{l+1}) W_{l+1}); X_L = Z_L - loss'(X_L)/mu_L."""
        x, z = lifted.activations[layer], lifted.preactivation(layer)
        if layer == lifted.layers:
            slope = torch.full_like(z[0, 0], loss.curvature / self.mu)
            return damped_fixed_point(
                x, pull=lambda p: loss.error(p) / self.mu, z=z, phi=_identity, slope=slope, steps=self.activation_steps
            )
        above, target = lifted.maps[layer], lifted.activations[layer + 1]
        weight = input_weight(x, above)
        phi = torch.relu if layer + 1 < lifted.layers else _identity

        def pull(point: Tensor) -> Tensor:
            return self.ratio * (phi(affine(point, above)) - target) @ weight

        slope = self.ratio * squared_norm_bound(weight)
        return damped_fixed_point(x, pull=pull, z=z, phi=torch.relu, slope=slope, steps=self.activation_steps)

    def map(self, layer: int, lifted: Lifted) -> Tensor:
        """argmin_M mu_l/N [1^T g(R M^T) 1 + 1/2 ||X_l - R M^T||^2] + proximal/2 ||M - present M||^2."""
        x, map_, above = lifted.activations[layer - 1], lifted.maps[layer - 1], lifted.activations[layer]
        stiff = stiffness(lifted.free[layer - 1], proximal=self.proximal, like=map_)
        mu = self.weight(layer, lifted.layers)
        if layer < lifted.layers:
            return fenchel_map(x, map_, above, weight=mu, stiff=stiff, steps=self.weight_steps)
        rows = map_rows(x, map_)
        return map_ + ridge(rows, weight=mu / len(rows), stiff=stiff)(above - rows @ map_.T)

    def shares(self, lifted: Lifted, loss: OutputLoss) -> Tensor:
        """Every layer's terms of F; the last layer's hold the loss as well."""
        shares = []
        for layer in range(1, lifted.layers + 1):
            x, z = lifted.activations[layer], lifted.preactivation(layer)
            last = layer == lifted.layers
            terms = (x - z).square() / 2 if last else lpom_penalty(x, z)
            share = self.weight(layer, lifted.layers) * terms.sum() / len(x)
            shares.append(share + loss.value(x).mean() if last else share)
        return torch.stack(shares)
