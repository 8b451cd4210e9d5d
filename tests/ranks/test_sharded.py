"""Proves that parts in pieces give the numbers of whole parts, halve what a rank holds, and leave the model alone."""

from __future__ import annotations

from typing import Any

import pytest
from launching import launch

CASES = {"in_pieces": 4, "clipped": 4, "refused": 4, "every_method": 2}
METHODS = ("DGL", "Backprop", "Checkpointed")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What every rank of every case says; one start for all."""
    found = launch("sharded", CASES, folder=tmp_path_factory.mktemp("sharded"))
    broken = {case: rank for case, ranks in found.items() for rank in ranks if "error" in rank}
    assert not broken
    return found


@pytest.mark.parametrize("name", METHODS)
def test_pieces_give_the_numbers_of_whole_parts(said, name):
    """Bit for bit, with slices of unequal size: two summands have one sum."""
    for rank in said["in_pieces"]:
        assert rank[f"{name} weights at first"] == rank[f"{name} weights"] == []
        assert rank[f"{name} losses"]


def test_every_method_gives_the_numbers_of_whole_parts_or_is_refused_by_name(said):
    for rank in said["every_method"]:
        wrong = {name: answer for name, answer in rank.items() if not answer.startswith(("equal", "refused: "))}
        assert not wrong
        assert {name for name, answer in rank.items() if answer == "equal"} >= {"DGL", "TRGL", "Backprop", "Greedy"}


@pytest.mark.parametrize("name", METHODS)
def test_a_rank_holds_half_of_its_parts(said, name):
    """Weights, and what the optimisers keep; heads and what does not divide are whole."""
    for rank in said["in_pieces"]:
        whole, pieces, states, cut = rank[f"{name} held"]
        assert 0.5 <= pieces / whole < 0.56
        assert cut < states
        assert "not here yet" in rank[f"{name} stale"]


@pytest.mark.parametrize("name", METHODS)
def test_the_users_model_is_as_it_was(said, name):
    for rank in said["in_pieces"]:
        assert rank[f"{name} same objects"]
        assert rank[f"{name} as it was"]


@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_of_pieces_goes_on(said, name):
    assert all(rank[f"{name} loaded"] == [[], []] for rank in said["in_pieces"])


def test_the_norm_of_a_part_in_pieces_is_clipped_as_a_whole(said):
    for rank in said["clipped"]:
        assert rank["clipped"] < 1e-6
        assert rank["clipping counts"] > 1e-4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("compile", "Ranks(shard=True) and compile=True were both given"),
        ("recompute", "Ranks(shard=True) and recompute=True were both given"),
        ("float16", "Ranks(shard=True) and precision=torch.float16 were both given"),
        ("data", "expected data > 1"),
        ("tied", "module 'two' of part 0 shares a parameter with another"),
        ("recurrent", "module 'cell' of part 1 holds a recurrent layer"),
        ("overlapping", "differentiates the part more than once"),
        ("optimizer", "RowScaled keeps rows of shape"),
    ],
)
def test_what_does_not_go_in_pieces_is_refused_by_name(said, name, message):
    assert all(message in rank[name] for rank in said["refused"])
