"""Node perturbation: feedback weights that learn, from noise and the loss, what errors to send down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from ..reference.backprop import ChainRule
from .node_perturbation_objective import Perturbed

__all__ = ["NodePerturbation"]


@dataclass(frozen=True, kw_only=True)
class NodePerturbation(PartwiseMethod):
    """Feedback weights fitted to node perturbation: the part below k follows B_k e_k, with no weights transported.

    e_k is the error at the output of the first linear or convolutional layer of part k, which part k finds from the
    error sent to it, or in the last part from the task loss, and B_k has the shape of that layer's weights. Noise
    h~ = h + c xi on what enters the part changes the loss of sample n from L_n to L~_n, and
    lambda_n = (L~_n - L_n) xi_n / c is an unbiased estimate of its gradient, to first order. B_k minimises
    1/N sum_n ||B_k e_kn - lambda_n||^2: it averages the noise away over the samples it has seen. With B_k the layer's
    own weights the part below follows backpropagation's gradient, and that is what the fit converges to where that
    layer is the first thing in the part and errors span all directions.

    Args:
        scale: c, the size of the perturbation in units of h, > 0.
        draw: h -> xi like h, independent entries of zero mean and unit variance; standard normal unless given.

    Raises:
        MethodError: scale is not above 0, or (when bound to a partition) a part above the first does not begin with a
            linear or convolutional layer, or is a window of time.

    References:
        B. J. Lansdell, P. R. Prakash, K. P. Kording, Learning to solve the credit assignment problem, ICLR 2020,
        https://arxiv.org/abs/1906.00889

    Departs from the paper: every boundary is perturbed in a pass of its own, before any part learns, so that the noise
    of other boundaries is not in its estimate (there one pass perturbs all layers); B is fitted by the trainer's
    optimiser, where the paper also has exact least squares; in convolutional layers B is a convolution. A skip from an
    earlier boundary sends nothing back.

    >>> NodePerturbation(scale=0.1).scale
    0.1
    """

    scale: float = 0.01
    draw: Callable[[Tensor], Tensor] = torch.randn_like

    family: ClassVar[Family] = Family.GRADIENTS
    locality: ClassVar[Locality] = Locality(Reach.GRADIENTS)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "B. J. Lansdell, P. R. Prakash, K. P. Kording",
            "Learning to solve the credit assignment problem",
            "ICLR",
            2020,
            "https://arxiv.org/abs/1906.00889",
        ),
    )

    def __post_init__(self) -> None:
        if not 0 < self.scale < float("inf"):
            raise MethodError(f"scale={self.scale} was given; give the size of the perturbation, above 0")

    def objective(self, site: Site) -> Objective:
        """Learned feedback for every part that reads a boundary; the first one follows what it is sent."""
        if site.over_time:
            raise MethodError(
                "learned feedback takes a linear or convolutional layer on what enters a part, and a window of time "
                "begins with its recurrent cell; train windows by synthetic-bptt or tptt, or cut the model in depth"
            )
        return ChainRule(site) if site.input is None else Perturbed(site, scale=self.scale, draw=self.draw)
