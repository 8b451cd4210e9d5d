"""A method bound to a partition: one objective a part, and the views that a method makes of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import MethodError
from ..method import Method, PartwiseMethod
from ..objective import Loss, Objective, Site
from ..partition import Partition
from ..seeding import preserved_generators, seed_of, set_generators

__all__ = ["bind", "check_phases", "check_taps", "with_views"]


def bind(partition: Partition, method: PartwiseMethod, loss: Loss, *, seed: int) -> list[Objective]:
    """One objective a part, on the part's device, its heads drawn from a seed of their own."""
    objectives = []
    with preserved_generators():
        for part in partition.parts:
            site = Site(
                part.index,
                len(partition),
                part.input,
                part.output,
                loss,
                blocks=lambda index=part.index: partition.blocks(index),  # type: ignore[misc]
                modules=part.modules,
                x=partition.example,
            )
            set_generators(seed_of(seed, "heads", part.index))
            objective = method.objective(site)
            first = next(partition.model.parameters(), None)
            objectives.append(objective if first is None else objective.to(first.device))
    return objectives


def check_taps(objectives: Sequence[Objective], *, compile: bool, recompute: bool) -> None:
    """Refuse to read inside parts whose insides are compiled or run twice.

    Raises:
        MethodError: an objective has taps, and compile or recompute is set.
    """
    word = "compile=True" if compile else "recompute=True" if recompute else ""
    tapped = next((part for part, objective in enumerate(objectives) if objective.taps), None)
    if word and tapped is not None:
        raise MethodError(
            f"{word} was given and the objective of part {tapped} reads modules inside the part "
            f"({', '.join(objectives[tapped].taps[:3])}); leave {word} out or choose another method"
        )


def check_phases(objectives: Sequence[Objective], *, accumulate: int) -> None:
    """Refuse objectives that learn before or after the others in a way that the engine cannot give.

    Raises:
        MethodError: an objective rehearses or looks ahead, and it or a later one does not wait; or one learns with a
            delay, and a batch is cut into slices.
    """
    for part, objective in enumerate(objectives):
        late = [later for later in range(part, len(objectives)) if not objectives[later].waits]
        if (objective.rounds or objective.looks_ahead) and late:
            raise MethodError(
                f"the objective of part {part} rehearses or looks ahead, and that of part {late[0]} does not wait: its "
                "weights would have changed by then; set waits = True there"
            )
        if objective.delay and not objective.waits:
            raise MethodError(f"the objective of part {part} has delay={objective.delay} and does not wait; set waits")
        if objective.delay and accumulate > 1:
            raise MethodError(
                f"accumulate={accumulate} was given and part {part} learns {objective.delay} steps late; leave it at 1"
            )


def with_views(method: Method, x: Any, y: Any, *, views: int, parts: int, seed: int, step: int) -> tuple[Any, int]:
    """The batch with the views that the method makes of it, and their number.

    Args:
        method: asked where it makes views; with one part there is nobody to make them for.
        x: input (views N, ...).
        y: labels (N, ...).
        views: views of every sample that the caller has stacked already.
        parts: K.
        seed: the run's seed.
        step: index of the training step; views are drawn from (seed, step).

    Raises:
        MethodError: the caller stacked views, and the method makes its own.
    """
    if not isinstance(method, PartwiseMethod) or not method.makes_views or parts == 1:
        return x, views
    if views != 1:
        raise MethodError(f"views={views} was given, {type(method).__name__} makes its own; give one view of each")
    with preserved_generators():
        set_generators(seed_of(seed, step, "views"))
        return method.prepare(x, y)
