"""Times of pipelines, against the papers' closed forms and bounds that any schedule keeps."""

from __future__ import annotations

import pytest

import modulewise as mw
from modulewise.planning.pipelines import (
    Piece,
    Stage,
    bubble,
    bubble_free,
    decoupled,
    gpipe,
    one_forward_one_backward,
    played,
    zero_bubble_h1,
)

EVEN = Stage(forward=1, to_input=1, to_weights=1)
UNEVEN = [
    Stage(forward=1, to_input=0, to_weights=2),
    Stage(forward=2, to_input=2, to_weights=3),
    Stage(forward=1.5, to_input=1, to_weights=1),
    Stage(forward=0.5, to_input=1, to_weights=0.5),
]


@pytest.mark.parametrize("m", [1, 2, 4, 8])
@pytest.mark.parametrize("p", [1, 2, 4])
def test_equal_stages_have_the_bubble_of_the_papers(p: int, m: int) -> None:
    """(p - 1) / (m + p - 1) of GPipe and 1F1B; (p - 1) (F + B - W) of ZB-H1, a third of it."""
    stages = [EVEN] * p
    assert bubble(stages, gpipe(stages, m)) == pytest.approx((p - 1) / (m + p - 1))
    assert bubble(stages, one_forward_one_backward(stages, m)) == pytest.approx((p - 1) / (m + p - 1))
    if m < p:  # too few micro-batches for the gradients of weights to fill the wait
        return
    idle = one_forward_one_backward(stages, m) - bubble_free(stages)
    assert zero_bubble_h1(stages, m) - bubble_free(stages) == pytest.approx(idle / 3)


@pytest.mark.parametrize("m", [1, 2, 4, 8])
@pytest.mark.parametrize("stages", [UNEVEN, UNEVEN[::-1]], ids=["uneven", "reversed"])
def test_gpipe_of_unequal_stages_is_one_pass_up_and_one_down(stages: list[Stage], m: int) -> None:
    """sum F / m + (m - 1) max F / m, and the same of the backward."""
    ways = [[s.forward for s in stages], [s.to_input + s.to_weights for s in stages]]
    assert gpipe(stages, m) == pytest.approx(sum((sum(w) + (m - 1) * max(w)) / m for w in ways))


@pytest.mark.parametrize("m", [1, 2, 4, 8])
@pytest.mark.parametrize("stages", [UNEVEN, UNEVEN[::-1]], ids=["uneven", "reversed"])
def test_times_of_unequal_stages_lie_between_their_bounds(stages: list[Stage], m: int) -> None:
    """A stage waits for the first micro-batch to come up and the last to go down; no schedule is faster."""
    way_up = [sum(s.forward for s in stages[:d]) for d in range(len(stages))]
    way_down = [sum(s.to_input + s.to_weights for s in stages[:d]) for d in range(len(stages))]
    at_least = max(s.work + (up + down) / m for s, up, down in zip(stages, way_up, way_down, strict=True))
    at_most = (sum(s.work for s in stages) + (m - 1) * max(s.work for s in stages)) / m
    assert at_least - 1e-9 <= one_forward_one_backward(stages, m) <= at_most + 1e-9
    assert bubble_free(stages) <= zero_bubble_h1(stages, m) <= one_forward_one_backward(stages, m) + 1e-9


def test_orders_that_wait_for_one_another_are_refused() -> None:
    """A backward before its forward never starts."""
    with pytest.raises(mw.ModulewiseError, match="wait for one another"):
        played([[Piece("B", 0), Piece("F", 0)]], [EVEN], 1)


def test_no_backpropagation_beats_the_slowest_stage_and_local_learning_pays_its_objective_alone() -> None:
    """Local learning is the slowest stage with its objective, whatever the number of micro-batches."""
    times = [f(UNEVEN, 8) for f in (zero_bubble_h1, one_forward_one_backward, gpipe)]
    assert bubble_free(UNEVEN) <= times[0] <= times[1] <= times[2]
    local = [Stage(forward=s.forward, to_input=s.to_input, to_weights=s.to_weights, objective=0.25) for s in UNEVEN]
    assert decoupled(local) == bubble_free(UNEVEN) + 0.25


def test_no_stages_and_no_micro_batches_are_refused() -> None:
    """They have no time."""
    with pytest.raises(mw.ModulewiseError, match="at least one"):
        gpipe([EVEN], 0)
    with pytest.raises(mw.ModulewiseError, match="at least one"):
        one_forward_one_backward([], 2)
