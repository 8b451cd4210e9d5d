"""Lifted proximal operator machines: activations as fixed points of the activation function, then their weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...method import Family, Locality, Reach, Reference, Solver, SolverMethod
from ...objective import Loss
from .lifted_solver import LiftedSolver
from .lpom_updates import ProximalBlocks
from .part_runs import counts, positive

if TYPE_CHECKING:
    from ...partition import Partition

__all__ = ["LPOM"]


@dataclass(frozen=True, kw_only=True)
class LPOM(SolverMethod):
    """Block coordinate descent on a ReLU perceptron with penalties whose optimality conditions are the forward pass.

    With Z_l = X_{l-1} W_l^T + b_l, phi = relu below the output and the identity at it, X_L a variable too,

        F = 1/N sum_n loss(x_nL, y_n) + sum_l mu_l/N [1^T f(X_l) 1 + 1^T g(Z_l) 1 + 1/2 ||X_l - Z_l||^2],
        f(x) = int_0^x (phi^{-1}(y) - y) dy,    g(z) = int_0^z (phi(y) - y) dy.

    A step starts at the forward pass of its mini-batch; a sweep iterates, from the output to the first layer,
    X_l <- phi(Z_l - mu_{l+1}/mu_l (phi(Z_{l+1}) - X_{l+1}) W_{l+1}), at the output X_L <- Z_L - loss'(X_L)/mu_L, then
    takes every (W_l, b_l) down F by accelerated proximal gradient steps in the metric of the layer's input; phi' is
    never asked for. F never rises. The loss is 1/2 ||x - onehot(y)||^2, or the cross entropy; the trainer's task loss
    is not used. The loss of a part is its layers' share of F. For ReLU the bracket is the bound of `FenchelLifted`;
    what differs is the free output and how activations are found.

    Args:
        mu: mu_L, weight of the output's penalty, > 0.
        ratio: mu_{l+1}/mu_l, > 0.
        proximal: weight of 1/2 the squared distance of new weights from the present ones, > 0; larger is slower, and
            forgets less of other mini-batches.
        sweeps: over all blocks in a step, >= 1.
        activation_steps: iterations of an activation block, >= 1.
        weight_steps: gradient steps of a layer's weights, >= 1.
        cross_entropy: the loss at the output; otherwise squared error.

    Raises:
        MethodError: an argument is out of range, or the model is no chain of Linear and ReLU in float32 or float64.

    Departs from the paper: where the iteration need not contract, mu_{l+1}/mu_l ||W_{l+1}||^2 >= 1, it goes a part of
    the way to the same fixed points, so that F does not rise; weights have a proximal term in place of a pseudo-inverse
    of the layer's input; a bias beside every W_l; ReLU is the only activation.

    References:
        J. Li, C. Fang, Z. Lin, Lifted Proximal Operator Machines, AAAI 2019, https://arxiv.org/abs/1811.01501

    >>> LPOM(mu=20.0).ratio
    1.0
    """

    mu: float = 1.0
    ratio: float = 1.0
    proximal: float = 0.1
    sweeps: int = 1
    activation_steps: int = 10
    weight_steps: int = 3
    cross_entropy: bool = False

    name: ClassVar[str] = "lpom"
    family: ClassVar[Family] = Family.AUXILIARY
    locality: ClassVar[Locality] = Locality(Reach.TARGETS)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "J. Li, C. Fang, Z. Lin",
            "Lifted Proximal Operator Machines",
            "AAAI",
            2019,
            "https://arxiv.org/abs/1811.01501",
        ),
    )

    def __post_init__(self) -> None:
        positive("LPOM", mu=self.mu, ratio=self.ratio, proximal=self.proximal)
        counts("LPOM", sweeps=self.sweeps, activation_steps=self.activation_steps, weight_steps=self.weight_steps)

    def solver(self, partition: Partition, *, loss: Loss, seed: int) -> Solver:
        """Sweeps over the blocks of every mini-batch; the task loss and the seed play no part."""
        blocks = ProximalBlocks(
            mu=self.mu,
            ratio=self.ratio,
            proximal=self.proximal,
            sweeps=self.sweeps,
            activation_steps=self.activation_steps,
            weight_steps=self.weight_steps,
        )
        return LiftedSolver(partition, blocks, cross_entropy=self.cross_entropy, who="LPOM")
