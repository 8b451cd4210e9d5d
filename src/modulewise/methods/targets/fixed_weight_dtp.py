"""Fixed-weight difference target propagation: targets come down through random feedback that never learns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import nn

from ...errors import MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from .difference_target_propagation import by_difference, first_target
from .inverses import FixedFeedback, flat_output
from .output_targets import GradientTarget
from .targets_objective import ByOutput, Targeted

__all__ = ["FixedWeightDTP"]


@dataclass(frozen=True, kw_only=True)
class FixedWeightDTP(PartwiseMethod):
    """Fixed-weight difference target propagation: t_{k-1} = h_{k-1} + tanh(B_k t_k) - tanh(B_k h_k), B_k fixed.

    Entries of B_k, one matrix between all elements of a sample, are drawn once from the uniform distribution on
    [-scale, scale]. t_K = o - step_size N dL/do on the raw output; earlier parts minimise ||h_k - t_k||^2 / 2 (batch
    mean of the sum over features), the last the task loss. Nothing but the network is trained.

    Args:
        outputs: number of elements of one sample's output (the classes, in classification), >= 1.
        step_size: length of the step to the target of the output, > 0.
        scale: half the width of the distribution of B's entries, > 0.

    Raises:
        MethodError: an argument is out of range.

    References:
        T. Shibuya, N. Inoue, R. Kawakami, I. Sato, Fixed-weight difference target propagation, AAAI 2023,
        https://arxiv.org/abs/2212.10352

    Departs from the paper: the last part minimises the task loss instead of ||o - t_K||^2; feedback has no batch
    normalisation (which its best variant has, in the network too); published scales are powers of ten, at 256 units.

    >>> FixedWeightDTP(outputs=10).scale
    0.1
    """

    outputs: int
    step_size: float = 0.04
    scale: float = 0.1

    name: ClassVar[str] = "fw-dtp"
    family: ClassVar[Family] = Family.TARGETS
    locality: ClassVar[Locality] = Locality(Reach.TARGETS)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "T. Shibuya, N. Inoue, R. Kawakami, I. Sato",
            "Fixed-weight difference target propagation",
            "AAAI",
            2023,
            "https://arxiv.org/abs/2212.10352",
        ),
    )

    def __post_init__(self) -> None:
        if not (self.outputs >= 1 and self.step_size > 0 and self.scale > 0):
            raise MethodError(f"{self} was given; give outputs >= 1, step_size > 0, scale > 0")

    def objective(self, site: Site) -> Objective:
        """The task loss at the top, targets below it, fixed feedback for every part but the first."""
        own = None if site.input is None else self._feedback(site)
        if not site.last:
            return Targeted(own, rule=by_difference, lesson=None, scale=0.5)
        target = GradientTarget(self.outputs, first=partial(first_target, step_size=self.step_size))
        return ByOutput(site, own, target=target, rule=by_difference, lesson=None)

    def _feedback(self, site: Site) -> nn.Module:
        assert site.input is not None
        output = flat_output(site.input, self.outputs) if site.last else site.boundary
        return FixedFeedback(site.input, output, scale=self.scale)
