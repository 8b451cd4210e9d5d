"""Timings in turn, and the ratios taken from them."""

import time

import pytest

from modulewise.errors import ModulewiseError
from modulewise.metering import (
    Timing,
    interleaved_seconds,
    ratio,
    step_seconds,
)


def test_candidates_run_in_turn_and_warmup_is_not_timed(monkeypatch):
    ran, now = [], [0.0]
    cost = {"a": 3.0, "b": 1.0}

    def step(name):
        now[0] += cost[name] * len(ran)
        ran.append(name)

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    timings = interleaved_seconds({name: lambda name=name: step(name) for name in "ab"}, warmup=1, repeats=2)
    assert "".join(ran) == "ababab"
    assert timings == {"a": Timing((3.0 * 2, 3.0 * 4)), "b": Timing((3.0, 5.0))}
    assert (timings["a"].median, timings["a"].minimum, timings["a"].maximum, timings["a"].repeats) == (9, 6, 12, 2)


def test_step_seconds_measures_wall_clock():
    timing = step_seconds(lambda: time.sleep(0.01), warmup=0, repeats=2)
    assert timing.minimum >= 0.01
    assert timing.repeats == 2


def test_ratio_divides_neighbours_so_that_a_slow_spell_cancels():
    slow = (1.0, 8.0, 8.0, 1.0, 1.0)  # of the machine, over rounds
    a, b = (Timing(tuple(cost * s for s in slow)) for cost in (3.0, 2.0))
    assert ratio(a, b) == 1.5
    with pytest.raises(ModulewiseError, match="5 and 1 runs"):
        ratio(a, Timing((1.0,)))


@pytest.mark.parametrize("counts", [{"repeats": 0}, {"warmup": -1}])
def test_counts_of_runs_are_checked(counts):
    with pytest.raises(ModulewiseError, match="repeats >= 1"):
        step_seconds(lambda: None, **counts)
