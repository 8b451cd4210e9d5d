"""dlADMM: alternating directions for deep networks, backward and forward, by gradient steps with backtracking."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, ClassVar

from ...errors import MethodError
from ...method import Family, Locality, Reach, Reference, Solver, SolverMethod
from ...objective import Loss
from .dladmm_solver import BackwardForwardSweeps
from .dladmm_updates import Curvatures
from .full_batch_solver import FullBatchSolver

if TYPE_CHECKING:
    from ...partition import Partition

__all__ = ["DlADMM"]


@dataclass(frozen=True, kw_only=True)
class DlADMM(SolverMethod):
    """Alternating directions on a ReLU perceptron's cross entropy taken apart, without solving a linear system.

    L = sum_n CE(z_L, y) + <u, r> + rho/2 ||r||^2
    + sum_{l<L} nu/2 (||z_l - a_{l-1} W_l^T - b_l||^2 + ||a_l - relu(z_l)||^2), r = z_L - a_{L-1} W_L^T - b_L, with z_l
    and a_l free variables for every sample. A step goes down from the last layer (a_l, z_l, b_l, W_l) and up again
    (W_l, b_l, z_l, a_l), then u += rho r. z_l and b_l are at their exact minimum; W_l and a_l take a gradient step
    under a quadratic upper bound, whose curvature backtracking doubles from `theta` and `tau` on until it is one. With
    rho > 1, twice the Lipschitz constant of the cross entropy's gradient, L never rises after the first step. The batch
    must be the same full batch in every step (another one is refused: its samples would have no variables); the task
    loss is not used. The loss of a part is its layers' share of L (a sum over samples, which the multiplier's term can
    make negative).

    Args:
        rho: weight of the output layer's constraint, > 0.
        nu: weight of the hidden layers' penalties, > 0.
        theta: first guess of the curvature for weights, > 0; smaller ones never step too short.
        tau: first guess of the curvature for activations, > 0.

    Raises:
        MethodError: an argument is out of range, the model is no chain of Linear and ReLU, or the batch changes.

    References:
        J. Wang, F. Yu, X. Chen, L. Zhao, ADMM for efficient deep learning with global convergence, KDD 2019,
        https://arxiv.org/abs/1905.13611.

    Departs from the paper: the minimum over z_L is found to rounding by Newton's method on one number a sample, where
    the paper runs FISTA to a tolerance; the condition of backtracking is solved for the number of doublings, which
    accepts the same curvature as trying; no regulariser of the weights; z and a start as the model's own forward pass.

    >>> DlADMM(rho=2.0).nu
    1.0
    """

    rho: float = 1.0
    nu: float = 1.0
    theta: float = 1e-6
    tau: float = 1e-6

    full_batch: ClassVar[bool] = True
    family: ClassVar[Family] = Family.AUXILIARY
    locality: ClassVar[Locality] = Locality(Reach.TARGETS)
    name: ClassVar[str] = "dladmm"
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "J. Wang, F. Yu, X. Chen, L. Zhao",
            "ADMM for efficient deep learning with global convergence",
            "KDD",
            2019,
            "https://arxiv.org/abs/1905.13611",
        ),
    )

    def __post_init__(self) -> None:
        if not all(0 < value < inf for value in (self.rho, self.nu, self.theta, self.tau)):
            raise MethodError(
                f"rho={self.rho}, nu={self.nu}, theta={self.theta}, tau={self.tau} were given; give finite numbers "
                "above 0"
            )

    def solver(self, partition: Partition, *, loss: Loss, seed: int) -> Solver:
        """Iterations over the partition's linear layers; the loss and the seed play no part."""
        curvatures = Curvatures(rho=self.rho, nu=self.nu, theta=self.theta, tau=self.tau)
        return FullBatchSolver(partition, BackwardForwardSweeps(curvatures))
