"""What one training step would do to every part, and what every part costs; nothing is left changed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...checks.state import Snapshot
from ...errors import ModulewiseError
from ...metering import Category, MemoryMeter, step_seconds
from ...objective import Role
from ...partition import AnyPartition
from ...partition.tree import plain, tensors
from ...seeding import preserved_generators
from ...trainer import Trainer

__all__ = ["Cost", "Step", "part_costs", "shares", "trial_step"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One trial step.

    Args:
        objectives: by part, the loss that it minimises (or what its objective reports); parts that learned alone.
        gradient_norms: by part, ||g|| of what its optimiser would see, clipped where the trainer clips.
    """

    objectives: Mapping[int, float]
    gradient_norms: Mapping[int, float]


def trial_step(trainer: Trainer, x: Any, y: Any) -> Step | None:
    """Let every part learn from one batch in train mode, note losses and gradients, and put everything back.

    Args:
        trainer: in one process.
        x: input (N, ...).
        y: labels (N, ...).

    Returns:
        None where the method cannot take such a step: it wants all samples at once, or several views that a loader
        must make, or a loss is not finite. A method with its own update has no gradients.
    """
    if trainer.method.full_batch or trainer.method.views > 1 or trainer.crew is not None:
        return None
    found: dict[int, float] = {}

    def note(part: int, parameters: list[Any], *_: Any) -> None:
        squares = [float(p.grad.detach().double().square().sum()) for p in parameters if p.grad is not None]
        found[part] = sum(squares) ** 0.5

    before, modes = Snapshot(trainer), [(m, m.training) for m in trainer.partition.model.modules()]
    with preserved_generators(), ExitStack() as stack:
        stack.callback(before.restore)
        for module, mode in modes:
            stack.callback(setattr, module, "training", mode)
        trainer.partition.model.train()
        for part in range(len(trainer.partition)) if trainer.solver is None else ():
            optimizer = trainer.updater.optimizer(part, Role.PART)
            if optimizer is not None:
                own = trainer.updater.parameters(part, Role.PART)
                stack.callback(optimizer.register_step_pre_hook(partial(note, part, own)).remove)
        try:
            losses = trainer.step(x, y)
        except ModulewiseError:
            return None  # a loss that is not finite, or a step that this batch does not allow
        return Step(objectives={part: float(loss) for part, loss in losses.items()}, gradient_norms=found)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One part's forward and backward at one batch, without head and optimiser.

    Args:
        seconds: the faster of two runs.
        bytes: most bytes alive at once beside parameters: its input, activations, and gradients.
    """

    seconds: float
    bytes: int


def part_costs(partition: AnyPartition, x: Any) -> list[Cost]:
    """Run every part forward and backward alone, on x in train mode; buffers, modes and generators are put back.

    Args:
        partition: the parts.
        x: the model's input (N, ...).
    """
    x, found = plain(x), []
    boundaries: dict[int, Tensor] = {}
    modes = [(module, module.training) for module in partition.model.modules()]
    try:
        partition.model.train()
        with preserved_generators():
            for part in partition.parts:
                fed = {j: boundaries[j].requires_grad_() for j in partition.plans(x)[part.index].reads}
                learn = partial(_learn, partition, part.index, x, fed)
                with MemoryMeter(model=partition.model, inputs=[x, *fed.values()]) as meter:
                    boundaries[part.index] = learn()
                peak = meter.report().at_peak
                timing = step_seconds(learn, warmup=0, repeats=2)
                used = peak[Category.ACTIVATIONS] + peak[Category.GRADIENTS]
                inputs = fed.values() if fed else tensors(x)
                used += sum(t.numel() * t.element_size() for t in inputs)
                found.append(Cost(seconds=timing.minimum, bytes=used))
    finally:
        for module, mode in modes:
            module.training = mode
    return found


def _learn(partition: AnyPartition, part: int, x: Any, fed: dict[int, Tensor]) -> Tensor:
    """One forward and backward; what left the part, detached."""
    with torch.enable_grad():
        out = [h for h in tensors(partition.run(part, x, fed, recomputing=True)) if h.is_floating_point()]
        roots = [h for h in out if h.requires_grad]
        leaves = [p for p in partition.parts[part].parameters() if p.requires_grad] + list(fed.values())
        if roots and leaves:
            torch.autograd.grad(roots, leaves, [torch.ones_like(h) for h in roots], allow_unused=True)
    return out[0].detach()


def shares(costs: list[Cost]) -> list[tuple[float, float]]:
    """For every part its share of all parts' seconds and of the sum of their peaks.

    Parts that learn one at a time are never alive together, so that the second says which part is the largest, not
    what a step needs.

    >>> shares([Cost(seconds=1.0, bytes=30), Cost(seconds=3.0, bytes=10)])
    [(0.25, 0.75), (0.75, 0.25)]
    """
    time, memory = sum(cost.seconds for cost in costs), sum(cost.bytes for cost in costs)
    return [(cost.seconds / max(time, 1e-12), cost.bytes / max(memory, 1)) for cost in costs]
