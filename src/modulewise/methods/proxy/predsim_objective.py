"""One part's local error: prediction and similarity matching against labels, and what needs no labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import heads, losses
from ...errors import MethodError
from ...losses.rows import widened
from ...objective import Context, Objective, Signal, Site
from .predsim_targets import LabelTargets

__all__ = ["LocalSignal"]


class LocalSignal(Objective):
    """(1 - alpha) ((1 - beta) pred + beta sim) + alpha unsupervised, with the modules of those terms that count.

    Args:
        site: where the objective sits, before the last part.
        targets: what labels ask for.
        beta: weight of the similarity term.
        alpha: weight of the unsupervised term.
        reconstruct: the unsupervised term is a reconstruction of h_in (none in part 0) instead of a match with
            its similarity matrix.
        features: bound on the inputs of the prediction's linear layer.
    """

    reads_x = False

    def __init__(
        self, site: Site, *, targets: LabelTargets, beta: float, alpha: float, reconstruct: bool, features: int
    ) -> None:
        super().__init__()
        self.targets, self.beta, self.alpha, self.below = targets, beta, alpha, site.input
        self.matching = alpha > 0 and not reconstruct
        self.prediction: nn.Module | None = None
        self.similarity: nn.Module | None = None
        self.decoder: nn.Module | None = None
        if alpha < 1 and beta < 1:
            self.prediction = targets.predictor(site.boundary, features=features)
        if (alpha < 1 and beta > 0) or self.matching:
            self.similarity = targets.view(site.boundary, features=features)
        if alpha > 0 and reconstruct and site.input is not None:
            below = site.input
            self.decoder = heads.decoder(site.boundary, (below.channels, *below.spatial))

    def forward(self, context: Context) -> Signal:
        """The weighted terms."""
        seen = None if self.similarity is None else self.similarity(context.h_out)
        terms: list[Tensor] = []
        if self.alpha < 1:
            terms += [(1 - self.alpha) * term for term in self._supervised(context.h_out, seen, context.labels)]
        if seen is not None and self.matching:
            input_similarity = losses.similarity_matrix(self._input(context))
            terms.append(self.alpha * losses.similarity_matching(seen, input_similarity))
        if self.decoder is not None:
            terms.append(self.alpha * self._reconstruction(self.decoder(context.h_out), self._input(context)))
        return Signal(loss=sum(terms[1:], terms[0]))

    def _supervised(self, h: Tensor, seen: Tensor | None, y: Tensor) -> list[Tensor]:
        """The terms that labels make, weighted by beta."""
        terms: list[Tensor] = []
        if self.prediction is not None:
            terms.append((1 - self.beta) * self.targets.prediction(self.prediction(h), y))
        if seen is not None and self.beta > 0:
            target = self.targets.similarity(y, dtype=torch.promote_types(seen.dtype, torch.float32))
            terms.append(self.beta * losses.similarity_matching(seen, target))
        return terms

    def _reconstruction(self, guess: Tensor, h_in: Tensor) -> Tensor:
        """Mean squared error."""
        if guess.shape != h_in.shape:
            raise MethodError(
                f"what enters the part has shape {tuple(h_in.shape)}, its decoder gives {tuple(guess.shape)}; keep to "
                "the sizes of the partition's example, or use reconstruct=False"
            )
        return (widened(guess) - widened(h_in)).square().mean()

    def _input(self, context: Context) -> Tensor:
        """h_in, channels first and without its graph: it is a target."""
        h = context.h_in
        if not isinstance(h, Tensor) or not h.is_floating_point() or h.dim() < 2:
            given = f"{h.dtype} of shape {tuple(h.shape)}" if isinstance(h, Tensor) else type(h).__name__
            raise MethodError(
                f"part {context.part} was given an input of {given}, an unsupervised term needs one floating tensor "
                "(N, ...); use alpha=0"
            )
        return (h if self.below is None else self.below.channels_first(h)).detach()
