"""A method bound to a partition: one objective a part, and the views that a method makes of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MethodError
from ..method import Method, PartwiseMethod
from ..methods.windowed import Windowed
from ..objective import Loss, Objective, Site
from ..partition import AnyPartition, TimePartition
from ..seeding import preserved_generators, seed_of, set_generators

__all__ = ["bind", "bind_part", "check_phases", "check_taps", "check_windows", "refuse_settings", "with_views"]

_SETTINGS = ("optimizer", "scheduler", "clip_norm", "precision", "accumulate", "compile", "recompute")
_UNSET = (None, None, None, torch.float32, 1, False, False)


def bind(partition: AnyPartition, method: PartwiseMethod, loss: Loss, *, seed: int) -> list[Objective]:
    """One objective a part, on the part's device, its heads drawn from a seed of their own."""
    objectives: list[Objective] = []
    first = next(partition.model.parameters(), None)
    for part in range(len(partition)):
        objective = bind_part(partition, method, loss, part, seed=seed, earlier=objectives)
        objectives.append(objective if first is None else objective.to(first.device))
    return objectives


def bind_part(
    partition: AnyPartition,
    method: PartwiseMethod,
    loss: Loss,
    index: int,
    *,
    seed: int,
    earlier: Sequence[Objective] = (),
) -> Objective:
    """The objective of one part, on the CPU, its heads drawn from a seed of their own.

    Args:
        partition: the parts.
        method: what gives each its objective.
        loss: the task's.
        index: the part.
        seed: the run's seed.
        earlier: of windows of time, the objectives of the windows before.
    """
    part = partition.parts[index]
    site = Site(
        index,
        len(partition),
        part.input,
        part.output,
        _of_window(partition, index, loss) if isinstance(partition, TimePartition) else loss,
        blocks=lambda: partition.blocks(index),
        modules=part.modules,
        x=partition.example,
        moments=partition.shape if isinstance(partition, TimePartition) else None,
    )
    with preserved_generators():
        set_generators(seed_of(seed, "heads", index))
        objective = method.objective(site)
        return _windowed(partition, site, objective, earlier) if isinstance(partition, TimePartition) else objective


def _of_window(partition: TimePartition, index: int, loss: Loss) -> Loss:
    """The task loss of one window, weighted so that the windows' sum is the mean over all moments."""
    share = partition.lengths[index] / sum(partition.lengths)
    if not partition.every:
        return loss
    if isinstance(loss, nn.Module) and index == len(partition) - 1:
        return _Share(loss, share)
    return lambda output, y: share * loss(output, y)


class _Share(nn.Module):
    """A share of a loss that is a module, whose parameters the last window's objective owns."""

    def __init__(self, loss: nn.Module, share: float) -> None:
        super().__init__()
        self.loss, self.share = loss, share

    def forward(self, output: Any, y: Any) -> Tensor:
        """The share."""
        loss: Tensor = self.share * self.loss(output, y)
        return loss


def _windowed(partition: TimePartition, site: Site, objective: Objective, earlier: Sequence[Objective]) -> Objective:
    """A window's objective with the heads of the windows before it, and with the loss of its own outputs."""
    donors = {
        name: head
        for other in reversed(earlier)
        for name, head in (other.inner if isinstance(other, Windowed) else other).named_children()
    }
    for name, head in list(objective.named_children()):
        donor = donors.get(name)
        if donor is not None and _shapes(head) and _shapes(donor) == _shapes(head):
            setattr(objective, name, donor)
    return objective if site.last or not partition.every else Windowed(objective, loss=site.loss)


def _shapes(head: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in head.state_dict().items()}


def check_windows(
    partition: AnyPartition, objectives: Sequence[Objective], *, accumulate: int, compile: bool, recompute: bool
) -> None:
    """Refuse what windows of time, which share their parameters, cannot have.

    Raises:
        MethodError: a batch is cut into slices, modules inside a window are compiled or run twice, or a window would
            learn late.
    """
    word = "compile=True" if compile else "recompute=True" if recompute else ""
    word = f"accumulate={accumulate}" if accumulate > 1 else word
    word = "a method with delayed gradients" if any(objective.delay for objective in objectives) else word
    if partition.shared and word:
        raise MethodError(f"{word} was given with a partition over time, which does not take it; leave it out")


def check_taps(objectives: Sequence[Objective], *, compile: bool, recompute: bool) -> None:
    """Refuse to read inside parts whose insides are compiled or run twice, or to change their layers there.

    Raises:
        MethodError: compile or recompute is set, and an objective has taps, a layer rule that would be bypassed, or
            differentiates compiled parts itself.
    """
    for part, objective in enumerate(objectives):
        rule = objective.rule
        if rule is not None and (recompute or (compile and not rule.compiles)):
            given, why = (
                ("recompute=True", "is not there when the part is run again in its backward")
                if recompute
                else ("compile=True", "passes a signal that a compiled backward does not see")
            )
            raise MethodError(
                f"{given} was given and the layer rule of part {part} ({type(rule).__name__}) {why}; leave {given} out"
            )
    own = next((part for part, objective in enumerate(objectives) if objective.differentiates), None)
    if compile and own is not None:
        raise MethodError(
            f"compile=True was given and the objective of part {own} ({type(objectives[own]).__name__}) differentiates "
            "parts twice, or many vectors at once, which compiled ones cannot; leave compile=True out"
        )
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
            delay, and looks ahead or a batch is cut into slices.
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
        if objective.delay and objective.looks_ahead:
            raise MethodError(
                f"the objective of part {part} has delay={objective.delay} and looks ahead: what later parts read of "
                "its batch is gone by then; leave one of the two out"
            )
        if objective.delay and accumulate > 1:
            raise MethodError(
                f"accumulate={accumulate} was given and part {part} learns {objective.delay} steps late; leave it at 1"
            )


def refuse_settings(method: Method, *values: Any) -> None:
    """Refuse settings of how parts are updated, in the trainer's order, for a method with its own update.

    Raises:
        MethodError: one is given.
    """
    given = [word for word, value, unset in zip(_SETTINGS, values, _UNSET, strict=True) if value != unset]
    if given:
        raise MethodError(f"{type(method).__name__} has its own update and takes no {', '.join(given)}; leave it out")


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
