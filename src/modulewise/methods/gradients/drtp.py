"""Direct random target projection: every layer follows a fixed random projection of the label."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import MethodError
from ...layer_rules import DirectFeedback
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Context, Objective, Site
from ...partition.tree import tensors
from .direct_objective import Projected, TargetedTask
from .layerwise import layers_at, rule_seed

__all__ = ["DRTP", "target_signal"]


def target_signal(labels: Tensor, *, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The targets as a signal of a batch's mean, onehot(y) / N; rows of a negative label (left out) are zero.

    Args:
        labels: y (N,), whole numbers below `classes`.
        classes: number of classes.
        dtype: of what is returned, single precision or more.

    Raises:
        MethodError: labels are not one whole number a sample.

    >>> target_signal(torch.tensor([0, 1]), classes=3)
    tensor([[0.5000, 0.0000, 0.0000],
            [0.0000, 0.5000, 0.0000]])
    """
    if labels.dim() != 1 or labels.is_floating_point():
        raise MethodError(
            f"labels of shape {tuple(labels.shape)} and type {labels.dtype} were given, DRTP projects one whole number "
            "a sample; choose another method"
        )
    counted = labels >= 0
    targets = F.one_hot(labels.clamp(min=0), classes) * counted[:, None]
    return targets.to(dtype) / counted.sum().clamp(min=1)


def _targets(context: Context, *, classes: int) -> Tensor:
    dtype = torch.promote_types(tensors(context.h_out)[0].dtype, torch.float32)
    return target_signal(context.labels, classes=classes, dtype=dtype)


@dataclass(frozen=True, kw_only=True)
class DRTP(PartwiseMethod):
    """Direct random target projection: the error at the input of layer l is onehot(y) B_l / N, B_l fixed and random.

    No error is computed below the output, and nothing waits: a part learns as soon as it has run. The output layer
    follows the task loss; of the last part's other layers, too, only the projected targets. As in direct feedback
    alignment every linear layer, convolution and boundary has a matrix of its own, with entries from N(0, scale^2 /
    F), and what stands between two layers follows the chain rule. The signal is the same in every epoch, so that
    hidden units are driven into saturation: networks with tanh or sigmoid are the ones it is made for.

    Args:
        classes: number of classes, >= 2.
        scale: length of the projected target relative to the target, > 0.
        layerwise: False for matrices at the boundaries alone, errors passing back by the chain rule within a part.

    Raises:
        MethodError: an argument is out of range, or a part has no linear layer or convolution.

    References:
        C. Frenkel, M. Lefebvre, D. Bol, Learning without feedback: fixed random learning signals allow for
        feedforward training of deep neural networks, Frontiers in Neuroscience 2021,
        https://www.frontiersin.org/articles/10.3389/fnins.2021.629892.
        Departs from the paper: B_l is normal (theirs is uniform, by He's rule).

    >>> DRTP(classes=10).locality.reach.value
    'strict'
    """

    classes: int
    scale: float = 1.0
    layerwise: bool = True

    family: ClassVar[Family] = Family.GRADIENTS
    locality: ClassVar[Locality] = Locality(Reach.STRICT)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "C. Frenkel, M. Lefebvre, D. Bol",
            "Learning without feedback: fixed random learning signals allow for feedforward training of deep neural "
            "networks",
            "Frontiers in Neuroscience",
            2021,
            "https://www.frontiersin.org/articles/10.3389/fnins.2021.629892",
        ),
    )

    def __post_init__(self) -> None:
        if not (self.classes >= 2 and self.scale > 0):
            raise MethodError(
                f"classes={self.classes}, scale={self.scale} were given; give classes >= 2 and scale above 0"
            )

    def objective(self, site: Site) -> Objective:
        """The task loss in the last part, the projected targets in the others, and in the layers of all."""
        rule = None
        if self.layerwise:
            layers_at(site, "DRTP", instead="cut elsewhere, or give layerwise=False")
            rule = DirectFeedback(seed=rule_seed(), elements=self.classes, scale=self.scale)
        targets = partial(_targets, classes=self.classes)
        if site.last:
            return TargetedTask(site, rule, targets)
        return Projected(site, rule, targets, elements=self.classes, scale=self.scale, waits=False)
