"""Locks: what end-to-end backpropagation keeps shut and methods open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

import modulewise as mw
from modulewise.checks import Unlocking, unlocking
from modulewise.checks.problems import linear_problem
from modulewise.errors import MethodError
from modulewise.method import Locality, PartwiseMethod, Reach
from modulewise.methods.objectives import TaskLoss
from modulewise.objective import Context, Objective, Signal, Site

M = mw.methods
OPEN = Unlocking(forward=True, backward=True, update=True)
SHUT = Unlocking(forward=False, backward=False, update=False)


class Listens(Objective):
    """The task loss on top; below a gradient of nothing, once some later part has sent a message."""

    def __init__(self, site: Site, sender: int | None) -> None:
        super().__init__()
        self.task, self.part, self.sender = TaskLoss(site.loss) if site.last else None, site.part, sender
        self.waits = not site.last

    def forward(self, context: Context) -> Signal:
        return self.task(context) if self.task is not None else Signal(gradient=0 * context.h_out.detach())

    def messages(self, context: Context) -> Mapping[int, Any]:
        return {0: "a word"} if context.part == self.sender else {}


@dataclass(frozen=True)
class Listening(PartwiseMethod):
    """The first part waits for a word of one part, or for none at all."""

    sender: int | None

    family: ClassVar = M.Backprop.family
    locality: ClassVar = Locality(Reach.GRADIENTS)
    references: ClassVar = M.Backprop.references

    def objective(self, site: Site) -> Objective:
        return Listens(site, self.sender)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (M.Backprop(), SHUT),
        (M.FeedbackAlignment(), SHUT),
        (M.DifferenceTargetPropagation(), SHUT),
        (M.DGL(classes=3), OPEN),
        (M.PHSIC(classes=3), OPEN),
        (M.ForwardForward(classes=3), OPEN),
        (M.SGR(classes=3), Unlocking(forward=False, backward=True, update=True)),  # reads what is sent up
        (M.SyntheticGradients(classes=3), Unlocking(forward=False, backward=True, update=True)),
        (M.DirectFeedbackAlignment(outputs=3), Unlocking(forward=False, backward=True, update=False)),
        (M.LocalUpdates(classes=3), Unlocking(forward=False, backward=True, update=True, window=2)),
        (M.GatedLinearNetwork(), Unlocking(forward=False, backward=True, update=True)),
        (M.BCD(), None),
        (Listening(sender=1), SHUT),
        (Listening(sender=2), Unlocking(forward=False, backward=True, update=False)),
        (Listening(sender=None), Unlocking(forward=False, backward=True, update=False)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_locks_are_those_of_the_papers(method, expected):
    assert unlocking(method) == expected


def test_gradients_of_an_earlier_step_open_the_backward_lock():
    late = type("Late", (Listening,), {"locality": Locality(Reach.DELAYED)})
    assert unlocking(late(sender=1)) == Unlocking(forward=False, backward=True, update=False)


def test_a_method_that_takes_no_problem_here_is_not_judged():
    class Refusing(Listening):
        def objective(self, site):
            raise MethodError("a part without a loop")

    assert unlocking(Refusing(sender=1)) is None
    assert unlocking(M.DGL(classes=3), problem=linear_problem()) == OPEN


def test_words():
    assert str(OPEN) == "forward, backward, update"
    assert str(SHUT) == "none"
    window = Unlocking(forward=False, backward=True, update=True, window=2)
    assert str(window) == "backward, update (beyond 2 parts)"
