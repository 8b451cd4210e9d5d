"""What a part has to wait for: the survey's forward, backward and update locks, read off one step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from ..errors import ModulewiseError
from ..method import Method, Reach, SolverMethod
from ..objective import Objective
from ..partition import Partition
from ..trainer import Trainer
from .problems import Problem, example_problem, linear_problem

__all__ = ["Unlocking", "unlocking"]


@dataclass(frozen=True, kw_only=True)
class Unlocking:
    """Which locks of end-to-end backpropagation a method opens (the words of Jaderberg et al., ICML 2017).

    Args:
        forward: a part can learn without the parts below it running along: the sequential schedule is allowed.
        backward: a part can learn before the parts above have gone through their own learning.
        update: a part can learn before the parts above have run forward.
        window: over how many adjacent parts the backward and the update lock remain; 1 for none of them, or all.
    """

    forward: bool
    backward: bool
    update: bool
    window: int = 1

    def __str__(self) -> str:
        found = [name for name in ("forward", "backward", "update") if getattr(self, name)]
        text = ", ".join(found) or "none"
        return text if self.window == 1 else f"{text} (beyond {self.window} parts)"


def unlocking(method: Method, *, problem: Problem | None = None) -> Unlocking | None:
    """Which locks a method opens, from its locality, its objectives' attributes and one step on three parts.

    A part that waits, or that keeps its graph for the part above, is under the update lock. It is under the backward
    lock as well unless all that it is sent comes from the last part, as an error at the output does: a message from a
    part in between is made of what that part was sent. Gradients of an earlier step (`delayed`) open the backward lock.

    Args:
        method: an instance, for 3 classes (or whatever the problem has).
        problem: a task the method can take; by default those of `conformance`.

    Returns:
        What is open; None where no step could be run, or a method with its own update is not strict, so that its parts
        cannot be told apart.

    >>> import modulewise as mw
    >>> for method in (mw.methods.Backprop(), mw.methods.DirectFeedbackAlignment(outputs=3), mw.methods.DGL(classes=3)):
    ...     print(unlocking(method))
    none
    backward
    forward, backward, update
    """
    locality = method.locality
    if isinstance(method, SolverMethod):
        strict = locality.reach is Reach.STRICT
        return Unlocking(forward=False, backward=True, update=True) if strict else None
    for task in (problem,) if problem is not None else (example_problem(), linear_problem()):
        try:
            first, senders = _first_part(method, task.seen(method.views))
        except ModulewiseError:
            continue
        alone = not (first.waits or first.overlaps)
        window = locality.window if first.overlaps else 1
        return Unlocking(
            forward=not (locality.sends_feedback or first.talks),
            backward=alone or window > 1 or locality.reach is Reach.DELAYED or senders <= {2},
            update=alone or window > 1,
            window=window,
        )
    return None


def _first_part(method: Method, problem: Problem) -> tuple[Objective, frozenset[int]]:
    """The objective of the first of three parts, and from whom it had messages when it learned."""
    trainer = Trainer(
        Partition(problem.model(), cuts=problem.cuts, example=problem.x),
        method,
        loss=functional.cross_entropy,
        optimizer=partial(torch.optim.SGD, lr=1e-3),
    )
    senders: set[int] = set()

    def heard(_: Any, arguments: tuple[Any, ...]) -> None:
        senders.update(arguments[0].feedback)

    handle = trainer.objectives[0].register_forward_pre_hook(heard)
    try:
        trainer.step(problem.x, problem.y, views=problem.views)
    finally:
        handle.remove()
    return trainer.objectives[0], frozenset(senders)
