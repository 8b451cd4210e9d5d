"""InfoPro: every part keeps what tells about the input and about the label."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import ClassVar

from ... import losses
from ...data.augment import Normalize
from ...errors import MethodError
from ...heads.layers import at_least_one
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from ..objectives import TaskLoss
from .infopro_objective import Information

__all__ = ["InfoPro"]


@dataclass(frozen=True)
class InfoPro(PartwiseMethod):
    """Part k minimises lambda_1k BCE(decoder(h_k), image) + lambda_2k SupCon(head(h_k), y); the last the task loss.

    Greedy supervised parts throw away early what later parts could use. Both terms bound from above what is lost:
    the decoder (`heads.decoder`) the information about the input, the contrast of classes
    (`losses.supervised_contrastive` on 128 features) or a classifier that about the label. Weights change linearly
    from the first part to the one before the last, k = 0 .. K - 2; a term of weight 0 has no head.

    The authors tune the four weights for every K. Theirs for ResNet-32 on CIFAR-10 with contrast (comand.sh in
    github.com/blackfeather-wang/InfoPro-Pytorch), as lambda_1 and lambda_2, first -> last:
    K=2: 5; 1. K=4: 6 -> 1; 0 -> 2. K=8: 5 -> 0; 0 -> 2. K=16: 5 -> 0.2; 0.05 -> 0.5. The defaults here are those of
    K=2 in the first part and of K=8 in the last. InfoPro* is InfoPro on parts of equal memory: this library's
    automatic cuts.

    Args:
        classes: number of classes, >= 1.
        contrast: the contrastive term (default); False for a classifier's cross-entropy.
        temperature: of the contrast, > 0, default 0.07.
        reconstruction: lambda_1 of the first part, >= 0, default 5.
        reconstruction_last: lambda_1 of the part before the last, >= 0, default 0.
        information: lambda_2 of the first part, >= 0, default 1.
        information_last: lambda_2 of the part before the last, >= 0, default 2.
        normalize: how images were normalised: their pixels in [0, 1] are then the target of a cross-entropy. None:
            the input as it is is the target, whatever its range, of an eighth of the mean squared error (whose
            curvature, 1/4, is the largest that the cross-entropy has).
        features: reconstruct the part's own input h_in in that way instead; the first part's is x.
        criterion: the classifier's criterion(logits, y) -> scalar.

    Raises:
        MethodError: a number is out of range, both weights of a part would be 0, the model's input is not one
            floating-point tensor (token ids, several inputs), or (in a step) pixels lie outside [0, 1].

    References:
        Y. Wang, Z. Ni, S. Song, L. Yang, G. Huang, Revisiting Locally Supervised Learning: an Alternative to
        End-to-end Training, ICLR 2021, https://arxiv.org/abs/2101.10832

    Departs from the paper: the squared error where there is no normalisation to undo; see `heads.decoder` and
    `heads.condensing` for boundaries that are no grids. The authors' ImageNet heads are larger than these.

    >>> import torch
    >>> from modulewise.partition.boundary import Boundary
    >>> InfoPro(classes=10, reconstruction=6.0, reconstruction_last=0.0).weights_at(1, parts=4)
    (3.0, 1.5)
    """

    name: ClassVar[str] = "infopro"
    family: ClassVar[Family] = Family.PROXY
    locality: ClassVar[Locality] = Locality(Reach.STRICT)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "Y. Wang, Z. Ni, S. Song, L. Yang, G. Huang",
            "Revisiting Locally Supervised Learning: an Alternative to End-to-end Training",
            "ICLR",
            2021,
            "https://arxiv.org/abs/2101.10832",
        ),
    )

    classes: int
    _: KW_ONLY
    contrast: bool = True
    temperature: float = 0.07
    reconstruction: float = 5.0
    reconstruction_last: float = 0.0
    information: float = 1.0
    information_last: float = 2.0
    normalize: Normalize | None = None
    features: bool = False
    criterion: losses.Criterion = losses.classification

    def __post_init__(self) -> None:
        at_least_one(classes=self.classes)
        ends = {"": (self.reconstruction, self.information), "_last": (self.reconstruction_last, self.information_last)}
        for end, pair in ends.items():
            if not min(pair) >= 0 or not max(pair) > 0:
                raise MethodError(
                    f"reconstruction{end}={pair[0]} and information{end}={pair[1]} were given, expected weights >= 0, "
                    "not both 0"
                )
        if not self.temperature > 0:
            raise MethodError(f"temperature={self.temperature} was given, expected a positive number; try 0.07")

    def weights_at(self, part: int, *, parts: int) -> tuple[float, float]:
        """(lambda_1, lambda_2) of a part before the last."""
        share = part / (parts - 2) if parts > 2 else 0.0
        return (
            (1 - share) * self.reconstruction + share * self.reconstruction_last,
            (1 - share) * self.information + share * self.information_last,
        )

    def objective(self, site: Site) -> Objective:
        """The two terms, or the task loss."""
        if site.last:
            return TaskLoss(site.loss)
        reconstruction, information = self.weights_at(site.part, parts=site.parts)
        contrast = partial(losses.supervised_contrastive, temperature=self.temperature)
        return Information(
            site,
            reconstruction=reconstruction,
            information=information,
            outputs=128 if self.contrast else self.classes,
            label=contrast if self.contrast else self.criterion,
            normalize=self.normalize,
            features=self.features,
        )
