"""The feedback phase of a step: objectives learn by themselves before any part has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..partition.tree import map_tensors
from ..seeding import seed_of, set_generators

if TYPE_CHECKING:
    from .session import Session

__all__ = ["rehearse"]


def rehearse(session: Session) -> None:
    """Let the objectives of waiting parts learn from the top down, and pass their messages on.

    Args:
        session: a batch that has passed through all parts, none of which has learned.
    """
    mail: dict[int, dict[int, Any]] = {}
    for part in sorted(session.waiting, reverse=True):
        if session.engine.objectives[part].rounds:
            for receiver, message in _rehearsed(session, part, mail.pop(part, {})).items():
                box = session.mail if receiver == part else mail
                box.setdefault(receiver, {})[part] = message


def _rehearsed(session: Session, part: int, feedback: dict[int, Any]) -> dict[int, Any]:
    """A part's rounds, and what it has to say after them."""
    engine, objective = session.engine, session.engine.objectives[part]
    fed, h_out = session.waiting[part]
    if h_out is None:
        with torch.no_grad():
            h_out = session.run(part, fed, recomputing=True)
    still = {index: h.detach() for index, h in fed.items()}
    context = session.context(part, still, map_tensors(Tensor.detach, h_out), feedback, {})
    owner = 0 if engine.partition.shared else part
    own = engine.updater.parameters(owner, objective.role)
    for turn in range(objective.rounds):
        set_generators(seed_of(engine.seed, session.micro.draw, part, "rehearse", turn))
        with engine.autocast(session.device):
            signal = objective.rehearse(context)
        if signal is not None:
            finite = session.note(part, signal, shows=False)
            session.backward(part, signal, context, (), into=own)
            engine.updater.update(owner, (objective.role,), finite, now=True)
    with engine.autocast(session.device):
        return dict(objective.rehearsed(context))
