"""What is known of a data set as pairs, of one class or not: from a list, with all that follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from ...data.images import extra
from ...errors import DataError

__all__ = ["Pairs", "drawn_pairs", "groups", "read_pairs"]

_SHOWN = 6


def groups(first: Tensor, second: Tensor, *, samples: int) -> Tensor:
    """Which samples are of one class by a chain of pairs: the connected components of a graph.

    Args:
        first: samples (M,), 0 to samples - 1.
        second: samples (M,), each of one class with its neighbour in `first`.
        samples: N.

    Returns:
        (N,) int64, one number a group; a sample in no pair is a group of its own.

    >>> groups(torch.tensor([0, 3]), torch.tensor([2, 2]), samples=5).tolist()
    [0, 1, 0, 0, 2]
    """
    from scipy.sparse.csgraph import connected_components

    _, found = connected_components(_graph(first, second, samples), directed=False)
    return torch.from_numpy(found).long()


def _graph(first: Tensor, second: Tensor, samples: int) -> Any:
    from scipy.sparse import coo_array

    return coo_array((np.ones(len(first)), (first.numpy(), second.numpy())), shape=(samples, samples)).tocsr()


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of samples of which it is known whether they share their class, and what follows.

    Two samples joined by a chain of pairs of one class are of one class; two samples whose groups are told apart by a
    pair are of two. Nothing else is known, and no class has a name.

    Args:
        first: sample indices (M,) int64.
        second: sample indices (M,) int64.
        same: (M,) boolean, whether a pair is of one class.
        samples: N, how many samples there are; indices are 0 to N - 1.

    Raises:
        DataError: the columns do not fit, an index is out of range, or pairs contradict one another, directly or by a
            chain; the message names them.

    >>> pairs = Pairs(torch.tensor([0, 1, 2]), torch.tensor([1, 2, 3]), torch.tensor([True, True, False]), samples=5)
    >>> pairs.relation(torch.tensor([0, 2, 3, 4])).tolist()
    [[1, 1, -1, 0], [1, 1, -1, 0], [-1, -1, 1, 0], [0, 0, 0, 1]]
    """

    first: Tensor
    second: Tensor
    same: Tensor
    samples: int

    def __post_init__(self) -> None:
        _check(self.first, self.second, self.same, self.samples)
        wrong = (~self.same & (self.group[self.first] == self.group[self.second])).nonzero()
        if len(wrong):
            raise DataError(self._contradiction(int(wrong[0])))

    def __len__(self) -> int:
        return len(self.same)

    @cached_property
    def group(self) -> Tensor:
        """The group (N,) of every sample, as `groups` numbers them."""
        return groups(self.first[self.same], self.second[self.same], samples=self.samples)

    @cached_property
    def _apart(self) -> Tensor:
        """Codes of pairs of groups that are told apart, in order."""
        ends = torch.stack([self.group[self.first[~self.same]], self.group[self.second[~self.same]]])
        return self._code(ends[0], ends[1]).unique()

    def _code(self, one: Tensor, other: Tensor) -> Tensor:
        return torch.minimum(one, other) * self.samples + torch.maximum(one, other)

    def relation(self, indices: Tensor) -> Tensor:
        """What is known of all pairs of some samples: 1 one class, -1 two classes, 0 not known.

        Args:
            indices: samples (n,), on any device.

        Returns:
            (n, n) int8 on the device of the indices, 1 on the diagonal: what pairwise objectives take for labels.
        """
        group = self.group[indices.cpu()]
        code, apart = self._code(group[:, None], group[None, :]), self._apart
        place = torch.searchsorted(apart, code).clamp_max(max(0, len(apart) - 1))
        told = apart[place] == code if len(apart) else torch.zeros_like(code, dtype=torch.bool)
        return ((group[:, None] == group[None, :]).to(torch.int8) - told.to(torch.int8)).to(indices.device)

    def _contradiction(self, row: int) -> str:
        """One line that names the pairs: what pair `row` tells apart, a chain joins."""
        from scipy.sparse.csgraph import breadth_first_order

        start, end = int(self.first[row]), int(self.second[row])
        graph = _graph(self.first[self.same], self.second[self.same], self.samples)
        _, before = breadth_first_order(graph, start, directed=False)
        chain = [end]
        while chain[-1] != start:
            chain.append(int(before[chain[-1]]))
        steps = [f"({a}, {b})" for a, b in zip(chain[::-1], chain[::-1][1:], strict=False)]
        if len(steps) > _SHOWN:
            steps = [*steps[: _SHOWN - 1], "...", steps[-1]]
        joined = f"the pair{'s' * (len(steps) > 1)} of one class {', '.join(steps)}"
        if start == end:
            joined = "that every sample is like itself"
        return (
            f"pair {row} says that samples {start} and {end} are of two classes, which contradicts {joined}; correct "
            "or remove one of these pairs"
        )


def _check(first: Tensor, second: Tensor, same: Tensor, samples: int) -> None:
    shapes = {tuple(column.shape) for column in (first, second, same)}
    kinds = (first.dtype, second.dtype, same.dtype)
    if len(shapes) != 1 or first.dim() != 1 or kinds != (torch.int64, torch.int64, torch.bool):
        raise DataError(
            f"pairs of shapes {sorted(shapes)} and types {', '.join(map(str, kinds))} were given, expected first and "
            "second (M,) int64 and same (M,) bool"
        )
    wrong = ((first < 0) | (first >= samples) | (second < 0) | (second >= samples)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"pair {row} is of samples {int(first[row])} and {int(second[row])}, expected indices of the training "
            f"samples, 0 to {samples - 1}"
        )


def read_pairs(path: str | Path, *, samples: int) -> Pairs:
    """Pairs from a parquet file with the columns first, second (sample indices) and same (bool), others left out.

    Args:
        path: the file.
        samples: how many samples there are.

    Raises:
        DataError: pyarrow is not installed, the file cannot be read, a column is missing, of another type or has
            gaps, or what `Pairs` refuses.
    """
    arrow, parquet = extra("pyarrow"), extra("pyarrow.parquet")
    wanted = {"first": arrow.int64(), "second": arrow.int64(), "same": arrow.bool_()}
    try:
        table = parquet.read_table(path)
        missing = [name for name in wanted if name not in table.column_names]
        if missing:
            raise DataError(
                f"{path} has no column {', '.join(missing)} among {', '.join(table.column_names)}; expected first, "
                "second (sample indices) and same (bool)"
            )
        gaps = [name for name in wanted if table.column(name).null_count]
        if gaps:
            raise DataError(f"column {gaps[0]} of {path} has gaps; leave out the pairs that nobody has compared")
        first, second, same = (
            torch.from_numpy(np.array(table.column(name).cast(kind).to_numpy())) for name, kind in wanted.items()
        )
    except (arrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path} cannot be read as pairs ({reason}); expected a parquet file with columns first, second and same"
        ) from error
    return Pairs(first, second, same, samples)


def drawn_pairs(labels: Tensor, *, count: int, seed: int = 0) -> Pairs:
    """Pairs of two different samples, drawn evenly and with replacement, as somebody would say of them who sees labels.

    Args:
        labels: (N,) int64, N >= 2.
        count: M >= 1.
        seed: of the draw; torch's generators stay where they are.

    Raises:
        DataError: there are fewer than two samples, or count < 1.

    >>> pairs = drawn_pairs(torch.tensor([0, 0, 1, 1]), count=50)
    >>> len(pairs), pairs.relation(torch.arange(4)).tolist()[0]
    (50, [1, 1, -1, -1])
    """
    n = len(labels)
    if n < 2 or count < 1:
        raise DataError(f"{count} pairs of {n} samples were asked for, expected at least 1 of at least 2")
    generator = Generator().manual_seed(seed)
    first = torch.randint(n, (count,), generator=generator)
    second = (first + torch.randint(1, n, (count,), generator=generator)) % n
    y = labels.cpu()
    return Pairs(first, second, y[first] == y[second], n)
