"""ADMM: a perceptron trained without gradients, by closed-form minima and a multiplier of the output layer."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, ClassVar

from ...errors import MethodError
from ...method import Family, Locality, Reach, Reference, Solver, SolverMethod
from ...objective import Loss
from .admm_solver import MultiplierSweeps
from .admm_updates import Weights
from .full_batch_solver import FullBatchSolver

if TYPE_CHECKING:
    from ...partition import Partition

__all__ = ["ADMM"]


@dataclass(frozen=True, kw_only=True)
class ADMM(SolverMethod):
    """Alternating minimisation of a ReLU perceptron's squared error taken apart, with Bregman steps of a multiplier.

    F = 1/2 ||z_L - Y||^2 + <z_L, lambda> + sum_l beta/2 (||z_l - a_{l-1} W_l^T - b_l||^2 + ridge ||W_l, b_l||^2)
    + sum_{l<L} gamma/2 ||a_l - relu(z_l)||^2, with Y one-hot, z_l and a_l free variables for every sample. A step goes
    through the layers upwards: W_l = z_l pinv(a_{l-1}), a_l, z_l, each the exact minimum, z_l entry by entry; at the
    top lambda += beta (z_L - a_{L-1} W_L^T - b_L), but for the first `warm_start` steps, in which F never rises. The
    batch must be the same full batch in every step (another one is refused: its samples would have no variables); the
    task loss is not used. The loss of a part is its layers' share of F (a sum over samples, which the multiplier's term
    can make negative).

    Args:
        beta: weight of z_l = a_{l-1} W_l^T + b_l, > 0.
        gamma: weight of a_l = relu(z_l), > 0.
        ridge: weight of the squared weights and biases in units of beta, >= 0; 0 for plain least squares, where
            directions that the samples do not have keep the weights they had.
        warm_start: steps before the multiplier moves, >= 0.

    Raises:
        MethodError: an argument is out of range, the model is no chain of Linear and ReLU, or the batch changes.

    References:
        G. Taylor, R. Burmeister, Z. Xu, B. Singh, A. Patel, T. Goldstein, Training neural networks without gradients: a
        scalable ADMM approach, ICML 2016, https://arxiv.org/abs/1605.02026.

    Departs from the paper: squared error to one-hot labels instead of a hinge for each output, so that every step is a
    linear one and one layer ends in least squares; penalties are halved, so that lambda's step is the gradient of its
    penalty; layers have biases (a column of ones); z and a start as the model's own forward pass instead of at random;
    `ridge`. The length of the warm start, which the paper leaves open, is an argument.

    >>> ADMM(warm_start=4).gamma
    10.0
    """

    beta: float = 1.0
    gamma: float = 10.0
    ridge: float = 0.0
    warm_start: int = 10

    full_batch: ClassVar[bool] = True
    family: ClassVar[Family] = Family.AUXILIARY
    locality: ClassVar[Locality] = Locality(Reach.TARGETS)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "G. Taylor, R. Burmeister, Z. Xu, B. Singh, A. Patel, T. Goldstein",
            "Training neural networks without gradients: a scalable ADMM approach",
            "ICML",
            2016,
            "https://arxiv.org/abs/1605.02026",
        ),
    )

    def __post_init__(self) -> None:
        if not (0 < self.beta < inf and 0 < self.gamma < inf and 0 <= self.ridge < inf):
            raise MethodError(
                f"beta={self.beta}, gamma={self.gamma}, ridge={self.ridge} were given; give finite numbers, beta and "
                "gamma above 0, ridge 0 or more"
            )
        if not self.warm_start >= 0:
            raise MethodError(f"warm_start={self.warm_start} was given; give a number of steps, 0 or more")

    def solver(self, partition: Partition, *, loss: Loss, seed: int) -> Solver:
        """Iterations over the partition's linear layers; the loss and the seed play no part."""
        weights = Weights(beta=self.beta, gamma=self.gamma, ridge=self.ridge)
        return FullBatchSolver(partition, MultiplierSweeps(weights, warm_start=self.warm_start))
