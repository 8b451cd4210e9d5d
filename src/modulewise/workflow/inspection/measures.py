"""What can be said of a representation alone: similarity to another, effective rank, dead units, probes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import DataError
from ...losses import LINEAR, RELU, Kernel, PairwiseObjective, alignment
from ...losses.dependence import normalized_hsic

__all__ = ["Probe", "dead_units", "effective_rank", "linear_cka", "linear_probe", "neighbour_accuracy", "proxy_value"]


def linear_cka(a: Tensor, b: Tensor) -> float:
    """Linear centred kernel alignment of two representations of the same samples, 0 to 1.

    CKA = ||B^T A||_F^2 / (||A^T A||_F ||B^T B||_F), the columns of A and B less their means. Rotations and one factor
    for all features change nothing; 0 where one of them is the same for all samples. With fewer samples than features
    it is biased upwards: compare values of one number of samples, not with 0.

    Args:
        a: features (N, ...), flattened.
        b: features (N, ...) of the same samples.

    Raises:
        DataError: the numbers of samples differ.

    References:
        S. Kornblith, M. Norouzi, H. Lee, G. Hinton, Similarity of Neural Network Representations Revisited, ICML 2019,
        https://arxiv.org/abs/1905.00414

    >>> h = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 3.0]])
    >>> round(linear_cka(h, 5 * h.flip(1)), 6)
    1.0
    """
    if len(a) != len(b):
        raise DataError(f"representations of {len(a)} and {len(b)} samples were given, expected the same samples")
    a, b = (LINEAR.gram(_centred(h)) for h in (a, b))
    return float(normalized_hsic(a, b))


def effective_rank(features: Tensor) -> float:
    """exp(-sum_i p_i log p_i) with p_i = s_i / sum_j s_j of the singular values s: how many directions are in use.

    A matrix of rank r with equal singular values has r. The mean is not taken off here; take it off first where the
    spread around it is meant. A matrix of zeros has 0.

    Args:
        features: (N, ...), flattened to (N, D).

    Returns:
        0, or from 1 to min(N, D).

    References:
        O. Roy, M. Vetterli, The Effective Rank: A Measure of Effective Dimensionality, EUSIPCO 2007,
        https://ieeexplore.ieee.org/document/7098875

    >>> round(effective_rank(torch.eye(5)), 6), effective_rank(torch.zeros(3, 2))
    (5.0, 0.0)
    """
    h = features.double().flatten(1)
    # The eigenvalues of the smaller Gram matrix are the squares of the singular values; those that rounding makes are
    # cut off.
    gram = h @ h.T if h.shape[0] <= h.shape[1] else h.T @ h
    squares = torch.linalg.eigvalsh(gram)
    largest = float(squares[-1])
    if largest <= 0:
        return 0.0
    values = squares[squares > largest * len(squares) * 2.3e-16].sqrt()
    p = values / values.sum()
    return float(torch.exp(-(p * p.log()).sum()))


def dead_units(features: Tensor, *, channel_axis: int = 1, tolerance: float = 1e-6) -> float:
    """The share of units that say the same for every sample and position, 0 to 1.

    A unit is a channel (or a feature); it is dead where max - min over samples and positions is at most `tolerance`
    times the largest absolute value in the representation.

    Args:
        features: (N, C), (N, C, *spatial), or (N, *spatial, C), N >= 2.
        channel_axis: 1, or -1 for channels last.
        tolerance: >= 0.

    >>> dead_units(torch.tensor([[0.0, 1.0, 3.0, 2.0], [0.0, 2.0, 3.0, 4.0]]))
    0.5
    """
    units = features.movedim(channel_axis, 0).flatten(1)
    spread = units.amax(1) - units.amin(1)
    return float((spread <= tolerance * features.abs().max()).double().mean())


def proxy_value(
    features: Tensor, labels: Tensor, *, kernel: Kernel = RELU, maximise: PairwiseObjective = alignment
) -> float:
    """A pairwise proxy objective of a representation, as `methods.KernelProxy` maximises it; for alignment -1 to 1.

    Args:
        features: (N, ...), flattened.
        labels: classes (N,), two or more of them.
        kernel: with a range; ReLU unless given.
        maximise: one of the pairwise objectives; alignment unless given.

    Raises:
        MethodError: all samples are of one class.

    >>> round(proxy_value(torch.eye(2), torch.tensor([0, 1])), 6)
    1.0
    """
    gram = kernel.gram(features.double())
    return float(maximise(gram, labels, minimum=kernel.minimum, maximum=kernel.maximum))


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a linear classifier reads from a representation, on held-out samples.

    Args:
        accuracy: share of right classes, 0 to 1.
        cross_entropy: mean of -log of the probability of the right class, in nats.
    """

    accuracy: float
    cross_entropy: float


def linear_probe(fit: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], *, penalty: float = 0.01) -> Probe:
    """Multinomial logistic regression on standardised features, fitted to some samples and scored on others.

    Minimises the mean cross-entropy plus penalty / 2 ||W||^2. Features that are the same for all fitted samples are
    left out of it. A class that was not among the fitted samples has the probability 1e-12.

    Args:
        fit: features (N, D) and labels (N,) to fit to, of two classes or more.
        held: features (M, D) and labels (M,) to score on.
        penalty: > 0.

    Raises:
        DataError: the fitted samples are of one class.

    >>> x, y = torch.tensor([[0.0], [1.0], [0.1], [0.9]]), torch.tensor([0, 1, 0, 1])
    >>> linear_probe((x, y), (x, y)).accuracy
    1.0
    """
    # scikit-learn takes a second to import, which those who do not probe need not wait for.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    (x, y), (x_held, y_held) = fit, held
    classes = y.unique()
    if len(classes) < 2:
        raise DataError("the samples to fit a probe to are all of one class, expected at least two; shuffle the data")
    mean, std = x.double().mean(0), x.double().std(0, correction=0)
    scale = torch.where(std > 1e-8 * x.abs().max().clamp_min(1e-30), std, torch.inf)
    z, z_held = (((h.double() - mean) / scale).numpy() for h in (x, x_held))
    model = LogisticRegression(C=1 / (penalty * len(y)), max_iter=200)
    with warnings.catch_warnings():
        # What the solver has reached by its last iteration is the figure, within its tolerance or not.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(z, y.numpy())
    logs = torch.full((len(y_held), int(max(y.max(), y_held.max())) + 1), 1e-12, dtype=torch.double).log()
    logs[:, classes] = torch.from_numpy(model.predict_log_proba(z_held)).clamp_min(logs.min())
    accuracy = (logs.argmax(1) == y_held).double().mean()
    return Probe(accuracy=float(accuracy), cross_entropy=float(-logs.gather(1, y_held[:, None]).mean()))


def neighbour_accuracy(fit: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], *, neighbours: int = 20) -> float:
    """Accuracy of the most frequent class among the nearest samples by cosine; of equal ones the lowest class.

    Args:
        fit: features (N, D) and labels (N,) to look among.
        held: features (M, D) and labels (M,) to classify.
        neighbours: how many, >= 1; all where there are fewer.

    >>> x, y = torch.tensor([[1.0, 0.1], [0.1, 1.0]]), torch.tensor([0, 1])
    >>> neighbour_accuracy((x, y), (2 * x, y), neighbours=1)
    1.0
    """
    (x, y), (x_held, y_held) = fit, held
    similarity = F.normalize(x_held.double(), dim=1) @ F.normalize(x.double(), dim=1).T
    nearest = similarity.topk(min(neighbours, len(y)), dim=1).indices
    votes = F.one_hot(y[nearest]).sum(1)
    return float((votes.argmax(1) == y_held).double().mean())


def _centred(h: Tensor) -> Tensor:
    h = h.double().flatten(1)
    return h - h.mean(0)
