"""Simplified difference target propagation with auxiliary outputs, which keep what tells inputs of a class apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import nn

from ...errors import MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from .difference_target_propagation import by_difference
from .inverses import inverse_at
from .output_targets import AuxiliaryTarget, LabelTarget
from .targets_objective import ByOutput, Targeted, reconstruction

__all__ = ["AuxiliaryOutputSDTP"]


@dataclass(frozen=True, kw_only=True)
class AuxiliaryOutputSDTP(PartwiseMethod):
    """Auxiliary output SDTP: t_{K-1} = h_{K-1} + g_K(t_K, z) - g_K(h_K, z), z = tanh(R h_{K-1}), R fixed and random.

    Without z the last inverse has nothing but the class to tell h_{K-1} from, and targets of one class are alike.
    h_K = softmax(o) and t_K one-hot for integer labels, h_K = o and t_K the label for floating ones. Below, and in all
    else, it is `SimplifiedDTP`: t_{k-1} = h_{k-1} + g_k(t_k) - g_k(h_k), and the inverses minimise
    ||g_k(h_k(h + e)) - (h + e)||^2, e ~ N(0, noise^2), the last with z of the corrupted input.

    Args:
        outputs: number of elements of one sample's output (the classes, in classification), >= 1.
        auxiliary: number of random features z, >= 1.
        noise: standard deviation of the noise in the inverses' loss, in units of h, >= 0.
        width: channels of the default inverse's hidden layer; None for as many as enter the part.
        rounds: updates of the inverses on the batch before the parts learn, >= 0; 0 for parallel training.
        distribution: floating labels are distributions over the classes, so that h_K = softmax(o).
        inverse: site -> module back to h_in, from h_out (N, ...) or, for the last part, from (N, outputs + auxiliary);
            the default is `Inverse`.

    Raises:
        MethodError: an argument is out of range.

    References:
        S. Bartunov, A. Santoro, B. A. Richards, L. Marris, G. E. Hinton, T. P. Lillicrap, Assessing the scalability of
        biologically-motivated deep learning algorithms and architectures, NeurIPS 2018,
        https://arxiv.org/abs/1807.04587. 512 features are its number for CIFAR-10.

    >>> AuxiliaryOutputSDTP(outputs=10).auxiliary
    512
    """

    outputs: int
    auxiliary: int = 512
    noise: float = 0.36
    width: int | None = None
    rounds: int = 0
    distribution: bool = False
    inverse: Callable[[Site], nn.Module] | None = None

    name: ClassVar[str] = "ao-sdtp"
    family: ClassVar[Family] = Family.TARGETS
    locality: ClassVar[Locality] = Locality(Reach.TARGETS)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "S. Bartunov, A. Santoro, B. A. Richards, L. Marris, G. E. Hinton, T. P. Lillicrap",
            "Assessing the scalability of biologically-motivated deep learning algorithms and architectures",
            "NeurIPS",
            2018,
            "https://arxiv.org/abs/1807.04587",
        ),
    )

    def __post_init__(self) -> None:
        sizes = self.outputs >= 1 and self.auxiliary >= 1 and (self.width is None or self.width >= 1)
        if not (sizes and self.noise >= 0 and self.rounds >= 0):
            raise MethodError(
                f"{self} was given; give outputs >= 1, auxiliary >= 1, noise >= 0, width >= 1 or None, rounds >= 0"
            )

    def objective(self, site: Site) -> Objective:
        """The task loss at the top, targets below it, an inverse for every part but the first."""
        lesson = partial(reconstruction, noise=self.noise)
        own = inverse_at(site, self.inverse, outputs=self.outputs + self.auxiliary, width=self.width)
        if not site.last:
            return Targeted(own, rule=by_difference, lesson=lesson, rounds=self.rounds)
        features = 1 if site.input is None else site.input.features
        label = LabelTarget(self.outputs, distribution=self.distribution)
        target = AuxiliaryTarget(label, features=features, auxiliary=self.auxiliary)
        return ByOutput(site, own, target=target, rule=by_difference, lesson=lesson, rounds=self.rounds)
