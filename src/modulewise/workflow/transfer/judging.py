"""Every candidate part on every target task: scores, what they cost, and the accuracy of a head trained on the part."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...data import Loader, Normalize, Split
from ...scores import Score
from ...seeding import preserved_generators, set_generators
from ..ranking.features import Pooling, collect
from ..ranking.ranking import Scored, score_part
from ..ranking.tasks import Task, balanced, restricted

__all__ = ["Candidate", "Field", "Pair", "head_accuracy", "head_epoch_seconds", "judged"]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A frozen part that may be reused.

    Args:
        name: of the part, unique.
        part: (N, ...) to (N, ...).
        task: that it was trained for; None where it was not trained.
        head: features to logits of the source classes; None where there is none.
        static: what is known of it before any target: numbers, higher is better.
        pool: averages positions before features are flattened; None keeps all.
    """

    name: str
    part: nn.Module
    task: Task | None
    head: nn.Module | None
    static: Mapping[str, float] = field(default_factory=dict)
    pool: Pooling | None = None


@dataclass(frozen=True, eq=False)
class Field:
    """The data that targets are made of.

    Args:
        train: what heads are trained on, and scores see a part of.
        test: what heads are judged on; no score sees it.
        normalize: what is done to images.
        samples: how many training samples of a target a score sees.
        seed: of their choice.
    """

    train: Split
    test: Split
    normalize: Normalize
    samples: int
    seed: int

    def loader(self, split: Split, *, batch_size: int = 500) -> Loader:
        """All samples in order."""
        return Loader(split, batch_size=batch_size, shuffle=False, normalize=self.normalize)


@dataclass(frozen=True)
class Pair:
    """A candidate on a target.

    Args:
        source: name of the candidate.
        target: name of the task.
        own: whether the candidate was trained for this very task.
        accuracy: of a head trained on the frozen part, on test data.
        scored: the scores, and what they cost.
        static: what was known before.
    """

    source: str
    target: str
    own: bool
    accuracy: float
    scored: tuple[Scored, ...]
    static: Mapping[str, float]


def head_accuracy(fit: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor]) -> float:
    """Test accuracy of a linear head with cross-entropy, trained to its optimum on fixed features.

    Features are divided by their standard deviation over the training samples after their mean is taken out; the head
    is scikit-learn's logistic regression with its default penalty.

    Args:
        fit: features (N, D) and labels (N,) to train on.
        held: features (M, D) and labels (M,) to judge on.

    >>> x, y = torch.tensor([[0.0], [1.0], [0.1], [0.9]]), torch.tensor([0, 1, 0, 1])
    >>> head_accuracy((x, y), (x, y))
    1.0
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    (x, y), (x_held, y_held) = fit, held
    mean, std = x.double().mean(0), x.double().std(0, correction=0)
    scale = torch.where(std > 1e-8, std, torch.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        head = LogisticRegression(max_iter=200).fit(((x.double() - mean) / scale).numpy(), y.numpy())
    guess = torch.from_numpy(head.predict(((x_held.double() - mean) / scale).numpy()))
    return float((guess == y_held).double().mean())


def head_epoch_seconds(candidate: Candidate, loader: Loader, *, classes: int) -> float:
    """Seconds of one epoch in which a linear head learns on the frozen part, batch by batch.

    Args:
        candidate: whose part runs forward.
        loader: batches (x, y) of the target's training data.
        classes: of the target.
    """
    started = time.perf_counter()
    head: nn.Linear | None = None
    for x, y in loader:
        features, _ = collect(candidate.part, [(x, y)], pool=candidate.pool)
        if head is None:
            with preserved_generators():
                set_generators(0)
                head = nn.Linear(features.shape[1], classes)
            optimizer = torch.optim.SGD(head.parameters(), lr=0.05, momentum=0.9)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(features), y).backward()
        optimizer.step()
    return time.perf_counter() - started


def judged(
    candidates: Sequence[Candidate],
    targets: Sequence[Task],
    field: Field,
    scores: Sequence[Score],
    *,
    told: Callable[[str], None] = lambda text: None,
) -> Iterator[Pair]:
    """Every candidate on every target; a candidate's features for heads are computed once.

    Args:
        candidates: the parts.
        targets: tasks made of the field's classes.
        field: the data.
        scores: which to compute, on training data alone.
        told: called with a line after every candidate.
    """
    for candidate in candidates:
        train = collect(candidate.part, field.loader(field.train), pool=candidate.pool)
        test = collect(candidate.part, field.loader(field.test), pool=candidate.pool)
        for target in targets:
            fit, held = (restricted(Split(*features), target) for features in (train, test))
            seen = balanced(restricted(field.train, target), field.samples, seed=field.seed)
            yield Pair(
                source=candidate.name,
                target=target.name,
                own=candidate.task == target,
                accuracy=head_accuracy((fit.x, fit.y), (held.x, held.y)),
                scored=score_part(
                    candidate.name,
                    candidate.part,
                    field.loader(seen),
                    scores=scores,
                    head=candidate.head,
                    pool=candidate.pool,
                ),
                static=candidate.static,
            )
        told(f"judged {candidate.name}")
