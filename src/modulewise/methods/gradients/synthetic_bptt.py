"""Synthetic gradients across truncated windows of time: a recurrent network's windows bridged by a guess."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ...errors import MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Context, Objective, Signal, Site
from ..reference.backprop import ChainRule
from .gradient_predictors import GradientPredictor
from .synthetic_gradients_objective import Guessed

__all__ = ["SyntheticBPTT"]


class _Truncated(Objective):
    """A window that learns nothing from what comes after it."""

    def forward(self, context: Context) -> Signal:
        """A gradient of zero for the state."""
        return Signal(gradient=torch.zeros_like(context.h_out))


@dataclass(frozen=True, kw_only=True)
class SyntheticBPTT(PartwiseMethod):
    """Backpropagation through windows of time, with a guess s(h_k) / N of dL/dh_k at the state that ends window k.

    The guess stands for all moments after the window. s, one network for all windows, minimises
    sum_k 1/N sum_n ||s(h_{k,n}) - N delta_{k,n}||^2, where delta_k is the gradient that window k + 1 found at its first
    state: of its own losses, and of its own guess s(h_{k+1}) passed back through it (bootstrapped). A perfect s gives
    full backpropagation through time; s = 0, as it is at first, truncates at the window's end. Graphs are as long as
    one window, whatever the length of the sequence.

    Args:
        width: channels of the default predictor's hidden layers, >= 1, default 128.
        bridged: False to truncate, without guesses: the control.
        predictor: site -> module with forward(h, y) -> guess of the shape of h, in units of one sample's gradient; y is
            for those who want it. The default is `GradientPredictor` without labels.

    Raises:
        MethodError: width is below 1; or the partition is one in depth, of a feed-forward model.

    References:
        M. Jaderberg, W. M. Czarnecki, S. Osindero, O. Vinyals, A. Graves, D. Silver, K. Kavukcuoglu,
        Decoupled neural interfaces using synthetic gradients, ICML 2017, https://arxiv.org/abs/1608.05343

    Departs from the paper: weights step once a sequence, when all windows have learned, instead of after each window;
    there is no auxiliary task of predicting later guesses.

    >>> from modulewise.partition.boundary import Boundary
    >>> state = Boundary("state", (4, 3))
    >>> site = Site(0, 2, None, state, loss=lambda output, y: output.mean(), moments=(4, 2, 1))
    >>> SyntheticBPTT(width=8).objective(site).hears
    True
    """

    name: ClassVar[str] = "synthetic-bptt"
    family: ClassVar[Family] = Family.GRADIENTS
    locality: ClassVar[Locality] = Locality(Reach.GRADIENTS)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "M. Jaderberg, W. M. Czarnecki, S. Osindero, O. Vinyals, A. Graves, D. Silver, K. Kavukcuoglu",
            "Decoupled neural interfaces using synthetic gradients",
            "ICML",
            2017,
            "https://arxiv.org/abs/1608.05343",
        ),
    )

    width: int = 128
    bridged: bool = True
    predictor: Callable[[Site], nn.Module] | None = None

    def __post_init__(self) -> None:
        if not self.width >= 1:
            raise MethodError(f"width={self.width} was given; give 1 or more channels")

    def objective(self, site: Site) -> Objective:
        """A guess at the end of every window but the last."""
        if not site.over_time:
            raise MethodError(
                f"part {site.part} is no window of time: SyntheticBPTT bridges windows of a recurrent model; give a "
                "TimePartition, or SyntheticGradients for parts in depth"
            )
        if site.last:
            return ChainRule(site)
        if not self.bridged:
            return _Truncated()
        if self.predictor is not None:
            return Guessed(site, self.predictor(site))
        return Guessed(site, GradientPredictor(site.boundary, classes=None, width=self.width))
