"""What every score is: features and labels in, one number out, higher is better."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import DataError
from ..method import Reference

__all__ = ["Score", "class_counts", "class_means", "compact", "one_hot"]


@dataclass(frozen=True)
class Score(ABC):
    """How well features of target data fit its labels; higher is better, and nothing is trained by gradient descent.

    Called as `score(features, labels)`, or with `source_probabilities` where `reads_source` says so. The features are
    those of a frozen part on labelled data of the new task.
    """

    name: ClassVar[str]
    reads_source: ClassVar[bool] = False
    references: ClassVar[tuple[Reference, ...]] = ()

    def __call__(self, features: Tensor, labels: Tensor, *, source_probabilities: Tensor | None = None) -> float:
        """The score.

        Args:
            features: (N, D), floating point, finite; what a part gives for N samples, flattened.
            labels: (N,), integers, two classes or more and fewer than N.
            source_probabilities: (N, Z), the source head's class probabilities, rows that sum to 1; needed by scores
                with `reads_source`, ignored by others.

        Raises:
            DataError: one class or fewer, not more samples than classes, values that are not finite, labels of another
                length, or no source probabilities where they are read.
        """
        labels = compact(features, labels)
        source = _probabilities(self.name, source_probabilities, labels) if self.reads_source else None
        value = self.value(features.detach().double(), labels, source)
        if not math.isfinite(value):
            raise DataError(f"{self.name} of these features is {value}; rescale the features or take another score")
        return value

    @abstractmethod
    def value(self, features: Tensor, labels: Tensor, source: Tensor | None) -> float:
        """The score of float64 features (N, D), labels (N,) in 0 to C - 1, all there, and probabilities or None."""


def compact(features: Tensor, labels: Tensor) -> Tensor:
    """Labels as indices 0 to C - 1 of the classes that occur, after looking at both tensors.

    Raises:
        DataError: as `Score` says.

    >>> compact(torch.eye(4), torch.tensor([7, 2, 7, 2])).tolist()
    [1, 0, 1, 0]
    """
    if features.ndim != 2 or not features.is_floating_point():
        raise DataError(
            f"features of shape {tuple(features.shape)} and type {features.dtype} were given, expected floats (N, D); "
            "flatten them, or use workflow.features.collect"
        )
    if labels.ndim != 1 or labels.is_floating_point() or len(labels) != len(features):
        raise DataError(
            f"{len(features)} features came with labels of shape {tuple(labels.shape)} and type {labels.dtype}, "
            "expected one integer a sample"
        )
    if not bool(torch.isfinite(features).all()):
        row = int((~torch.isfinite(features)).any(1).nonzero()[0, 0])
        raise DataError(f"features of sample {row} are not finite; look at the part or at its input")
    classes, indices = torch.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"{len(labels)} samples of {len(classes)} class were given, a score needs two or more classes")
    if len(labels) <= len(classes):
        raise DataError(
            f"{len(labels)} samples of {len(classes)} classes were given, expected more samples than classes"
        )
    found: Tensor = indices.to(features.device)
    return found


def _probabilities(name: str, given: Tensor | None, labels: Tensor) -> Tensor:
    if given is None:
        raise DataError(f"{name} reads the source head's class probabilities; give source_probabilities= (N, Z)")
    if given.ndim != 2 or len(given) != len(labels) or not given.is_floating_point():
        raise DataError(
            f"source probabilities {tuple(given.shape)} came with {len(labels)} samples, expected (N, Z) floats"
        )
    wide = given.detach().to(labels.device).double()
    if not bool(((wide >= 0).all(1) & ((wide.sum(1) - 1).abs() < 1e-3)).all()):
        raise DataError("source probabilities are negative, not finite or do not sum to 1; give softmax(logits)")
    return wide


def one_hot(labels: Tensor) -> Tensor:
    """Labels 0 to C - 1 as rows of the identity, (N, C) float64.

    >>> one_hot(torch.tensor([1, 0])).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    return torch.nn.functional.one_hot(labels).double()


def class_counts(labels: Tensor) -> Tensor:
    """How many samples every class has, (C,) float64.

    >>> class_counts(torch.tensor([1, 0, 1])).tolist()
    [1.0, 2.0]
    """
    return torch.bincount(labels).double()


def class_means(features: Tensor, labels: Tensor) -> Tensor:
    """The mean feature of every class, (C, D).

    >>> class_means(torch.tensor([[1.0], [3.0], [5.0]]).double(), torch.tensor([0, 0, 1])).tolist()
    [[2.0], [5.0]]
    """
    return (one_hot(labels).T @ features) / class_counts(labels)[:, None]
