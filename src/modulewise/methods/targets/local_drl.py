"""Local difference reconstruction: feedback learns the transposed Jacobian, so that targets follow the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import nn

from ...errors import MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from .difference_target_propagation import by_difference, first_target
from .inverses import TransposedFeedback, flat_output
from .output_targets import GradientTarget
from .targets_objective import ByOutput, Targeted, jacobian_matching

__all__ = ["LocalDRL"]


@dataclass(frozen=True, kw_only=True)
class LocalDRL(PartwiseMethod):
    """Difference target propagation whose feedback g_k learns by the local difference reconstruction loss.

    E[-2 e.(g(f(h + e)) - g(f(h))) + ||g(f(h) + n) - g(f(h))||^2] / (noise^2 P), e, n ~ N(0, noise^2), P positions of h
    (1 for (N, D), H W for images), whose minimum for small noise is where the Jacobian of g_k is the transpose of that
    of f_k. `rounds` updates on the batch come before any part learns. Then t_K = o - step_size N dL/do on the raw
    output, t_{k-1} = h_{k-1} + g_k(t_k) - g_k(h_k), and parts minimise ||h_k - t_k||^2 / 2: step_size times the true
    gradient, as step_size goes to 0. The last part minimises the task loss. Losses are batch means of sums over
    features.

    Args:
        outputs: number of elements of one sample's output (the classes, in classification), >= 1.
        step_size: length of the step to the target of the output, > 0.
        noise: standard deviation of e and n, in units of h, > 0.
        rounds: updates of the feedback on every batch, >= 1.
        inverse: site -> module back to h_in, from h_out (N, ...) or, for the last part, from (N, outputs); the default
            is `TransposedFeedback`, the part's last activation and then one linear layer or 3x3 convolution.

    Raises:
        MethodError: an argument is out of range.

    References:
        M. Ernoult, F. Normandin, A. Moudgil, S. Spinney, E. Belilovsky, I. Rish, B. Richards, Y. Bengio, Towards
        scaling difference target propagation by learning backprop targets, ICML 2022, https://arxiv.org/abs/2201.13415

    Departs from the paper: the loss is divided by noise^2 and positions, so that one learning rate serves all parts
    (the published rates, times both, lie between 0.001 and 0.005); noise and rounds are those of all parts (there each
    part has its own); below pooling the default feedback spreads evenly instead of to the place of the maximum; the
    last part minimises the task loss instead of ||o - t_K||^2 / 2.

    >>> LocalDRL(outputs=10).rounds
    5
    """

    outputs: int
    step_size: float = 0.7
    noise: float = 0.1
    rounds: int = 5
    inverse: Callable[[Site], nn.Module] | None = None

    name: ClassVar[str] = "l-drl"
    family: ClassVar[Family] = Family.TARGETS
    locality: ClassVar[Locality] = Locality(Reach.TARGETS)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "M. Ernoult, F. Normandin, A. Moudgil, S. Spinney, E. Belilovsky, I. Rish, B. Richards, Y. Bengio",
            "Towards scaling difference target propagation by learning backprop targets",
            "ICML",
            2022,
            "https://arxiv.org/abs/2201.13415",
        ),
    )

    def __post_init__(self) -> None:
        if not (self.outputs >= 1 and self.step_size > 0 and self.noise > 0 and self.rounds >= 1):
            raise MethodError(f"{self} was given; give outputs >= 1, step_size > 0, noise > 0, rounds >= 1")

    def objective(self, site: Site) -> Objective:
        """The task loss at the top, targets below it, feedback for every part but the first."""
        positions = 1 if site.input is None else math.prod(site.input.spatial)
        lesson = partial(jacobian_matching, noise=self.noise, positions=positions)
        own = None if site.input is None else self._feedback(site)
        if not site.last:
            return Targeted(own, rule=by_difference, lesson=lesson, rounds=self.rounds, scale=0.5)
        target = GradientTarget(self.outputs, first=partial(first_target, step_size=self.step_size))
        return ByOutput(site, own, target=target, rule=by_difference, lesson=lesson, rounds=self.rounds)

    def _feedback(self, site: Site) -> nn.Module:
        assert site.input is not None
        if self.inverse is not None:
            return self.inverse(site)
        output = flat_output(site.input, self.outputs) if site.last else site.boundary
        return TransposedFeedback(site.input, output, modules=site.modules())
