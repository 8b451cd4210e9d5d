"""What travels between ranks for a method, and which methods cannot have their parts on several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import MethodError
from ...method import Method, Reach
from ...objective import LayerRule, Objective
from .settings import Seat

__all__ = ["Traffic", "refuse", "traffic"]


@dataclass(frozen=True)
class Traffic:
    """Which packets travel beside the boundaries, for one rank.

    Args:
        mail_from_below: a packet of messages follows every batch from the share below.
        mail_to_above: and one goes to the share above.
        mail_from_above: a packet of messages comes back from the share above in every step.
        mail_to_below: and one goes to the share below.
        chained: what goes down may hold what came from above, so that it leaves when this rank's parts have learned;
            without it, it leaves as soon as they have run.
    """

    mail_from_below: bool
    mail_to_above: bool
    mail_from_above: bool
    mail_to_below: bool
    chained: bool


def _tells(objective: Objective) -> bool:
    return type(objective).messages is not Objective.messages


def _listens(objective: Objective) -> bool:
    return objective.waits or objective.hears or objective.overlaps


def traffic(
    objectives: Sequence[Objective], own: range, *, shares: Sequence[range], readers: Mapping[int, int]
) -> Traffic:
    """The packets of one rank beside the boundaries; both ends of a wire come to the same answer by themselves.

    Args:
        objectives: one a part.
        own: this rank's parts.
        shares: the parts of every share, lowest first.
        readers: for every boundary the last part that reads it.

    A purely modular method sends nothing back:

    >>> from modulewise.methods.objectives import TaskLoss
    >>> local = [TaskLoss(lambda output, y: output.sum()) for _ in range(2)]
    >>> traffic(local, range(1), shares=[range(1), range(1, 2)], readers={0: 1})
    Traffic(mail_from_below=False, mail_to_above=False, mail_from_above=False, mail_to_below=False, chained=False)
    """
    parts = len(objectives)

    def up(cut: int) -> bool:
        return 0 < cut < parts and any(_tells(o) for o in objectives[:cut])

    def down(cut: int) -> bool:
        return 0 < cut < parts and any(map(_listens, objectives[:cut])) and any(map(_tells, objectives[cut:]))

    home = {part: index for index, share in enumerate(shares) for part in share}
    far = any(
        (o.hears or o.overlaps) and part in readers and home[readers[part]] > home[part] + 1
        for part, o in enumerate(objectives)
    )
    chained = far or any(o.waits for o in objectives)
    return Traffic(up(own.start), up(own.stop), down(own.stop), down(own.start), chained)


def refuse(
    method: Method, objectives: Sequence[Objective], seats: Sequence[Seat], *, data: int, settings: Mapping[str, Any]
) -> None:
    """Refuse what cannot have its parts on several ranks, or its batches in slices.

    Args:
        method: what is trained.
        objectives: one a part.
        seats: of all ranks.
        data: ranks that share a part.
        settings: other settings of the trainer that ranks do not take, by name, where given.

    Raises:
        MethodError: in one line, what does not fit.
    """
    name = type(method).__name__
    for word, given in settings.items():
        if given:
            raise MethodError(f"ranks= and {word} were both given, expected one of the two; leave {word} out")
    if len({seat.share for seat in seats}) > 1:
        _refuse_shares(name, method, objectives, seats)
    for part, objective in enumerate(objectives) if data > 1 else ():
        if not objective.per_sample:
            raise MethodError(
                f"the objective of part {part} ({type(objective).__name__}) compares samples with one another, or does "
                f"not say that it is a mean over them (per_sample), and data={data} cuts the batch; use data=1"
            )
        if objective.rounds or objective.rule is not None:
            raise MethodError(
                f"the objective of part {part} has a layer rule or a feedback phase, whose tensors would differ "
                f"between data={data} ranks; use data=1"
            )


def _refuse_shares(name: str, method: Method, objectives: Sequence[Objective], seats: Sequence[Seat]) -> None:
    for part, objective in enumerate(objectives):
        for word, has in {
            "has a feedback phase (rounds)": objective.rounds,
            "runs later parts (looks_ahead)": objective.looks_ahead,
            "learns with a delay": objective.delay,
            "has a layer rule that learns": objective.rule is not None
            and type(objective.rule).learn is not LayerRule.learn,
        }.items():
            if has:
                raise MethodError(
                    f"{name}: the objective of part {part} {word}, which does not go over several ranks; train in one "
                    "process, or use another method"
                )
    if method.locality.reach is Reach.PORT and not method.locality.messages:
        raise MethodError(
            f"{name} reads the weights of a neighbouring part, which would be on another rank; train in one process, "
            "or use another method"
        )
    home = {part: seat.share for seat in seats for part in seat.own}
    owner: dict[int, int] = {}
    for part, objective in enumerate(objectives):
        for parameter in objective.parameters():
            if owner.setdefault(id(parameter), home[part]) != home[part]:
                raise MethodError(
                    f"{name}: the objectives of parts {part} and of a share below hold one parameter in common, which "
                    "would be on two ranks; train in one process, or use another method"
                )
