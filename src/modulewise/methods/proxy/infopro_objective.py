"""InfoPro's objective: what a part's output still tells about the input and about the label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ... import heads, losses
from ...data.augment import Normalize
from ...errors import MethodError
from ...heads.condensing import condensing
from ...objective import Context, Objective, Signal, Site

__all__ = ["Information", "Label", "input_shape"]

# The cross-entropy's second derivative by a logit is s (1 - s) <= 1/4, that of the square is 2: an eighth of the square
# has the largest curvature of the cross-entropy. The plain square diverged at learning rates made for that.
_AS_CURVED = 1 / 8

Label = Callable[[Tensor, Tensor], Tensor]
"""label(condensed (N, D), y (N,)) -> scalar."""


def input_shape(x: Any) -> tuple[int, ...]:
    """The shape of one sample of a model input that can be reconstructed.

    Args:
        x: an input of the model.

    Raises:
        MethodError: it is not one floating-point tensor of samples with elements.

    >>> input_shape(torch.zeros(5, 3, 8, 8))
    (3, 8, 8)
    """
    if isinstance(x, Tensor) and x.is_floating_point() and x.dim() > 1:
        return tuple(x.shape[1:])
    given = f"a tensor {tuple(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
    raise MethodError(
        f"the model's input is {given}, InfoPro reconstructs one floating-point tensor (N, ...); set reconstruction "
        "and reconstruction_last to 0, or choose another method"
    )


@dataclass(frozen=True)
class _Target:
    """What a decoder reconstructs, and how far it is from that."""

    shape: tuple[int, ...]
    normalize: Normalize | None = None
    features: bool = False

    def distance(self, decoded: Tensor, context: Context, site: Site) -> Tensor:
        if self.features:
            assert site.input is not None
            return _AS_CURVED * losses.mean_squared_error(decoded, site.input.channels_first(context.h_in))
        if self.normalize is None:
            return _AS_CURVED * losses.mean_squared_error(decoded, context.x)
        return losses.pixel_cross_entropy(decoded, self.normalize.undone(context.x))


def _target(site: Site, *, normalize: Normalize | None, features: bool) -> _Target:
    if features and site.input is not None:
        shape = (site.input.channels, *site.input.spatial)
        return _Target(shape, features=True)
    return _Target(input_shape(site.x), normalize)


class Information(Objective):
    """lambda_1 * distance(decoder(h_out), x) + lambda_2 * label(head(h_out), y); a term of weight 0 has no modules.

    Args:
        site: where the objective sits.
        reconstruction: lambda_1, >= 0.
        information: lambda_2, >= 0.
        outputs: size of the head's output.
        label: what the head minimises.
        normalize: how the input was normalised; pixels are then reconstructed by cross-entropy.
        features: reconstruct the part's own input instead of the model's.
    """

    def __init__(
        self,
        site: Site,
        *,
        reconstruction: float,
        information: float,
        outputs: int,
        label: Label,
        normalize: Normalize | None,
        features: bool,
    ) -> None:
        super().__init__()
        self.site, self.label = site, label
        self.reconstruction, self.information = reconstruction, information
        self.decoder: nn.Module | None = None
        self.head: nn.Module | None = None
        self.target: _Target | None = None
        if reconstruction > 0:
            self.target = _target(site, normalize=normalize, features=features)
            self.decoder = heads.decoder(site.boundary, self.target.shape)
        if information > 0:
            self.head = condensing(site.boundary, outputs)

    def forward(self, context: Context) -> Signal:
        """The weighted terms; several views of a sample have the same label."""
        terms: list[Tensor] = []
        if self.decoder is not None and self.target is not None:
            distance = self.target.distance(self.decoder(context.h_out), context, self.site)
            terms.append(self.reconstruction * distance)
        if self.head is not None:
            y = context.labels
            terms.append(self.information * self.label(self.head(context.h_out), y))
        return Signal(loss=torch.stack(terms).sum())
