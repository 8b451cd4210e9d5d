"""Automatic cuts: exact by brute force, on numbers that are checked by hand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from modulewise import Partition, balance
from modulewise.balance import Slice, split


def all_splits(count: int, parts: int) -> list[list[tuple[int, int]]]:
    """Every way to group neighbours."""
    found = []
    for ends in combinations(range(1, count), parts - 1):
        edges = [0, *ends, count]
        found.append(list(pairwise(edges)))
    return found


def groups(ends: Sequence[int], count: int) -> list[tuple[int, int]]:
    edges = [0, *(end + 1 for end in ends), count]
    return list(pairwise(edges))


costs = st.lists(st.integers(0, 50), min_size=1, max_size=8)


@settings(deadline=None, max_examples=200)
@given(costs=costs, data=st.data())
def test_a_split_of_sums_is_the_best_of_all_splits(costs: list[int], data: st.DataObject) -> None:
    """The smallest largest group; among those the smallest sum of squares."""
    parts = data.draw(st.integers(1, len(costs)))

    def cost(start: int, stop: int) -> float:
        return float(sum(costs[start:stop]))

    def quality(grouping: list[tuple[int, int]]) -> tuple[float, float]:
        sizes = [cost(*group) for group in grouping]
        return max(sizes), sum(size * size for size in sizes)

    ends = split(cost, len(costs), parts)
    assert len(ends) == parts - 1
    assert ends == sorted(set(ends))
    assert all(0 <= end < len(costs) - 1 for end in ends)
    assert quality(groups(ends, len(costs))) == min(map(quality, all_splits(len(costs), parts)))


@settings(deadline=None, max_examples=100)
@given(count=st.integers(1, 6), data=st.data())
def test_a_split_of_costs_that_do_not_add_up_is_the_best_of_all_splits(count: int, data: st.DataObject) -> None:
    """Any cost of a group will do, monotone or not."""
    table = {
        (start, stop): data.draw(st.integers(0, 30)) for start in range(count) for stop in range(start + 1, count + 1)
    }
    parts = data.draw(st.integers(1, count))
    best = min(max(table[group] for group in grouping) for grouping in all_splits(count, parts))
    found = groups(split(lambda start, stop: table[start, stop], count, parts), count)
    assert max(table[group] for group in found) == best


pieces = st.builds(
    Slice,
    name=st.just(""),
    parameters=st.just(0),
    parameter_bytes=st.integers(0, 99),
    input_bytes=st.integers(0, 99),
    output_bytes=st.integers(0, 99),
    saved_bytes=st.integers(0, 99),
    shared_bytes=st.integers(0, 9),
    transient_bytes=st.integers(0, 99),
    seconds=st.floats(0, 1),
)


@settings(deadline=None)
@given(st.lists(pieces, min_size=1, max_size=5))
def test_memory_is_the_formula_of_its_description(slices: list[Slice]) -> None:
    """A literal loop over the moments of the backward."""
    last = len(slices) - 1
    worst = 0
    for s in range(len(slices)):
        held = sum(slices[t].saved_bytes for t in range(s + 1)) - sum(slices[t].shared_bytes for t in range(1, s + 1))
        gradients = sum(slices[t].parameter_bytes for t in range(s + 1, len(slices)))
        worst = max(
            worst, held + slices[s].transient_bytes + gradients + (slices[last].output_bytes if s < last else 0)
        )
    assert balance.memory(slices) == worst
    assert balance.time(slices) == pytest.approx(sum(piece.seconds for piece in slices))


def mlp() -> nn.Sequential:
    """3 -> 7 -> 11 -> 2 with an activation that keeps its output."""
    return nn.Sequential(nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 2))


def test_the_bytes_of_slices_of_an_mlp_by_hand() -> None:
    """Batch 5, 4 bytes an element: a layer keeps its input, an activation its output, both once."""
    partition = Partition(mlp(), example=torch.randn(5, 3), parts=1)
    first, second, third = partition.measure()
    assert [piece.name for piece in (first, second, third)] == ["1", "3", ""]
    assert [piece.parameters for piece in (first, second, third)] == [3 * 7 + 7, 7 * 11 + 11, 11 * 2 + 2]
    assert [piece.parameter_bytes for piece in (first, second, third)] == [4 * 28, 4 * 88, 4 * 24]
    x, h1, h2, out = (4 * 5 * width for width in (3, 7, 11, 2))
    assert [piece.saved_bytes for piece in (first, second, third)] == [x + h1, h1 + h2, h2]
    assert [piece.shared_bytes for piece in (first, second, third)] == [0, h1, h2]
    assert [piece.input_bytes for piece in (first, second, third)] == [0, h1, h2]
    assert [piece.output_bytes for piece in (first, second, third)] == [h1, h2, out]


def test_bytes_grow_with_the_batch_of_the_example() -> None:
    small, large = (Partition(mlp(), example=torch.randn(n, 3), parts=1).measure() for n in (5, 20))
    assert [4 * piece.saved_bytes for piece in small] == [piece.saved_bytes for piece in large]
    assert [piece.parameter_bytes for piece in small] == [piece.parameter_bytes for piece in large]


@pytest.mark.parametrize("cost", [balance.memory, balance.recomputed_memory])
@pytest.mark.parametrize("parts", [2, 3, 4])
def test_automatic_cuts_have_the_smallest_largest_part_of_all_splits(cost: balance.Balance, parts: int) -> None:
    """Measured costs of a real model, every split tried."""
    torch.manual_seed(0)
    widths = [6, 40, 10, 30, 5, 60, 8]
    layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)]
    partition = Partition(nn.Sequential(*layers), example=torch.randn(9, 6), parts=parts, balance=cost)
    slices = partition.measure()
    assert len(slices) == 6
    names = [piece.name for piece in slices]
    found = groups([names.index(cut) for cut in partition.cuts], len(slices))

    def largest(grouping: list[tuple[int, int]]) -> float:
        return max(cost(slices[start:stop]) for start, stop in grouping)

    assert largest(found) == min(map(largest, all_splits(len(slices), parts)))


def test_a_users_own_cost_function() -> None:
    """One part as large as all but the last layer is what this cost asks for."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
    partition = Partition(
        model, example=torch.randn(2, 4), parts=2, balance=lambda run: float(run[-1].name == "" and len(run) > 1)
    )
    assert partition.cuts == ("3",)


def _slice(saved: int, *, below: int, parameters: int = 1) -> balance.Slice:
    return balance.Slice(
        name="",
        parameters=parameters,
        parameter_bytes=0,
        input_bytes=below,
        output_bytes=0,
        saved_bytes=saved,
        shared_bytes=0,
        transient_bytes=0,
        seconds=0.0,
    )


def test_kept_from_runs_as_few_slices_again_as_the_limit_allows() -> None:
    """Three slices that save 10 each above inputs of 1: all kept need 30, two kept 21, only the last kept 12."""
    slices = [_slice(10, below=1) for _ in range(3)]
    assert balance.memory(slices) == 30
    assert balance.recomputed_memory(slices) == 12
    assert [balance.kept_from(slices, limit) for limit in (30, 29, 21, 20, 12, 0)] == [0, 1, 1, 2, 2, 2]


def test_parameters_counts_parameters() -> None:
    assert balance.parameters([_slice(1, below=1, parameters=3), _slice(1, below=1, parameters=4)]) == 7
