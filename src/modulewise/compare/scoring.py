"""What frozen features are worth to a classifier fitted afterwards, for methods that learn without labels."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.features import frozen_boundaries
from ..errors import DataError, PartitionError
from ..partition import AnyPartition
from ..partition.tree import tensors

__all__ = ["Scores", "frozen_scores", "hidden_features", "hidden_scores"]

_NEIGHBOURS = 20


@dataclass(frozen=True)
class Scores:
    """Shares of held-out samples, 0 to 1.

    Args:
        linear: that a linear classifier gets right.
        neighbours: that the nearest samples get right.
    """

    linear: float
    neighbours: float


def frozen_scores(
    fit: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], *, neighbours: int = _NEIGHBOURS, penalty: float = 1.0
) -> Scores:
    """Accuracy on held-out samples of two classifiers of scikit-learn fitted to others.

    Linear: multinomial logistic regression on features standardised by the fitted samples, minimising the sum of the
    samples' cross-entropies + penalty / 2 ||W||^2 (L-BFGS, at most 1000 iterations). Neighbours: the majority among the
    nearest fitted samples by cosine distance.

    Args:
        fit: features (N, D) and labels (N,) to fit to.
        held: features (M, D) and labels (M,) to predict.
        neighbours: how many vote, >= 1, or all where there are fewer.
        penalty: > 0.

    Raises:
        DataError: labels to fit to are of one class alone, or features are not finite.

    >>> x, y = torch.tensor([[1.0, 0.1], [0.1, 1.0], [0.9, 0.0], [0.0, 0.9]]), torch.tensor([0, 1, 0, 1])
    >>> frozen_scores((x, y), (x, y), neighbours=1)
    Scores(linear=1.0, neighbours=1.0)
    """
    # scikit-learn takes a second to import, which runs without this evaluation need not wait for.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y, x_held, y_held = (tensor.cpu().numpy() for tensor in (*fit, *held))
    if len(set(y.tolist())) < 2:
        raise DataError("the samples to fit a classifier to are all of one class, expected at least two")
    if not (torch.isfinite(fit[0]).all() and torch.isfinite(held[0]).all()):
        raise DataError("features to fit a classifier to are not finite; lower the learning rate")
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=1 / penalty, max_iter=1000))
    with warnings.catch_warnings():
        # What the solver has reached by its last iteration is the figure, within its tolerance or not.
        warnings.simplefilter("ignore", ConvergenceWarning)
        linear.fit(x, y)
    nearest = KNeighborsClassifier(n_neighbors=min(neighbours, len(x)), metric="cosine", algorithm="brute").fit(x, y)
    return Scores(linear=float(linear.score(x_held, y_held)), neighbours=float(nearest.score(x_held, y_held)))


def hidden_features(partition: AnyPartition, x: Tensor) -> Tensor:
    """What leaves the part before the last for x (N, ...), averaged over positions, (N, D); nothing in it changes.

    Raises:
        PartitionError: there is one part alone.
    """
    if len(partition) < 2:
        raise PartitionError("one part has no hidden one before it; give at least two parts to probe features")
    part = partition.parts[-2]
    assert part.output is not None, "only the last part has no boundary above it"
    h = tensors(frozen_boundaries(partition, len(partition), x, {})[part.index])[0]
    if h.dim() > 2:
        h = part.output.channels_first(h).flatten(2).mean(2)
    return h.float().cpu()


def hidden_scores(
    partition: AnyPartition, fitted: Iterable[tuple[Tensor, Tensor]], held: Iterable[tuple[Tensor, Tensor]]
) -> Scores:
    """`frozen_scores` of the features of the part before the last.

    Args:
        partition: as trained.
        fitted: batches (x, y) to fit to.
        held: batches (x, y) to score on.
    """
    return frozen_scores(_gathered(partition, fitted), _gathered(partition, held))


def _gathered(partition: AnyPartition, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    pairs = [(hidden_features(partition, x), y.cpu()) for x, y in batches]
    return torch.cat([features for features, _ in pairs]), torch.cat([labels for _, labels in pairs])
