"""The blocks of a Fenchel lifted network: a biconvex bound for ReLU, minimised over activations and over weights.

    F = 1/N sum_n loss(z_nL, y_n) + penalty/N sum_{l<L} B(X_l, Z_l),    X_l >= 0,
    B(v, u) = 1/2 v^2 + 1/2 max(u, 0)^2 - u v,

with Z_l = X_{l-1} W_l^T + b_l. By Fenchel's inequality B >= 0 for v >= 0, and zero if and only if v = relu(u).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .lifted_chain import Lifted, OutputLoss, affine, input_weight, squared_norm_bound
from .lifted_ridge import accelerated, fitted_map, stiffness
from .lifted_solver import LiftedBlocks

__all__ = ["FenchelBlocks", "fenchel_bound", "fenchel_map"]


def fenchel_bound(v: Tensor, u: Tensor) -> Tensor:
    """B(v, u) = 1/2 v^2 + 1/2 max(u, 0)^2 - u v for v >= 0, element by element, as a sum of two terms >= 0.

    >>> fenchel_bound(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, -2.0, -2.0]))
    tensor([0.0000, 0.0000, 2.5000])
    """
    return (v - u.relu()).square() / 2 + v * (-u).relu()


def fenchel_map(x: Tensor, map_: Tensor, above: Tensor, *, weight: float, stiff: Tensor, steps: int) -> Tensor:
    """argmin_M weight/N sum B(above, R M^T) + 1/2 sum_j stiff_j ||M_j - present M_j||^2, by accelerated steps.

    Args:
        x: what the layer reads, (N, in).
        map_: the present M, (out, in + 1) or (out, in).
        above: X of the layer, (N, out), >= 0.
        weight: of the bound, > 0.
        stiff: of every column of M.
        steps: how many, >= 1.
    """
    return fitted_map(
        x,
        map_,
        value=lambda z: weight * fenchel_bound(above, z).sum(0),
        error=lambda z: weight * (z.relu() - above),
        curvature=weight,
        stiff=stiff,
        steps=steps,
    )


@dataclass(frozen=True, kw_only=True)
class FenchelBlocks(LiftedBlocks):
    """Block coordinate descent of F; new weights pay proximal/2 times their squared distance from the present ones.

    Args:
        penalty: of the bounds, > 0.
        proximal: of the distance from the present weights, > 0.
        sweeps: over all blocks, >= 1.
        activation_steps: accelerated projected gradient steps of an activation block, >= 1.
        weight_steps: accelerated proximal gradient steps of a layer's weights, >= 1.
    """

    penalty: float
    proximal: float
    sweeps: int
    activation_steps: int
    weight_steps: int

    def learn(self, lifted: Lifted, loss: OutputLoss) -> Lifted:
        """Sweeps: the activations from the last to the first, then all weights."""
        for _ in range(self.sweeps):
            for layer in range(lifted.layers - 1, 0, -1):
                lifted = lifted.with_activation(layer, self.activation(layer, lifted, loss))
            for layer in range(1, lifted.layers + 1):
                lifted = lifted.with_map(layer, self.map(layer, lifted, loss))
        return lifted

    def activation(self, layer: int, lifted: Lifted, loss: OutputLoss) -> Tensor:
        """X_l = argmin_{X >= 0} penalty B(X, Z_l) + the terms of Z_{l+1} = X W_{l+1}^T + b_{l+1}."""
        x, z, above = lifted.activations[layer], lifted.preactivation(layer), lifted.maps[layer]
        weight = input_weight(x, above)
        last = layer + 1 == lifted.layers
        curvature = loss.curvature if last else self.penalty

        def value(point: Tensor) -> Tensor:
            u = affine(point, above)
            terms = loss.value(u) if last else self.penalty * fenchel_bound(lifted.activations[layer + 1], u).sum(1)
            return self.penalty * fenchel_bound(point, z).sum(1) + terms

        rate = 1 / (self.penalty + curvature * squared_norm_bound(weight))

        def step(point: Tensor) -> Tensor:
            u = affine(point, above)
            error = loss.error(u) if last else self.penalty * (u.relu() - lifted.activations[layer + 1])
            return (point - rate * (self.penalty * (point - z) + error @ weight)).relu()

        return accelerated(x, step=step, value=value, steps=self.activation_steps)

    def map(self, layer: int, lifted: Lifted, loss: OutputLoss) -> Tensor:
        """argmin_M of the layer's terms + proximal/2 ||M - present M||^2."""
        x, map_ = lifted.activations[layer - 1], lifted.maps[layer - 1]
        stiff = stiffness(lifted.free[layer - 1], proximal=self.proximal, like=map_)
        if layer < lifted.layers:
            above = lifted.activations[layer]
            return fenchel_map(x, map_, above, weight=self.penalty, stiff=stiff, steps=self.weight_steps)
        return fitted_map(
            x,
            map_,
            value=lambda z: loss.value(z).sum(0, keepdim=True),
            error=loss.error,
            curvature=loss.curvature,
            stiff=stiff,
            steps=self.weight_steps,
        )

    def shares(self, lifted: Lifted, loss: OutputLoss) -> Tensor:
        """Every layer's terms of F; the last layer's is the loss."""
        shares = []
        for layer in range(1, lifted.layers):
            bound = fenchel_bound(lifted.activations[layer], lifted.preactivation(layer))
            shares.append(self.penalty * bound.sum() / len(bound))
        return torch.stack([*shares, loss.value(lifted.preactivation(lifted.layers)).mean()])
