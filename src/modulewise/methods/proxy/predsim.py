"""Local error signals: a local prediction loss and a similarity matching loss."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from ... import losses
from ...errors import MethodError
from ...heads.layers import at_least_one
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from ..objectives import TaskLoss
from .predsim_objective import LocalSignal
from .predsim_targets import LabelTargets, OneHotTargets, ProjectedTargets

__all__ = ["PredSim"]


@dataclass(frozen=True)
class PredSim(PartwiseMethod):
    """Each part minimises (1 - alpha) ((1 - beta) pred + beta sim) + alpha unsup; the last the task loss.

    pred = CE(W avgpool(h_out), y), W starting at zero; sim = mean_nm (R(f(h_out))_nm - R(onehot(y))_nm)^2,
    R the adjusted cosine similarity of `losses.similarity_matrix` and f a trained 3x3 convolution (a linear
    map on tokens and vectors) without bias; unsup is sim with R(h_in) in place of R(onehot(y)). Published
    for beta = 0 ("pred"), 1 ("sim") and 0.99 ("predsim"), with alpha = 0. The terms differ in scale, so
    beta = 0.99 is not "99 % similarity": sim is at most 4 and often below 1, pred starts at log(classes).

    Free of backprop ("pred-bpf", "sim-bpf"), f is average pooling, y is replaced by onehot(y) P, P fixed and
    random, sim matches R(onehot(y) P), and pred is the binary cross-entropy of W avgpool(h_out) + b with the
    signs of onehot(y) P, its error reaching h_out through a fixed random B in place of W. No error passes
    a trained weight then, but inside the part: a part of several layers still backpropagates through them,
    one of a single layer through its normalisation and activation alone. Both terms together are published
    with beta = 0.01 there.

    Args:
        classes: number of classes, >= 2.
        beta: weight of the similarity term, in [0, 1], default 0.99; at 0 and 1 the other term is not
            computed.
        alpha: weight of the unsupervised term, in [0, 1], default 0; at 1 labels are not looked at. The
            model's input is taken to be one floating tensor, channels first.
        reconstruct: unsup = mean squared error of a decoder's guess of h_in instead; part 0 has no such term.
        backprop_free: the variants without backpropagation through trained heads.
        target_features: columns of P, >= 1, default 128 as published.
        decoder_features: grids are pooled until W has at most so many inputs (or one position is left), >= 1,
            default 2048; published 2048 and 4096.
        criterion: the prediction's criterion(logits, y) -> scalar; unused where `backprop_free`.

    Raises:
        MethodError: beta or alpha is outside [0, 1], a number is too small, settings exclude each other, or
            (in a step) labels are not one per sample, or an unsupervised term cannot take the model's input.

    References:
        A. Nøkland, L. H. Eidnes, Training Neural Networks with Local Error Signals, ICML 2019,
        https://arxiv.org/abs/1901.06656

    Departs from the paper: a loss per part instead of one per layer, and dropout stays where the user's
    network has it, instead of after the loss branch. The decoder is that of `heads.decoder`, since a part has
    no one geometry to transpose. The terms need several classes in a batch to say much.

    >>> import torch
    >>> from modulewise.objective import Context
    >>> from modulewise.partition.boundary import Boundary
    >>> site = Site(0, 2, None, Boundary("conv1", (4, 8, 4, 4)), loss=losses.classification)
    >>> h, y = torch.randn(4, 8, 4, 4), torch.tensor([0, 1, 2, 3])
    >>> context = Context(h_in=None, h_out=h, x=None, y=y, views=1, part=0, step=0)
    >>> PredSim(classes=4, beta=0.0).objective(site)(context).loss.item() == torch.tensor(4.0).log().item()
    True
    """

    name: ClassVar[str] = "predsim"
    family: ClassVar[Family] = Family.PROXY
    locality: ClassVar[Locality] = Locality(Reach.STRICT)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "A. Nøkland, L. H. Eidnes",
            "Training Neural Networks with Local Error Signals",
            "ICML",
            2019,
            "https://arxiv.org/abs/1901.06656",
        ),
    )

    classes: int
    _: KW_ONLY
    beta: float = 0.99
    alpha: float = 0.0
    reconstruct: bool = False
    backprop_free: bool = False
    target_features: int = 128
    decoder_features: int = 2048
    criterion: losses.Criterion = losses.classification

    def __post_init__(self) -> None:
        at_least_one(target_features=self.target_features, decoder_features=self.decoder_features)
        if self.classes < 2:
            raise MethodError(f"classes={self.classes} was given, PredSim needs at least 2")
        if not 0 <= self.beta <= 1:
            raise MethodError(f"beta={self.beta} was given, expected a weight in [0, 1]; the paper's is 0.99")
        if not 0 <= self.alpha <= 1:
            raise MethodError(f"alpha={self.alpha} was given, expected a weight in [0, 1]; the paper's is 0")
        if self.reconstruct and not 0 < self.alpha < 1:
            raise MethodError(f"reconstruct=True was given with alpha={self.alpha}, expected 0 < alpha < 1; choose one")
        if self.backprop_free and (self.reconstruct or self.criterion is not losses.classification):
            raise MethodError("backprop_free=True takes neither reconstruct nor a criterion; leave both out")

    def objective(self, site: Site) -> Objective:
        """The local error, or the task loss."""
        if site.last:
            return TaskLoss(site.loss)
        return LocalSignal(
            site,
            targets=self._targets(),
            beta=self.beta,
            alpha=self.alpha,
            reconstruct=self.reconstruct,
            features=self.decoder_features,
        )

    def _targets(self) -> LabelTargets:
        if self.backprop_free:
            return ProjectedTargets(classes=self.classes, outputs=self.target_features)
        return OneHotTargets(classes=self.classes, criterion=self.criterion)
