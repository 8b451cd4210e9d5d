"""What is to be trained, as shapes alone: the model, a batch, a method, and where weights live."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.updating import OptimizerFactory
from ..errors import MethodError, ModulewiseError
from ..metering import shapes
from ..method import Method, SolverMethod
from ..methods.objectives import output_tensor
from ..objective import Loss
from ..partition import Partition
from ..partition.tree import batch_size, call_model, map_tensors, plain, tensors
from ..trainer import Trainer
from .rehearsing import Rehearsal, rehearse

__all__ = ["Residence", "Task", "task_of"]


class Residence(Enum):
    """What is on the device beside the part that learns."""

    ALL = "every part"
    """Weights and optimiser state of all parts, as where one process trains them all."""

    PART = "one part"
    """Nothing: the other parts are on other devices, on the host or on disk."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What is to be trained; model and batch are on the meta device.

    Args:
        model: the network.
        x: input (views N, ...).
        y: labels (N, ...).
        batch: N.
        method: what gives every part its learning signal.
        loss: the task's.
        optimizer: factory of optimisers.
        precision: of the forward.
        recompute: whether what a part keeps is computed again in its backward.
        residence: what is on the device beside the part that learns.
    """

    model: nn.Module
    x: Any
    y: Any
    batch: int
    method: Method
    loss: Loss
    optimizer: OptimizerFactory | None
    precision: torch.dtype
    recompute: bool
    residence: Residence

    def partition(self, cuts: Sequence[str]) -> Partition:
        """The model cut at these names."""
        with torch.device("meta"):
            return Partition(self.model, cuts=cuts, example=self.x)

    def rehearse(
        self, partition: Partition, method: Method | None = None, *, recompute: bool | None = None, counted: bool = True
    ) -> Rehearsal:
        """A step of the task's method, or of another one."""
        chosen = method or self.method
        solves = isinstance(chosen, SolverMethod)
        with torch.device("meta"), _Refusing(chosen):
            trainer = Trainer(
                partition,
                chosen,
                loss=self.loss,
                optimizer=None if solves else self.optimizer or _sgd,
                precision=torch.float32 if solves else self.precision,
                recompute=False if solves else self.recompute if recompute is None else recompute,
            )
        return rehearse(trainer, self.x, self.y, views=self.views, counted=counted)

    @property
    def views(self) -> int:
        """Views stacked along the batch."""
        return batch_size(self.x) // self.batch

    @property
    def fed_bytes(self) -> int:
        """Bytes of the batch."""
        return sum(t.numel() * t.element_size() for t in tensors([self.x, self.y]))

    @property
    def input_bytes(self) -> int:
        """Bytes of the batch without its labels."""
        return sum(t.numel() * t.element_size() for t in tensors(self.x))

    def at(self, batch: int) -> Task:
        """The same with another batch size."""
        x, y = (_rebatched(tree, size) for tree, size in ((self.x, batch * self.views), (self.y, batch)))
        return replace(self, x=x, y=y, batch=batch)


class _Refusing:
    """Say which method asks for values when its heads are made."""

    def __init__(self, method: Method) -> None:
        self.method = method

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, RuntimeError | NotImplementedError) and not isinstance(error, ModulewiseError):
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise MethodError(
                f"{type(self.method).__name__} needs values to make its objectives ({reason}), expected shapes alone; "
                "it cannot be planned, measure a step with metering.measure_step on real data"
            ) from error


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def _rebatched(tree: Any, size: int) -> Any:
    n = batch_size(tree)

    def sized(tensor: Tensor) -> Tensor:
        batched = tensor.ndim and tensor.shape[0] == n
        return torch.empty((size, *tensor.shape[1:]), dtype=tensor.dtype, device="meta") if batched else tensor

    return map_tensors(sized, tree)


def task_of(
    model: nn.Module,
    *,
    example: Any,
    batch: int,
    method: Method,
    loss: Loss,
    optimizer: OptimizerFactory | None,
    labels: Any = None,
    precision: torch.dtype = torch.float32,
    recompute: bool = False,
    residence: Residence = Residence.ALL,
) -> Task:
    """A task out of a model and what is to happen to it; nothing of the caller's is kept or changed.

    Raises:
        ModulewiseError: the batch is no batch, or labels cannot be told from the model's output.
    """
    if batch < 1 or not tensors(example):
        raise ModulewiseError(
            f"batch={batch} with an example of {type(example).__name__} was given, expected a batch of at least 1 and "
            "an example input of tensors"
        )
    views = method.views
    model, method, loss, x, y = shapes((model, method, loss, plain(example), labels))
    # Tensors that are no parameters may live anywhere; what the forward makes itself must be on the meta device.
    x = _rebatched(x, batch * views)
    if y is None:
        with torch.device("meta"), torch.no_grad():
            y = _labels(call_model(model, _rebatched(x, 2)))
    return Task(
        model=model,
        x=x,
        y=_rebatched(y, batch),
        batch=batch,
        method=method,
        loss=loss,
        optimizer=optimizer,
        precision=precision,
        recompute=recompute,
        residence=residence,
    )


def _labels(output: Any) -> Tensor:
    """Class indices for logits (N, C), (N, T, C) or (N, C, H, W)."""
    logits = output_tensor(output)
    shape = {2: logits.shape[:1], 3: logits.shape[:2], 4: (logits.shape[0], *logits.shape[2:])}.get(logits.dim())
    if shape is None:
        raise MethodError(
            f"the model returns {tuple(logits.shape)}, expected (N, C), (N, T, C) or (N, C, H, W); give labels="
        )
    return torch.empty(shape, dtype=torch.long, device="meta")
