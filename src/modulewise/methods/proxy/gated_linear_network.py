"""Gated linear networks: every neuron predicts the label and learns online, by itself, from a convex loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...errors import MethodError
from ...method import Family, Locality, Reach, Reference, Solver, SolverMethod
from ...objective import Loss
from .gln_solver import OnlineGates

if TYPE_CHECKING:
    from ...partition import Partition

__all__ = ["GatedLinearNetwork"]


@dataclass(frozen=True, kw_only=True)
class GatedLinearNetwork(SolverMethod):
    """Every neuron predicts "this class or not" and takes an online gradient step on its own log loss.

    For sample t with input x and target y in {0, 1}, every neuron of every layer and class:
    p = sigmoid(w_c . f), f = (clip(logit p_below), 1), c = c(x) picked by random half-spaces, and
    w_c <- clip(w_c - eta_t (p - y) f, [-weight_limit, weight_limit]), eta_t = min(rate, decay / t).
    The step is the gradient of -log p(y), convex in w_c; nothing passes back between neurons, layers or parts,
    and the task loss is not used. Samples are taken one after the other in the order given, whatever the batch
    size: another order gives other weights (there is no invariance under permutation), shuffled data is
    expected, and one pass is meant to do. A part is some of the layers; its loss is the mean log loss of its
    neurons, each sample predicted before it was learned.

    Args:
        rate: the largest learning rate, > 0, default 0.01.
        decay: numerator of the falling learning rate, > 0, default 100 (it falls from sample decay / rate on).
        weight_limit: bound on |w|, > 0, default 200.

    Raises:
        MethodError: a number is out of range, the model is none of `models.gln`, or (in a step, on the CPU) x is
            not finite or a label is out of range.

    References:
        J. Veness, T. Lattimore, D. Budden, A. Bhoopchand, C. Mattern, A. Grabska-Barwinska, E. Sezener, J. Wang,
        P. Toth, S. Schmitt, M. Hutter, Gated Linear Networks, AAAI 2021, https://arxiv.org/abs/1910.01526
        J. Veness, T. Lattimore, A. Bhoopchand, A. Grabska-Barwinska, C. Mattern, P. Toth, Online Learning with
        Gated Linear Networks, arXiv 2017, https://arxiv.org/abs/1712.01897

    Departs from the paper: p is clipped where the next layer reads it, not in the neuron's own error, so that
    the step is the gradient of the log loss everywhere. Images are not deskewed.

    >>> from modulewise import models, Partition
    >>> import torch
    >>> x, y = torch.randn(8, 1, 2, 2), torch.arange(8) % 3
    >>> partition = Partition(models.gln((1, 2, 2), 3, widths=(4,), contexts=2), cuts=["layer1"], example=x)
    >>> solver = GatedLinearNetwork().solver(partition, loss=torch.nn.functional.cross_entropy, seed=0)
    >>> sorted(solver.step(x, y, step=0))
    [0, 1]
    """

    name: ClassVar[str] = "gln"
    full_batch: ClassVar[bool] = True
    family: ClassVar[Family] = Family.PROXY
    locality: ClassVar[Locality] = Locality(Reach.STRICT)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "J. Veness, T. Lattimore, D. Budden, A. Bhoopchand, C. Mattern, A. Grabska-Barwinska, E. Sezener, J. Wang, "
            "P. Toth, S. Schmitt, M. Hutter",
            "Gated Linear Networks",
            "AAAI",
            2021,
            "https://arxiv.org/abs/1910.01526",
        ),
        Reference(
            "J. Veness, T. Lattimore, A. Bhoopchand, A. Grabska-Barwinska, C. Mattern, P. Toth",
            "Online Learning with Gated Linear Networks",
            "arXiv",
            2017,
            "https://arxiv.org/abs/1712.01897",
        ),
    )

    rate: float = 0.01
    decay: float = 100.0
    weight_limit: float = 200.0

    def __post_init__(self) -> None:
        if not min(self.rate, self.decay, self.weight_limit) > 0:
            raise MethodError(
                f"rate={self.rate}, decay={self.decay}, weight_limit={self.weight_limit} were given; give numbers "
                "above 0"
            )

    def solver(self, partition: Partition, *, loss: Loss, seed: int) -> Solver:
        """Online steps on the partition's gated layers; the task loss and the seed play no part."""
        return OnlineGates(partition, rate=self.rate, decay=self.decay, limit=self.weight_limit)
