"""From a task to a plan that fits, or to what would."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .. import losses
from ..engine.updating import OptimizerFactory
from ..errors import MethodError, PlanError
from ..method import Method
from ..objective import Loss
from ..partition import Partition
from .plan import Plan
from .searching import Costs, costs_of, fewest, foretell, named
from .sizes import size_text
from .task import Residence, Task, task_of

__all__ = ["find", "plan", "predict"]


def plan(
    model: nn.Module,
    *,
    example: Any,
    memory: int,
    batch: int,
    method: Method,
    optimizer: OptimizerFactory | None = None,
    loss: Loss = losses.classification,
    labels: Any = None,
    precision: torch.dtype = torch.float32,
    recompute: bool = False,
    residence: Residence = Residence.ALL,
) -> Partition:
    """The partition with the fewest parts whose every part's predicted peak fits into memory.

    Nothing is allocated for it: a copy of the model without memory takes a whole training step at the batch size, and
    its bytes are counted as `metering.MemoryMeter` counts those of a real step. Of the cuts with that many parts, those
    whose neediest part needs least are taken. With one part every method is end-to-end backpropagation.

    Args:
        model: on any device, also `meta`.
        example: an input of the model, of any batch size.
        memory: bytes that a step may take.
        batch: samples a step, >= 1.
        method: what gives every part its learning signal.
        optimizer: factory as for `Trainer`; SGD with momentum where left out.
        loss: the task's, as for `Trainer`.
        labels: an example of the labels; class indices to fit the model's output where left out.
        precision: of the forward.
        recompute: whether the trainer is to recompute inside the parts.
        residence: what is on the device beside the part that learns.

    Returns:
        A partition of the model itself, for `Trainer`.

    Raises:
        PlanError: nothing fits; says which part is too large, and what would fit.
        MethodError: a step of the method depends on values, or the method does not take this model.

    >>> import modulewise as mw
    >>> model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(8)), nn.Linear(64, 10))
    >>> method = mw.methods.DGL(10, head=mw.heads.linear)
    >>> partition = plan(model, example=torch.empty(2, 64), memory=900_000, batch=256, method=method)
    >>> len(partition)
    2
    """
    task = task_of(
        model,
        example=example,
        batch=batch,
        method=method,
        loss=loss,
        optimizer=optimizer,
        labels=labels,
        precision=precision,
        recompute=recompute,
        residence=residence,
    )
    whole = task.partition([])
    costs = costs_of(task, whole)
    found = fewest(task, costs, memory)
    if found is None:
        raise PlanError(_refusal(task, costs, memory))
    return Partition(model, cuts=found.partition.cuts, example=example)


def find(task: Task, memory: int) -> Plan:
    """The plan with the fewest parts that fits into so many bytes, beside the controls.

    Raises:
        PlanError: nothing fits; says which part is too large, and what would fit.
    """
    whole = task.partition([])
    costs = costs_of(task, whole)
    found = fewest(task, costs, memory)
    if found is None:
        raise PlanError(_refusal(task, costs, memory))
    return foretell(task, whole, costs, found, memory)


def predict(task: Task, *, parts: int) -> Plan:
    """What training in so many parts takes, at the cuts whose neediest part needs least.

    Raises:
        PlanError: the model has fewer cut points.
    """
    whole = task.partition([])
    costs = costs_of(task, whole)
    if not 1 <= parts <= len(costs.slices):
        raise PlanError(f"{parts} parts were asked for, expected 1 to {len(costs.slices)}, one a slice of the model")
    return foretell(task, whole, costs, named(task, costs, costs.ends(parts)), None)


def _refusal(task: Task, costs: Costs, memory: int) -> str:
    """Why nothing fits, and what would."""
    count = len(costs.slices)
    worst = max(range(count), key=lambda index: costs.peak(index, index + 1))
    parts = min(range(1, count + 1), key=lambda parts: round(costs.within(parts) / costs.largest, 2))
    need = named(task, costs, costs.ends(parts)).plan(task, (), memory).peak
    place = repr(costs.slices[worst].name) if costs.slices[worst].name else "the output"
    alone = costs.peak(worst, worst + 1) * costs.ratio
    why = (
        f"more parts do not help: the slice that ends at {place} alone needs about {size_text(alone)}"
        if alone > memory
        else f"more parts than {parts} need more for their heads and boundaries"
    )
    ways = [way for way in (_smaller(task, costs, memory, need), _otherwise(task, costs, memory)) if way]
    remedy = " or ".join(ways) or "a smaller model, lower precision or a larger device"
    return (
        f"{type(task.method).__name__} at batch {task.batch} fits {size_text(memory)} in no number of parts: the best, "
        f"{parts}, needs {size_text(need)}; {why}; what fits: {remedy}"
    )


def _smaller(task: Task, costs: Costs, memory: int, need: int) -> str:
    """A batch that fits, tried."""
    fixed = sum(costs.kept) if task.residence is Residence.ALL else 0
    room = (memory - fixed) / max(1, need - fixed)
    for share in (room, 0.7 * room, 0.4 * room, 0.2 * room):
        batch = int(share * task.batch)
        if 1 <= batch < task.batch:
            smaller = task.at(batch)
            found = fewest(smaller, costs.of(smaller), memory)
            if found is not None:
                return f"batch {batch} in {len(found.partition)} parts"
    return ""


def _otherwise(task: Task, costs: Costs, memory: int) -> str:
    """Recomputing, or one part on the device at a time, tried at the same batch."""
    ways = {
        "recompute=True": replace(task, recompute=True),
        "residence=Residence.PART (the other parts on other devices, the host or disk)": replace(
            task, residence=Residence.PART
        ),
        "both recompute=True and residence=Residence.PART": replace(task, recompute=True, residence=Residence.PART),
    }
    for name, other in ways.items():
        if (other.recompute, other.residence) == (task.recompute, task.residence):
            continue
        try:
            found = fewest(other, costs.of(other), memory)
        except MethodError:
            continue
        if found is not None:
            return f"{name} in {len(found.partition)} parts"
    return ""
