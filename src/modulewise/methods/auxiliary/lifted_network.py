"""Lifted networks: ReLU as a non-negative least-squares problem, trained by least squares of one block at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...errors import MethodError
from ...method import Family, Locality, Reach, Reference, Solver, SolverMethod
from ...objective import Loss
from .lifted_network_updates import LeastSquaresBlocks
from .lifted_solver import LiftedSolver
from .part_runs import counts, positive

if TYPE_CHECKING:
    from ...partition import Partition

__all__ = ["LiftedNetwork"]


@dataclass(frozen=True, kw_only=True)
class LiftedNetwork(SolverMethod):
    """Block coordinate descent on a ReLU perceptron whose activations are non-negative free variables.

    relu(z) = argmin_{x >= 0} (x - z)^2 becomes a penalty, Z_l = X_{l-1} W_l^T + b_l:

        F = 1/N sum_n loss(z_nL, y_n) + penalty/(2N) sum_{l<L} ||X_l - Z_l||^2 + decay/2 sum_l ||W_l||^2,    X_l >= 0.

    A step starts at the forward pass of its mini-batch; a sweep takes every X_l, from the last to the first, to its
    non-negative least squares (coordinate descent), then every (W_l, b_l) to its ridge regression. F never rises. The
    loss is 1/2 ||z - onehot(y)||^2, or the cross entropy, of which a block minimises the parabola that bounds it; the
    trainer's task loss is not used. The loss of a part is its layers' share of F. The penalty is not zero at a forward
    pass, but 1/2 min(z, 0)^2: units that are off are drawn to 0 from below.

    Args:
        penalty: weight of X_l = relu(Z_l), > 0.
        decay: weight of the squared weights, >= 0.
        proximal: weight of 1/2 the squared distance of new weights from the present ones, > 0; larger is slower, and
            forgets less of other mini-batches.
        sweeps: over all blocks in a step, >= 1.
        passes: of coordinate descent over an activation block, >= 1.
        cross_entropy: the loss at the output; otherwise squared error.

    Raises:
        MethodError: an argument is out of range, or the model is no chain of Linear and ReLU in float32 or float64.

    Departs from the paper: mini-batches, with the proximal term that they need, instead of the whole training set; X_l
    starts at the forward pass in every step; a bias beside every W_l; the weights of all penalties are equal.

    References:
        A. Askari, G. Negiar, R. Sambharya, L. El Ghaoui, Lifted Neural Networks, arXiv 2018,
        https://arxiv.org/abs/1805.01532

    >>> LiftedNetwork(penalty=2.0).sweeps
    1
    """

    penalty: float = 1.0
    decay: float = 0.0
    proximal: float = 0.3
    sweeps: int = 1
    passes: int = 3
    cross_entropy: bool = False

    family: ClassVar[Family] = Family.AUXILIARY
    locality: ClassVar[Locality] = Locality(Reach.TARGETS)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "A. Askari, G. Negiar, R. Sambharya, L. El Ghaoui",
            "Lifted Neural Networks",
            "arXiv",
            2018,
            "https://arxiv.org/abs/1805.01532",
        ),
    )

    def __post_init__(self) -> None:
        positive("LiftedNetwork", penalty=self.penalty, proximal=self.proximal)
        counts("LiftedNetwork", sweeps=self.sweeps, passes=self.passes)
        if not 0 <= self.decay < float("inf"):
            raise MethodError(f"decay={self.decay} was given to LiftedNetwork; give a number of at least 0")

    def solver(self, partition: Partition, *, loss: Loss, seed: int) -> Solver:
        """Sweeps over the blocks of every mini-batch; the task loss and the seed play no part."""
        blocks = LeastSquaresBlocks(
            penalty=self.penalty, decay=self.decay, proximal=self.proximal, sweeps=self.sweeps, passes=self.passes
        )
        return LiftedSolver(partition, blocks, cross_entropy=self.cross_entropy, who="LiftedNetwork")
