"""Difference target propagation whose inverses learn by the difference reconstruction loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from ...errors import MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from ..objectives import TaskLoss
from .difference_reconstruction import FeedbackTraining
from .dtp_drl_objective import FirstPart, InvertedLast, InvertedPart
from .inverses import Inverse, flat_output

__all__ = ["DTPDRL"]


@dataclass(frozen=True, kw_only=True)
class DTPDRL(PartwiseMethod):
    """DTP with the difference reconstruction loss: inverses learn to bring back what the output says of an activation.

    Targets: a_target = a - step_size N dL/da at the model's raw output a, then t_{k-1} = h_{k-1} + g_k(t_k) - g_k(h_k)
    down to the first part, the inverse g of the last part taking the output back. Parts minimise ||h_k - t_k||^2, the
    last the task loss. In the feedback phase, from the top part down, g_k minimises

        1/noise^2 ||R_{k-1}(h~) - h~||^2 + decay ||weights of g_k||^2,    h~ = h_{k-1} + noise e, e ~ N(0, I),
        R_{k-1}(h~) = h_{k-1} + g_k(R_k(f_k(h~))) - g_k(h_k),             R the identity at the output:

    up to the output and back. Of linear g_k on linear parts the minimiser is the pseudo-inverse of R_k f_k damped by
    the decay; as decay -> 0 the chain of inverses gives the Gauss-Newton target, J^+ (a - a_target) from h, where every
    Jacobian from a boundary to the output has full row rank.

    Cost: with K parts, a round runs about K^2 / 2 parts up and as many inverses back.

    Args:
        outputs: number of elements of one sample's output (the classes, in classification), >= 1.
        step_size: length of the step from the output to its target, > 0.
        noise: standard deviation of the corruption, in units of h, > 0.
        decay: factor of the inverses' squared weights in their loss, >= 0.
        rounds: updates of every inverse in every step, >= 1.
        warmup: steps at the start in which the inverses alone learn, >= 0.
        width: channels of the default inverse's hidden layer; None for as many as enter the part.
        inverse: site -> module from h_out to h_in, the last site's output given as (N, outputs); default `Inverse`.

    Raises:
        MethodError: an argument is out of range, or a sample's output has another number of elements.

    References:
        A. Meulemans, F. S. Carzaniga, J. A. K. Suykens, J. Sacramento, B. F. Grewe, A Theoretical Framework for Target
        Propagation, NeurIPS 2020, https://arxiv.org/abs/2006.14331. Departs from the paper: inverses have a hidden tanh
        layer and a linear output (there one tanh layer) and learn within every step, from the top down (there 6 epochs
        alone, `warmup`, and then an epoch for each epoch of the parts); the last part follows its true gradient, not
        step_size times it. Published decays are of Adam, beside a mean over F features: F / 2 times as large here.

    >>> DTPDRL(outputs=10, step_size=0.05).noise
    0.057
    """

    outputs: int
    step_size: float = 0.069
    noise: float = 0.057
    decay: float = 7e-4
    rounds: int = 1
    warmup: int = 0
    width: int | None = None
    inverse: Callable[[Site], nn.Module] | None = None

    name: ClassVar[str] = "dtp-drl"
    family: ClassVar[Family] = Family.TARGETS
    locality: ClassVar[Locality] = Locality(Reach.TARGETS)
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
        if not (self.outputs >= 1 and self.step_size > 0 and (self.width is None or self.width >= 1)):
            raise MethodError(
                f"outputs={self.outputs}, step_size={self.step_size}, width={self.width} were given; give outputs "
                ">= 1, step_size > 0 and width >= 1 or None"
            )
        self._training()

    def objective(self, site: Site) -> Objective:
        """The task loss at the top, targets below it, an inverse for every part but the first."""
        if site.parts == 1:
            return TaskLoss(site.loss)
        if site.input is None:
            return FirstPart(warmup=self.warmup)
        training, above = self._training(), site.output or flat_output(site.input, self.outputs)
        if self.inverse is not None:
            inverse = self.inverse(replace(site, output=above))
        else:
            inverse = Inverse(site.input, above, width=self.width)
        if site.last:
            return InvertedLast(site, inverse, training, outputs=self.outputs, step_size=self.step_size)
        return InvertedPart(inverse, training)

    def _training(self) -> FeedbackTraining:
        return FeedbackTraining(noise=self.noise, decay=self.decay, rounds=self.rounds, warmup=self.warmup)
