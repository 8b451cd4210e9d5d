"""Tasks made of the classes of one data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data import Dataset, Split
from ...errors import DataError
from ...seeding import seed_of

__all__ = ["Task", "averaged", "balanced", "binary_tasks", "grouped_tasks", "of_classes", "parted", "restricted"]


@dataclass(frozen=True)
class Task:
    """Some classes of a data set; class i of the task is `classes[i]` of the data set.

    Args:
        name: for tables.
        classes: indices in the data set, at least two.
    """

    name: str
    classes: tuple[int, ...]


def binary_tasks(class_names: Sequence[str], *, count: int, seed: int = 0) -> tuple[Task, ...]:
    """Pairs of classes, drawn from all of them without repetition.

    Args:
        class_names: of the data set.
        count: how many, 1 to C (C - 1) / 2.
        seed: of the draw.

    Raises:
        DataError: there are not so many pairs.

    >>> [task.classes for task in binary_tasks(["a", "b", "c"], count=3, seed=0)]
    [(0, 1), (0, 2), (1, 2)]
    """
    pairs = list(combinations(range(len(class_names)), 2))
    if not 1 <= count <= len(pairs):
        raise DataError(
            f"{count} binary tasks were asked for, expected 1 to {len(pairs)} of {len(class_names)} classes"
        )
    order = torch.randperm(len(pairs), generator=_generator(seed, "pairs"))[:count].sort().values
    chosen = [pairs[int(index)] for index in order]
    return tuple(Task(f"{class_names[a]} / {class_names[b]}", (a, b)) for a, b in chosen)


def grouped_tasks(classes: int, *, size: int, count: int, seed: int = 0) -> tuple[Task, ...]:
    """Disjoint groups of classes, drawn at random.

    Args:
        classes: of the data set.
        size: classes a group, >= 2.
        count: how many groups, at least 1.
        seed: of the draw.

    Raises:
        DataError: there are not enough classes.

    >>> [len(task.classes) for task in grouped_tasks(10, size=5, count=2)]
    [5, 5]
    """
    if size < 2 or count < 1 or size * count > classes:
        raise DataError(
            f"{count} groups of {size} out of {classes} classes were asked for, expected groups of 2 or more"
        )
    order = torch.randperm(classes, generator=_generator(seed, "groups"))[: size * count].view(count, size)
    return tuple(Task(f"group {i}", tuple(sorted(row))) for i, row in enumerate(order.tolist()))


def restricted(split: Split, task: Task) -> Split:
    """The samples of a task's classes, with labels 0 to C - 1.

    >>> restricted(Split(torch.arange(4.0)[:, None], torch.tensor([0, 1, 2, 1])), Task("t", (1, 2))).y.tolist()
    [0, 1, 0]
    """
    table = torch.full((int(max(int(split.y.max()), max(task.classes))) + 1,), -1)
    table[torch.tensor(task.classes)] = torch.arange(len(task.classes))
    labels = table[split.y]
    kept = (labels >= 0).nonzero()[:, 0]
    return Split(split.x[kept], labels[kept])


def of_classes(split: Split, classes: Sequence[int]) -> Split:
    """The samples of some classes, with the labels that they have.

    >>> of_classes(Split(torch.arange(4.0)[:, None], torch.tensor([0, 1, 2, 1])), [2, 1]).y.tolist()
    [1, 2, 1]
    """
    kept = torch.isin(split.y, torch.tensor(list(classes)))
    return Split(split.x[kept], split.y[kept])


def balanced(split: Split, samples: int, *, seed: int = 0) -> Split:
    """So many samples, as many of every class as can be, drawn at random; all of them where there are no more.

    Args:
        split: labels (N,).
        samples: how many, >= 1.
        seed: of the draw.

    >>> small = balanced(Split(torch.zeros(6, 1), torch.tensor([0, 0, 0, 0, 1, 1])), 4)
    >>> small.y.bincount().tolist()
    [2, 2]
    """
    if samples >= len(split):
        return split
    order = torch.randperm(len(split), generator=_generator(seed, "samples"))
    labels = split.y[order]
    # The place of a sample among those of its class: small places first take the classes in turn.
    turn = (F.one_hot(labels).cumsum(0) - 1).gather(1, labels[:, None])[:, 0]
    kept = order[torch.argsort(turn, stable=True)[:samples]].sort().values
    return Split(split.x[kept], split.y[kept])


def parted(split: Split, a_class: int) -> tuple[Split, Split]:
    """The first so many samples of every class, and the others.

    Args:
        split: labels (N,).
        a_class: how many of every class, >= 0; all where there are no more.

    >>> first, others = parted(Split(torch.arange(5.0)[:, None], torch.tensor([0, 1, 0, 1, 1])), 1)
    >>> first.x[:, 0].tolist(), others.x[:, 0].tolist()
    ([0.0, 1.0], [2.0, 3.0, 4.0])
    """
    place = F.one_hot(split.y).cumsum(0).gather(1, split.y[:, None])[:, 0]
    early = place <= a_class
    return Split(split.x[early], split.y[early]), Split(split.x[~early], split.y[~early])


def averaged(dataset: Dataset, *, side: int) -> Dataset:
    """The same images at a smaller size, each pixel the mean of a square; as they are where they are no larger.

    Args:
        dataset: square uint8 images whose side is a multiple of the new one.
        side: in pixels.
    """
    if dataset.shape[1] <= side:
        return dataset
    shape = (dataset.shape[0], side, side)
    train, test = (Split(_averaged(split.x, side), split.y) for split in (dataset.train, dataset.test))
    return Dataset(dataset.name, train, test, dataset.classes, dataset.class_names, shape)


def _averaged(x: Tensor, side: int) -> Tensor:
    return torch.cat([F.adaptive_avg_pool2d(rows.float(), side).round().to(x.dtype) for rows in x.split(1024)])


def _generator(seed: int, what: str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(seed, what))
