"""What PredSim's two supervised terms aim at, and the heads that go with it: with backpropagation or without."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ... import heads, losses
from ...heads.aligned import AlignedLinear
from ...heads.layers import ChannelsFirst, Pool, channel_map, finished, flat, grid_axes, halved_until, working_layout
from ...partition.boundary import Boundary

__all__ = ["LabelTargets", "OneHotTargets", "ProjectedTargets"]


class LabelTargets(nn.Module, ABC):
    """Targets made of labels, and the two heads whose outputs are held against them."""

    @abstractmethod
    def predictor(self, boundary: Boundary, *, features: int) -> nn.Module:
        """The head h -> logits: linear on the average pooled boundary, at most `features` inputs, starting at zero."""

    @abstractmethod
    def view(self, boundary: Boundary, *, features: int) -> nn.Module:
        """The map h -> what the similarity matrix is made of, channels first."""

    @abstractmethod
    def prediction(self, logits: Tensor, y: Tensor) -> Tensor:
        """The prediction loss."""

    @abstractmethod
    def similarity(self, y: Tensor, *, dtype: torch.dtype) -> Tensor:
        """The similarity matrix to match (N, N)."""


class OneHotTargets(LabelTargets):
    """Classes as they are; both heads are trained and pass their error back by the chain rule.

    Args:
        classes: number of classes.
        criterion: criterion(logits, y) -> scalar.
    """

    def __init__(self, *, classes: int, criterion: losses.Criterion) -> None:
        super().__init__()
        self.classes, self.criterion = classes, criterion

    def predictor(self, boundary: Boundary, *, features: int) -> nn.Module:
        """A linear classifier."""
        head = heads.linear(boundary, self.classes, pool=halved_until(boundary, features))
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
        return head

    def view(self, boundary: Boundary, *, features: int) -> nn.Module:
        """A 3x3 convolution, a linear map on tokens and vectors; without bias."""
        return channel_map(boundary, boundary.channels, kernel=3)

    def prediction(self, logits: Tensor, y: Tensor) -> Tensor:
        """The criterion."""
        return self.criterion(logits, y)

    def similarity(self, y: Tensor, *, dtype: torch.dtype) -> Tensor:
        """R(onehot(y))."""
        return losses.one_hot_similarity(y, classes=self.classes, dtype=dtype)


class ProjectedTargets(LabelTargets):
    """Classes through a fixed random projection P; no error passes back through a trained weight.

    Args:
        classes: number of classes.
        outputs: columns of P.
    """

    projection: Tensor

    def __init__(self, *, classes: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("projection", (torch.rand(classes, outputs) * 2 - 1) / classes**0.5)

    def predictor(self, boundary: Boundary, *, features: int) -> nn.Module:
        """A linear map that learns by feedback alignment."""
        layers, inputs = flat(boundary, boundary.channels, halved_until(boundary, features))
        aligned = AlignedLinear(inputs, self.projection.shape[1])
        return finished(boundary, [*working_layout(boundary), *layers, aligned])

    def view(self, boundary: Boundary, *, features: int) -> nn.Module:
        """The boundary itself, grids average pooled as for the prediction."""
        if grid_axes(boundary):
            return nn.Sequential(*working_layout(boundary), Pool(halved_until(boundary, features)))
        return ChannelsFirst() if boundary.spatial else nn.Identity()

    def prediction(self, logits: Tensor, y: Tensor) -> Tensor:
        """Binary cross-entropy with the signs of the projection."""
        return losses.sign_cross_entropy(logits, losses.projected_labels(y, self.projection))

    def similarity(self, y: Tensor, *, dtype: torch.dtype) -> Tensor:
        """R(onehot(y) P)."""
        return losses.similarity_matrix(losses.projected_labels(y, self.projection.to(dtype)))
