"""Local propagation: a saddle point in weights, activations and multipliers, searched for by local gradients."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

from ...errors import MethodError
from ...method import Family, Locality, Reach, Reference, Solver, SolverMethod
from ...objective import Loss
from .local_propagation_solver import SaddleSearch, SaddleSettings
from .part_runs import counts, positive

if TYPE_CHECKING:
    from ...partition import Partition

__all__ = ["LocalPropagation"]


@dataclass(frozen=True, kw_only=True)
class LocalPropagation(SolverMethod):
    """Activations are variables, tied to the parts by constraints with multipliers; all learn by local gradients.

    L = loss(f_K(x_{K-1}), y) + 1/N sum_n sum_{k<K} lambda_kn . G(e_kn) + damping/2 ||G(e_kn)||^2 with
    e_k = x_k - f_k(x_{k-1}). An iteration takes all gradients at one point: W goes down dL/dW,
    x <- x - rate N dL/dx, lambda <- lambda + rate G(e). Where x is stationary and feasible, lambda_k = -N dloss/dx_k
    and dL/dW is E2EBP's gradient. G(e) = e, or insensitive to |e| <= epsilon: max(e, eps) - max(-e, eps), or
    max(|e| - eps, 0). The loss of a part is its share of L at the last iteration (lambda . G may be negative).

    Activations and multipliers live for one step: x starts at the forward pass, lambda at 0. The weights' optimisers
    live on. In a step a part makes the same random draws (dropout) in every iteration, and buffers (BatchNorm) are
    updated once, by the forward pass. Parts may read earlier boundaries by skips. With one part and one iteration
    this is E2EBP.

    Args:
        iterations: of the saddle-point search in a step, at least K, or 2 K - 1 without damping; default 10.
        activation_rate: of x, > 0, default 0.1; stable below 2 / (damping (1 + ||df||)^2) or so.
        multiplier_rate: of lambda, > 0, default 2; at most about the damping.
        weight_rate: learning rate of the weights, > 0, default 0.0005.
        damping: weight of the quadratic term, >= 0, default 5; 0 is the paper's L, which circles round its saddle.
        epsilon: violations that are free, >= 0, default 0.
        absolute: G(e) = max(|e| - epsilon, 0).
        adam: Adam for the weights; plain gradient descent otherwise.

    Raises:
        MethodError: a number is out of range, a boundary is in half precision, or there are too many parts for the
            iterations.

    References:
        G. Marra, M. Tiezzi, S. Melacci, A. Betti, M. Maggini, M. Gori, Local Propagation in Constraint-based Neural
        Networks, IJCNN 2020, https://arxiv.org/abs/2002.07720

    Departs from the paper: x and lambda do not outlive their batch, so that batches may be shuffled; a quadratic term
    damps the search (J. Platt, A. Barr, Constrained Differential Optimization, 1987); a part may be several layers.

    >>> import torch, modulewise as mw
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    >>> partition = mw.Partition(model, cuts=["1"], example=torch.randn(2, 4))
    >>> trainer = mw.Trainer(partition, LocalPropagation(), loss=torch.nn.functional.cross_entropy)
    >>> sorted(trainer.step(torch.randn(6, 4), torch.arange(6) % 3))
    [0, 1]
    """

    family: ClassVar[Family] = Family.AUXILIARY
    locality: ClassVar[Locality] = Locality(Reach.GRADIENTS)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "G. Marra, M. Tiezzi, S. Melacci, A. Betti, M. Maggini, M. Gori",
            "Local Propagation in Constraint-based Neural Networks",
            "IJCNN",
            2020,
            "https://arxiv.org/abs/2002.07720",
        ),
    )

    iterations: int = 10
    activation_rate: float = 0.1
    multiplier_rate: float = 2.0
    weight_rate: float = 0.0005
    damping: float = 5.0
    epsilon: float = 0.0
    absolute: bool = False
    adam: bool = True

    def __post_init__(self) -> None:
        positive(
            "LocalPropagation",
            activation_rate=self.activation_rate,
            multiplier_rate=self.multiplier_rate,
            weight_rate=self.weight_rate,
        )
        counts("LocalPropagation", iterations=self.iterations)
        if not (0 <= self.damping < float("inf") and 0 <= self.epsilon < float("inf")):
            raise MethodError(
                f"damping={self.damping}, epsilon={self.epsilon} was given to LocalPropagation; give numbers >= 0"
            )

    def solver(self, partition: Partition, *, loss: Loss, seed: int) -> Solver:
        """The saddle-point search over the partition's parts."""
        return SaddleSearch(partition, loss=loss, seed=seed, settings=SaddleSettings(**asdict(self)))
