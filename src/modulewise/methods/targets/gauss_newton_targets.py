"""Exact damped Gauss-Newton targets, which learned feedback approximates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...errors import MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Context, Objective, Signal, Site
from ..objectives import TaskLoss
from .difference_reconstruction import LastPart, target_signal
from .gauss_newton_solver import gauss_newton_step, jacobians

__all__ = ["GaussNewtonTargets"]


class _Solved(Objective):
    """An earlier part: moves to the target that its Jacobian gives."""

    waits = differentiates = True
    looks_ahead = True
    rounds = 1

    def __init__(self, *, damping: float) -> None:
        super().__init__()
        self._damping = damping

    def rehearsed(self, context: Context) -> Mapping[int, Tensor]:
        """The Jacobian of the output with the weights of the forward pass, to the part itself."""
        assert context.ahead is not None
        return {context.part: jacobians(context.ahead, context.h_out)}

    def target(self, context: Context) -> Tensor:
        """The part's target, h + J^T (J J^T + damping I)^-1 (a_target - a)."""
        h = context.h_out.detach()
        [step] = [message for sender, message in context.feedback.items() if sender > context.part]
        move = gauss_newton_step(context.feedback[context.part], step, damping=self._damping)
        return h + move.reshape(h.shape).to(h.dtype)

    def forward(self, context: Context) -> Signal:
        """Squared distance to the target."""
        return target_signal(context, self.target(context), learns=True)


@dataclass(frozen=True, kw_only=True)
class GaussNewtonTargets(PartwiseMethod):
    """Gauss-Newton targets: ||h_k - t_k||^2 with t_k = h_k - J_k^T (J_k J_k^T + damping I)^-1 (a - a_target), exactly.

    a is the model's raw output, a_target = a - step_size N dL/da, and J_k = da/dh_k, for every sample. The last part
    minimises the task loss. Nothing is learned but the parts: these are the targets that the feedback of `DTPDRL` and
    `DirectDTP` approximates. With much damping they point along the gradient, -J^T (a - a_target) / damping.

    Cost: each part before the last runs all later parts once more and back once for every element of the output
    (`Context.ahead`), and solves one M x M system a sample, M the number of outputs; J_k, M times as large as h_k,
    is kept until the part learns. With K parts the work grows with K^2. For few outputs, and as an oracle.

    Args:
        step_size: length of the step from the output to its target, > 0.
        damping: added to the eigenvalues of J J^T, >= 0; 0 for the pseudo-inverse.

    Raises:
        MethodError: an argument is out of range.

    References:
        A. Meulemans, F. S. Carzaniga, J. A. K. Suykens, J. Sacramento, B. F. Grewe, A Theoretical Framework for Target
        Propagation, NeurIPS 2020, https://arxiv.org/abs/2006.14331 (there "GNT"). Departs from the paper: the last part
        follows its true gradient, not step_size times it, and a part here may be several layers.

    >>> GaussNewtonTargets(damping=0.1).step_size
    0.1
    """

    step_size: float = 0.1
    damping: float = 1.0

    name: ClassVar[str] = "gn-targets"
    family: ClassVar[Family] = Family.TARGETS
    locality: ClassVar[Locality] = Locality(Reach.GLOBAL)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "A. Meulemans, F. S. Carzaniga, J. A. K. Suykens, J. Sacramento, B. F. Grewe",
            "A Theoretical Framework for Target Propagation",
            "NeurIPS",
            2020,
            "https://arxiv.org/abs/2006.14331",
        ),
    )

    def __post_init__(self) -> None:
        if not self.step_size > 0 or not self.damping >= 0:
            raise MethodError(
                f"step_size={self.step_size}, damping={self.damping} were given; give step_size > 0 and damping >= 0"
            )

    def objective(self, site: Site) -> Objective:
        """The task loss at the top, exact targets below it."""
        if site.parts == 1:
            return TaskLoss(site.loss)
        return LastPart(site, step_size=self.step_size) if site.last else _Solved(damping=self.damping)
