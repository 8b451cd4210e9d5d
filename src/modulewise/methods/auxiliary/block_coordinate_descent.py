"""Block coordinate descent: a perceptron trained without gradients, by closed-form updates of one block at a time."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, ClassVar

from ...errors import MethodError
from ...method import Family, Locality, Reach, Reference, Solver, SolverMethod
from ...objective import Loss
from .bcd_solver import CoordinateSweeps
from .bcd_updates import Penalties
from .full_batch_solver import FullBatchSolver

if TYPE_CHECKING:
    from ...partition import Partition

__all__ = ["BCD"]


@dataclass(frozen=True, kw_only=True)
class BCD(SolverMethod):
    """Block coordinate descent on a three-penalty form of a ReLU perceptron's squared error.

    F = 1/2 ||V_L - Y||^2 + sum_l gamma/2 ||V_l - s_l(U_l)||^2 + rho/2 ||U_l - V_{l-1} W_l^T - b_l||^2, with Y
    one-hot, U_l and V_l free variables for every sample. A step is one sweep from the last layer to the
    first, every block at its exact minimum, so F never rises. The batch must be the same full batch in every
    step; the task loss is not used. The loss of a part is its layers' share of F (a sum over samples).

    Args:
        gamma: weight of V_l = s_l(U_l), > 0.
        rho: weight of U_l = V_{l-1} W_l^T + b_l, > 0.
        alpha: weight of the proximal terms, > 0; larger is slower and steadier.

    Raises:
        MethodError: an argument is out of range, the model is no chain of Linear and ReLU, or the batch
        changes.

    References:
        J. Zeng, T. T.-K. Lau, S. Lin, Y. Yao, Global convergence of block coordinate descent in deep
        learning, ICML 2019, https://arxiv.org/abs/1803.00225. Here W and b are one block, solved jointly.

    >>> BCD(alpha=1.0).gamma
    1.0
    """

    gamma: float = 1.0
    rho: float = 1.0
    alpha: float = 5.0

    full_batch: ClassVar[bool] = True
    family: ClassVar[Family] = Family.AUXILIARY
    locality: ClassVar[Locality] = Locality(Reach.TARGETS)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "J. Zeng, T. T.-K. Lau, S. Lin, Y. Yao",
            "Global convergence of block coordinate descent in deep learning",
            "ICML",
            2019,
            "https://arxiv.org/abs/1803.00225",
        ),
    )

    def __post_init__(self) -> None:
        if not all(0 < value < inf for value in (self.gamma, self.rho, self.alpha)):
            raise MethodError(
                f"gamma={self.gamma}, rho={self.rho}, alpha={self.alpha} were given; give finite numbers above 0"
            )

    def solver(self, partition: Partition, *, loss: Loss, seed: int) -> Solver:
        """Sweeps over the partition's linear layers; the loss and the seed play no part."""
        return FullBatchSolver(partition, CoordinateSweeps(Penalties(gamma=self.gamma, rho=self.rho, alpha=self.alpha)))
