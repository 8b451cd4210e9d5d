"""The blocks of a lifted network: non-negative least squares for activations, ridge regression for weights.

    F = 1/N sum_n loss(z_nL, y_n) + penalty/(2N) sum_{l<L} ||X_l - Z_l||^2 + decay/2 sum_l ||W_l||^2,    X_l >= 0,

with Z_l = X_{l-1} W_l^T + b_l: relu(z) = argmin_{x >= 0} (x - z)^2, turned into a penalty. It is not zero at a forward
pass but 1/2 min(z, 0)^2, its minimum over x.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .lifted_chain import Lifted, OutputLoss, affine, input_weight, map_rows
from .lifted_ridge import ridge, stiffness
from .lifted_solver import LiftedBlocks

__all__ = ["LeastSquaresBlocks", "lifted_penalty", "nonnegative_least_squares"]


def lifted_penalty(x: Tensor, z: Tensor) -> Tensor:
    """1/2 (x - z)^2, element by element; over x >= 0 smallest at relu(z), where it is 1/2 min(z, 0)^2.

    >>> lifted_penalty(torch.tensor([1.0, 0.0]), torch.tensor([1.0, -2.0]))
    tensor([0., 2.])
    """
    return (x - z).square() / 2


def nonnegative_least_squares(quadratic: Tensor, linear: Tensor, *, start: Tensor, passes: int) -> Tensor:
    """argmin_{x >= 0} 1/2 x^T Q x - c^T x for every row c, by coordinate descent; no pass raises it.

    Args:
        quadratic: Q (d, d), positive definite.
        linear: C (N, d).
        start: X (N, d), >= 0.
        passes: over all coordinates, >= 1.

    >>> nonnegative_least_squares(torch.eye(2), torch.tensor([[1.0, -1.0]]), start=torch.ones(1, 2), passes=1)
    tensor([[1., 0.]])
    """
    x, c = start.T.clone(), linear.T
    diagonal = quadratic.diagonal()
    for _ in range(passes):
        for j in range(len(x)):
            x[j] += (c[j] - quadratic[j] @ x) / diagonal[j]
            x[j].clamp_(min=0)
    return x.T.contiguous()


@dataclass(frozen=True, kw_only=True)
class LeastSquaresBlocks(LiftedBlocks):
    """Block coordinate descent of F; new weights pay proximal/2 times their squared distance from the present ones.

    Where the loss is no square, a block takes the minimum of the parabola that bounds it and touches it at the present
    output: F does not rise either.

    Args:
        penalty: of X_l = relu(Z_l), > 0.
        decay: of the squared weights, >= 0.
        proximal: of the distance from the present weights, > 0.
        sweeps: over all blocks, >= 1.
        passes: of coordinate descent over an activation block, >= 1.
    """

    penalty: float
    decay: float
    proximal: float
    sweeps: int
    passes: int

    def learn(self, lifted: Lifted, loss: OutputLoss) -> Lifted:
        """Sweeps: the activations from the last to the first, then all weights."""
        for _ in range(self.sweeps):
            for layer in range(lifted.layers - 1, 0, -1):
                lifted = lifted.with_activation(layer, self.activation(layer, lifted, loss))
            for layer in range(1, lifted.layers + 1):
                lifted = lifted.with_map(layer, self.map(layer, lifted, loss))
        return lifted

    def activation(self, layer: int, lifted: Lifted, loss: OutputLoss) -> Tensor:
        """X_l = argmin_{X >= 0} penalty/2 ||X - Z_l||^2 + curvature/2 ||T - X W_{l+1}^T - b_{l+1}||^2."""
        x, above = lifted.activations[layer], lifted.maps[layer]
        weight = input_weight(x, above)
        target, curvature = self._target(layer + 1, lifted, loss)
        identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        quadratic = self.penalty * identity + curvature * weight.T @ weight
        bias = affine(torch.zeros_like(x[:1]), above)
        linear = self.penalty * lifted.preactivation(layer) + curvature * (target - bias) @ weight
        return nonnegative_least_squares(quadratic, linear, start=x, passes=self.passes)

    def map(self, layer: int, lifted: Lifted, loss: OutputLoss) -> Tensor:
        """argmin_M curvature/(2N) ||T - R M^T||^2 + decay/2 ||W||^2 + proximal/2 ||M - present M||^2."""
        x, present, free = lifted.activations[layer - 1], lifted.maps[layer - 1], lifted.free[layer - 1]
        target, curvature = self._target(layer, lifted, loss)
        rows, near = map_rows(x, present), stiffness(free, proximal=self.proximal, like=present)
        decayed = self.decay * (torch.arange(len(near), device=x.device) < x.shape[1]).to(near)
        # Both quadratic terms are one around another point; a frozen column stays where it is.
        centre = torch.where(free, present * self.proximal / (self.proximal + decayed), present)
        change = ridge(rows, weight=curvature / len(x), stiff=near + decayed)(target - rows @ centre.T)
        return centre + change

    def _target(self, layer: int, lifted: Lifted, loss: OutputLoss) -> tuple[Tensor, float]:
        """What Z_l is drawn to, and how strongly."""
        if layer < lifted.layers:
            return lifted.activations[layer], self.penalty
        return loss.working_target(lifted.preactivation(layer)), loss.curvature

    def shares(self, lifted: Lifted, loss: OutputLoss) -> Tensor:
        """Every layer's terms of F; the last layer's are the loss and its decay."""
        shares = []
        for layer in range(1, lifted.layers + 1):
            z, below = lifted.preactivation(layer), lifted.activations[layer - 1]
            if layer < lifted.layers:
                share = self.penalty * lifted_penalty(lifted.activations[layer], z).sum() / len(z)
            else:
                share = loss.value(z).mean()
            weight = input_weight(below, lifted.maps[layer - 1])
            shares.append(share + self.decay / 2 * weight.square().sum())
        return torch.stack(shares)
