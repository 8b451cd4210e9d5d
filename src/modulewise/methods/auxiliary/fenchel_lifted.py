"""Fenchel lifted networks: a biconvex bound in place of ReLU, minimised over activations and weights in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...method import Family, Locality, Reach, Reference, Solver, SolverMethod
from ...objective import Loss
from .fenchel_lifted_updates import FenchelBlocks
from .lifted_solver import LiftedSolver
from .part_runs import counts, positive

if TYPE_CHECKING:
    from ...partition import Partition

__all__ = ["FenchelLifted"]


@dataclass(frozen=True, kw_only=True)
class FenchelLifted(SolverMethod):
    """Block coordinate descent on a ReLU perceptron with v = relu(u) replaced by a bound that is zero only there.

    B(v, u) = 1/2 v^2 + 1/2 max(u, 0)^2 - u v >= 0 for v >= 0, convex in v and in u. With Z_l = X_{l-1} W_l^T + b_l,

        F = 1/N sum_n loss(z_nL, y_n) + penalty/N sum_{l<L} B(X_l, Z_l),    X_l >= 0,

    for every penalty a lower bound of the task, since all bounds are zero at a forward pass. A step starts there, for
    its mini-batch; a sweep takes every X_l, from the last to the first, down F by accelerated projected gradient steps,
    then every (W_l, b_l) by accelerated proximal gradient steps in the metric of the layer's input. F never rises. The
    loss is the cross entropy, or 1/2 ||z - onehot(y)||^2; the trainer's task loss is not used. The loss of a part is
    its layers' share of F.

    Args:
        penalty: weight of the bounds, > 0.
        proximal: weight of 1/2 the squared distance of new weights from the present ones, > 0; larger is slower, and
            forgets less of other mini-batches.
        sweeps: over all blocks in a step, >= 1.
        activation_steps: gradient steps of an activation block, >= 1.
        weight_steps: gradient steps of a layer's weights, >= 1.
        cross_entropy: the loss at the output; otherwise squared error.

    Raises:
        MethodError: an argument is out of range, or the model is no chain of Linear and ReLU in float32 or float64.

    Departs from the paper: a fixed number of first-order steps for a block, where the authors' code
    (github.com/beeperman/Fenchel_Lifted_Networks) runs L-BFGS to its end; the penalties of all layers are equal, and so
    are the proximal terms, which that code has, but of another weight for each layer.

    References:
        F. Gu, A. Askari, L. El Ghaoui, Fenchel Lifted Networks: A Lagrange Relaxation of Neural Network Training,
        AISTATS 2020, https://arxiv.org/abs/1811.08039

    >>> FenchelLifted(penalty=2.0).cross_entropy
    True
    """

    penalty: float = 1.0
    proximal: float = 0.1
    sweeps: int = 1
    activation_steps: int = 10
    weight_steps: int = 3
    cross_entropy: bool = True

    family: ClassVar[Family] = Family.AUXILIARY
    locality: ClassVar[Locality] = Locality(Reach.TARGETS)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "F. Gu, A. Askari, L. El Ghaoui",
            "Fenchel Lifted Networks: A Lagrange Relaxation of Neural Network Training",
            "AISTATS",
            2020,
            "https://arxiv.org/abs/1811.08039",
        ),
    )

    def __post_init__(self) -> None:
        positive("FenchelLifted", penalty=self.penalty, proximal=self.proximal)
        counts(
            "FenchelLifted", sweeps=self.sweeps, activation_steps=self.activation_steps, weight_steps=self.weight_steps
        )

    def solver(self, partition: Partition, *, loss: Loss, seed: int) -> Solver:
        """Sweeps over the blocks of every mini-batch; the task loss and the seed play no part."""
        blocks = FenchelBlocks(
            penalty=self.penalty,
            proximal=self.proximal,
            sweeps=self.sweeps,
            activation_steps=self.activation_steps,
            weight_steps=self.weight_steps,
        )
        return LiftedSolver(partition, blocks, cross_entropy=self.cross_entropy, who="FenchelLifted")
