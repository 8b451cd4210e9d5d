"""Local error signals: a local prediction loss and a similarity matching loss."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ... import heads, losses
from ...errors import MethodError
from ...heads.layers import at_least_one, channel_map, halved_until
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Context, Objective, Signal, Site
from ...partition.boundary import Boundary
from ..objectives import TaskLoss

__all__ = ["LocalError", "PredSim"]


class LocalError(Objective):
    """(1 - beta) * pred + beta * sim, with the modules of those terms that count.

    Args:
        boundary: where the objective sits.
        classes: number of classes.
        beta: weight of the similarity term.
        decoder_features: bound on the inputs of the prediction's linear layer.
        criterion: the prediction's loss.
    """

    def __init__(
        self,
        boundary: Boundary,
        *,
        classes: int,
        beta: float,
        decoder_features: int,
        criterion: losses.Criterion,
    ) -> None:
        super().__init__()
        self.boundary, self.classes, self.beta, self.criterion = boundary, classes, beta, criterion
        self.prediction: nn.Module | None = None
        self.similarity: nn.Module | None = None
        if beta < 1:
            sizes = halved_until(boundary, decoder_features)
            self.prediction = heads.linear(boundary, classes, pool=sizes)
            for parameter in self.prediction.parameters():
                nn.init.zeros_(parameter)
        if beta > 0:
            self.similarity = channel_map(boundary, boundary.channels, kernel=3)

    def forward(self, context: Context) -> Signal:
        """The weighted terms."""
        terms: list[Tensor] = []
        if self.prediction is not None:
            terms.append((1 - self.beta) * self.criterion(self.prediction(context.h_out), context.y))
        if self.similarity is not None:
            terms.append(self.beta * self._matching(self.similarity(context.h_out), context.y))
        return Signal(loss=sum(terms[1:], terms[0]))

    def _matching(self, h: Tensor, y: Tensor) -> Tensor:
        dtype = torch.promote_types(h.dtype, torch.float32)
        target = losses.one_hot_similarity(y, classes=self.classes, dtype=dtype)
        return losses.similarity_matching(h, target)


@dataclass(frozen=True)
class PredSim(PartwiseMethod):
    """Each part minimises (1 - beta) * pred + beta * sim; the last the task loss.

    pred = CE(W avgpool(h_out), y), W starting at zero; sim = mean_nm (R(f(h_out))_nm - R(onehot(y))_nm)^2,
    R the adjusted cosine similarity of `losses.similarity_matrix` and f a trained 3x3 convolution (a linear
    map on tokens and vectors) without bias. Published for beta = 0 ("pred"), 1 ("sim") and 0.99
    ("predsim"). The two terms differ in scale, so beta = 0.99 is not "99 % similarity".

    Args:
        classes: number of classes, >= 2.
        beta: weight of the similarity term, in [0, 1], default 0.99; at 0 and 1 the other term is not
            computed.
        decoder_features: grids are pooled until W has at most so many inputs (or one position is left), >= 1,
            default 2048; published 2048 and 4096.
        criterion: the prediction's criterion(logits, y) -> scalar.

    Raises:
        MethodError: beta is outside [0, 1], a number is too small, or (in a step) labels are not one per
            sample.

    References:
        A. Nøkland, L. H. Eidnes, Training Neural Networks with Local Error Signals, ICML 2019,
        https://arxiv.org/abs/1901.06656

    Departs from the paper: a loss per part instead of one per layer, and dropout stays where the user's
    network has it, instead of after the loss branch. The terms need several classes in a batch to say much.

    >>> from modulewise.partition.boundary import Boundary
    >>> site = Site(0, 2, None, Boundary("conv1", (4, 8, 4, 4)), loss=losses.classification)
    >>> h, y = torch.randn(4, 8, 4, 4), torch.tensor([0, 1, 2, 3])
    >>> context = Context(h_in=None, h_out=h, x=None, y=y, views=1, part=0, step=0)
    >>> PredSim(classes=4, beta=0.0).objective(site)(context).loss.item() == torch.tensor(4.0).log().item()
    True
    """

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
    decoder_features: int = 2048
    criterion: losses.Criterion = losses.classification

    def __post_init__(self) -> None:
        at_least_one(decoder_features=self.decoder_features)
        if self.classes < 2:
            raise MethodError(f"classes={self.classes} was given, PredSim needs at least 2")
        if not 0 <= self.beta <= 1:
            raise MethodError(f"beta={self.beta} was given, expected a weight in [0, 1]; the paper's is 0.99")

    def objective(self, site: Site) -> Objective:
        """The local error, or the task loss."""
        if site.last:
            return TaskLoss(site.loss)
        return LocalError(
            site.boundary,
            classes=self.classes,
            beta=self.beta,
            decoder_features=self.decoder_features,
            criterion=self.criterion,
        )
