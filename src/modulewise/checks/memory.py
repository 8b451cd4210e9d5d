"""What one step of a trainer needs, counted on a copy without memory."""

from __future__ import annotations

from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode

from ..metering import MemoryReport, measure_step, weightless
from ..trainer import Trainer

__all__ = ["memory"]


def memory(trainer: Trainer, x: Any, y: Any) -> MemoryReport:
    """The peak bytes of one training step, by what they are for; the trainer stays as it is.

    The step runs on a copy whose tensors have shapes and no memory, so that a batch or a model can be measured that
    would not fit; it is the second step, with the optimisers' state in place. Only shapes of x and y count, and
    a trainer made on the meta device is measured as if on the CPU.

    Args:
        trainer: any trainer whose forward does not depend on values.
        x: input (N, ...), e.g. `torch.empty(...)`, which takes no memory before it is written to.
        y: labels.

    >>> import torch, modulewise as mw
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> trainer = mw.Trainer(
    ...     mw.Partition(model, cuts=["1"], example=torch.randn(2, 4)),
    ...     mw.methods.Backprop(),
    ...     loss=torch.nn.functional.cross_entropy,
    ...     optimizer=torch.optim.SGD,
    ... )
    >>> report = mw.checks.memory(trainer, torch.empty(1024, 4), torch.empty(1024, dtype=torch.long))
    >>> report.at_peak[mw.metering.Category.PARAMETERS]
    268
    """
    mode = FakeTensorMode()
    subject, x, y = weightless((trainer, x, y), mode)
    with mode:
        subject.step(x, y)
        return measure_step(
            lambda: subject.step(x, y),
            model=subject.partition.model,
            heads=subject.objectives,
            optimizers=list(subject.updater.optimizers.values()),
            inputs=[x, y],
        )
