"""Which part fits: one forward pass a part, then every score on the same features."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...data import Dataset, Loader, Normalize
from ...errors import DataError, ModulewiseError
from ...scores import Score
from .features import AnyPart, Pooling, collect, parameters_of
from .tasks import balanced

__all__ = ["Facts", "Scored", "Shaped", "Shelf", "rank", "rank_store", "ranked", "score_part"]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One score of one part on the target data.

    Args:
        part: name of the part.
        score: name of the score.
        value: higher is better; None where it could not be computed.
        refused: why not; None where it could.
        seconds: what the score took beyond the forward pass.
        pass_seconds: what the part's one forward pass took, shared by all its scores.
        samples: how many samples were seen.
        parameters: elements in the part's parameters.
    """

    part: str
    score: str
    value: float | None
    refused: str | None
    seconds: float
    pass_seconds: float
    samples: int
    parameters: int

    @property
    def total_seconds(self) -> float:
        """The pass and the score."""
        return self.pass_seconds + self.seconds


class Shaped(Protocol):
    """One sample of a tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes, without the batch axis."""


class Facts(Protocol):
    """What ranking needs of a card."""

    @property
    def input(self) -> Shaped:
        """One sample of what the part takes."""

    @property
    def normalize(self) -> Normalize | None:
        """What is done to images before."""


class Shelf(Protocol):
    """What ranking needs of a store: names, parts, and what their cards say of their input."""

    def names(self) -> tuple[str, ...]:
        """The names of the parts."""

    def load(self, name: str, /) -> nn.Module:
        """A frozen part."""

    def card(self, name: str, /) -> Facts:
        """What is known of it."""


def score_part(
    name: str,
    part: AnyPart,
    loader: Iterable[Any],
    *,
    scores: Sequence[Score],
    head: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | str | None = None,
    pool: Pooling | None = None,
) -> tuple[Scored, ...]:
    """Every score of one part, from one forward pass.

    Args:
        name: of the part.
        part: frozen, one tensor in and out.
        loader: batches (x, y) of labelled target data, gone through once.
        scores: of `modulewise.scores`.
        head: the source head, features (N, D) to logits (N, Z), for scores that read source probabilities.
        device: where the part runs; where its parameters are, if left out.
        pool: averages positions before features are flattened; None keeps all.

    Returns:
        One entry a score; one that cannot be computed on these features says why.

    Raises:
        DataError: the part does not take the batches.

    >>> from modulewise.scores import CKA
    >>> x, y = torch.tensor([[0.0], [0.0], [1.0], [1.0]]), torch.tensor([0, 0, 1, 1])
    >>> [(entry.score, round(entry.value, 6)) for entry in score_part("id", nn.Identity(), [(x, y)], scores=[CKA()])]
    [('cka', 1.0)]
    """
    started = time.perf_counter()
    features, labels = collect(part, loader, device=device, pool=pool)
    with torch.no_grad():
        source = None if head is None else head(features).softmax(1)
    pass_seconds = time.perf_counter() - started
    parameters = sum(parameter.numel() for parameter in parameters_of(part))
    entries = []
    for score in scores:
        started, value, refused = time.perf_counter(), None, None
        try:
            value = score(features, labels, source_probabilities=source)
        except DataError as error:
            refused = str(error)
        seconds = time.perf_counter() - started
        entries.append(
            Scored(
                part=name,
                score=score.name,
                value=value,
                refused=refused,
                seconds=seconds,
                pass_seconds=pass_seconds,
                samples=len(labels),
                parameters=parameters,
            )
        )
    return tuple(entries)


def rank(
    parts: Mapping[str, AnyPart],
    loader: Iterable[Any],
    *,
    scores: Sequence[Score],
    heads: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    device: torch.device | str | None = None,
    pool: Pooling | None = None,
) -> tuple[Scored, ...]:
    """Every score of every part; parts in the order of the first score, the best first.

    Args:
        parts: frozen parts by name, at least one.
        loader: labelled target data; gone through once a part.
        scores: of `modulewise.scores`, at least one.
        heads: source heads by name of the part, for scores that read source probabilities.
        device: where parts run.
        pool: averages positions before features are flattened.

    Raises:
        DataError: there is no part or no score, or a part does not take the batches.

    >>> from modulewise.scores import CKA
    >>> x, y = torch.tensor([[0.0, 0.0], [0.0, 5.0], [1.0, 0.0], [1.0, 5.0]]), torch.tensor([0, 0, 1, 1])
    >>> found = rank({"second": lambda x: x[:, 1:], "first": lambda x: x[:, :1]}, [(x, y)], scores=[CKA()])
    >>> [entry.part for entry in found]
    ['first', 'second']
    """
    if not parts or not scores:
        raise DataError(f"{len(parts)} parts and {len(scores)} scores were given, expected at least one of each")
    found: list[Scored] = []
    for name, part in parts.items():
        head = None if heads is None else heads.get(name)
        try:
            found += score_part(name, part, loader, scores=scores, head=head, device=device, pool=pool)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
    return ranked(found, scores)


def ranked(found: Iterable[Scored], scores: Sequence[Score]) -> tuple[Scored, ...]:
    """Entries part by part, the part with the best first score first; parts without it last, by name."""
    entries = tuple(found)
    best = {entry.part: entry.value for entry in entries if entry.score == scores[0].name}

    def place(name: str) -> tuple[bool, float, str]:
        value = best.get(name)
        return (value is None, 0.0 if value is None else -value, name)

    order = sorted(dict.fromkeys(entry.part for entry in entries), key=place)
    return tuple(entry for name in order for entry in entries if entry.part == name)


def rank_store(
    store: Shelf,
    dataset: Dataset,
    *,
    scores: Sequence[Score],
    samples: int = 2000,
    names: Sequence[str] | None = None,
    device: torch.device | str | None = None,
    pool: Pooling | None = None,
    seed: int = 0,
    told: Callable[[str], None] = lambda text: None,
) -> tuple[Scored, ...]:
    """Rank stored parts for a data set, on some of its training samples; nothing is trained.

    Every part gets the images as its card says they were normalised. A part that takes another shape is left out, and
    said.

    Args:
        store: where parts are.
        dataset: of the new task.
        scores: of `modulewise.scores`, at least one.
        samples: how many training samples are seen, as many of every class as can be, >= 1, default 2000.
        names: which parts; all that the store has, if left out.
        device: where parts run.
        pool: averages positions before features are flattened.
        seed: of the choice of samples.
        told: called with a line for every part that is left out.

    Raises:
        DataError: no part of the store takes the data, or samples is below 1.
    """
    if samples < 1 or not scores:
        raise DataError(f"samples={samples} and {len(scores)} scores were given, expected at least one of each")
    split = balanced(dataset.train, samples, seed=seed)
    found: list[Scored] = []
    for name in store.names() if names is None else names:
        card = store.card(name)
        if tuple(card.input.shape) != tuple(dataset.shape):
            told(f"{name} takes {tuple(card.input.shape)}, not {tuple(dataset.shape)}: left out")
            continue
        loader = Loader(split, batch_size=min(500, len(split)), shuffle=False, normalize=card.normalize)
        try:
            found += score_part(name, store.load(name), loader, scores=scores, device=device, pool=pool)
        except ModulewiseError as error:
            raise type(error)(f"{name}: {error}") from error
    if not found:
        raise DataError(f"no stored part takes samples {tuple(dataset.shape)} of {dataset.name}; store one that does")
    return ranked(found, scores)
