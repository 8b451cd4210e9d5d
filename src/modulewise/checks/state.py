"""A trainer's whole state, taken and put back, so that a check leaves no trace."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ..engine.pending import pending_state, restore_pending
from ..trainer import Trainer

__all__ = ["Snapshot"]


class Snapshot:
    """Weights, buffers, heads, optimisers, counters and delayed batches of a trainer at one moment."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.tensors = [(tensor, tensor.detach().clone()) for tensor in _tensors(trainer)]
        model = trainer.partition.model
        # Modules may put a new tensor in a buffer's place instead of writing into the old one.
        self.buffers = [(m._buffers, dict(m._buffers)) for root in (model, *trainer.objectives) for m in root.modules()]
        self.gradients = [(t, None if t.grad is None else t.grad.clone()) for t, _ in self.tensors]
        updater = trainer.updater
        self.optimizers = {key: copy.deepcopy(o.state_dict()) for key, o in updater.optimizers.items()}
        self.schedulers = {key: copy.deepcopy(s.state_dict()) for key, s in updater.schedulers.items()}
        self.scalers = {part: scaler.state_dict() for part, scaler in updater.scalers.items()}
        self.counters = (trainer.steps, trainer.progress, dict(updater.steps))
        self.rules = [(o.rule, copy.deepcopy(o.rule.state_dict())) for o in trainer.objectives if o.rule is not None]
        self.pending = {name: t.clone() for name, t in pending_state(trainer.engine).items()}
        self.solver: dict[str, Tensor] | None = None
        if trainer.solver is not None:
            self.solver = {name: t.clone() for name, t in trainer.solver.state_dict().items()}

    def restore(self) -> None:
        """Put everything back."""
        trainer, updater = self.trainer, self.trainer.updater
        for held, buffers in self.buffers:
            held.clear()
            held.update(buffers)
        with torch.no_grad():
            for tensor, before in self.tensors:
                tensor.copy_(before)
        for tensor, gradient in self.gradients:
            tensor.grad = None if gradient is None else gradient.clone()
        for key in [key for key in updater.optimizers if key not in self.optimizers]:
            del updater.optimizers[key]
            updater.schedulers.pop(key, None)
        for part in [part for part in updater.scalers if part not in self.scalers]:
            del updater.scalers[part]
        for part, scaler in self.scalers.items():
            updater.scalers[part].load_state_dict(scaler)
        for key, state in self.optimizers.items():
            updater.optimizers[key].load_state_dict(copy.deepcopy(state))
        for key, state in self.schedulers.items():
            updater.schedulers[key].load_state_dict(copy.deepcopy(state))
        trainer.steps, trainer.progress, steps = self.counters
        updater.steps = dict(steps)
        restore_pending(trainer.engine, self.pending)
        for rule, state in self.rules:
            rule.load_state_dict(state)
        if trainer.solver is not None and self.solver is not None:
            trainer.solver.load_state_dict(self.solver)


def _tensors(trainer: Trainer) -> list[Any]:
    model = trainer.partition.model
    own = [t for objective in trainer.objectives for t in (*objective.parameters(), *objective.buffers())]
    return [*model.parameters(), *model.buffers(), *own]
