"""The angle to end-to-end backpropagation: where a method moves every part, beside where the chain rule would."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..methods import Backprop
from ..objective import Role
from ..seeding import preserved_generators
from ..trainer import Trainer
from .state import Snapshot

__all__ = ["AlignmentReport", "PartAlignment", "alignment", "compared"]


@dataclass(frozen=True, kw_only=True)
class PartAlignment:
    """One part's update beside that of end-to-end backpropagation; all None where one of the two is zero.

    Args:
        part: its index.
        angle: between the two directions, in degrees, 0 to 180.
        cosine: of that angle.
        ratio: length of the method's direction over that of the end-to-end gradient.
    """

    part: int
    angle: float | None
    cosine: float | None
    ratio: float | None

    def __str__(self) -> str:
        if self.angle is None:
            return f"part {self.part}: -"
        return f"part {self.part}: {self.angle:.1f} degrees, length x{self.ratio:.3g}"


@dataclass(frozen=True)
class AlignmentReport:
    """Every part's update beside that of end-to-end backpropagation.

    Args:
        parts: one entry a part.
    """

    parts: tuple[PartAlignment, ...]

    @property
    def angles(self) -> tuple[float | None, ...]:
        """The angle of every part, in degrees."""
        return tuple(part.angle for part in self.parts)

    def __str__(self) -> str:
        return "; ".join(map(str, self.parts))


def alignment(trainer: Trainer, x: Any, y: Any, *, views: int = 1) -> AlignmentReport:
    """Measure a method's update against end-to-end backpropagation's on one batch; the trainer is as before afterwards.

    angle_k = arccos(<d_k, -g_k> / (|d_k| |g_k|)), with g_k the gradient of the task loss with respect to the
    trainable parameters of part k by the chain rule through all parts, and d_k minus the gradient that the method
    hands to the part's optimiser in this step (summed over slices, clipped where the trainer clips), or the change of
    the parameters for a method with its own update. Both are taken at the same parameters, on the same batch, with
    the same random draws, in the mode that the modules are in. The optimiser's momentum, weight decay and
    preconditioning are in neither, parameters of heads and feedback are not among those of a part.

    Where a part has no trainable parameters, or one of the two directions is zero or not finite, there is no angle:
    None. Windows of time have one parameter set, so that the first part has its angle. The gradient of a method with
    delayed gradients is that of the batch under way, which this one follows. For a method with its own update the ratio
    compares a change with a gradient, so that it is a step size.

    Args:
        trainer: any, before, in or after training.
        x: input (views N, ...).
        y: labels (N, ...).
        views: views of every sample stacked along the batch of x. Of a method that makes views of its own (as the
            forward-forward algorithm), the end-to-end gradient is that of x as it is.

    Raises:
        DataError: x and y do not fit.
        NonFiniteLossError: a loss is not finite at these parameters.

    >>> import modulewise as mw
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> trainer = mw.Trainer(
    ...     mw.Partition(model, cuts=["1"], example=torch.randn(2, 4)),
    ...     mw.methods.Backprop(),
    ...     loss=torch.nn.functional.cross_entropy,
    ...     optimizer=torch.optim.SGD,
    ... )
    >>> print(mw.checks.alignment(trainer, torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])))
    part 0: 0.0 degrees, length x1; part 1: 0.0 degrees, length x1
    """
    start = Snapshot(trainer)
    with preserved_generators():
        try:
            directions = _directions(trainer, x, y, views)
            start.restore()
            downhill = _gradients(_end_to_end(trainer), x, y, views)
        finally:
            start.restore()
    pairs = enumerate(zip(directions, downhill, strict=True))
    return AlignmentReport(tuple(compared(part, ours, theirs) for part, (ours, theirs) in pairs))


def compared(part: int, direction: Sequence[Tensor], reference: Sequence[Tensor]) -> PartAlignment:
    """Angle, cosine and ratio of lengths of two directions, each a list of tensors of the same shapes, in float64.

    The angle is 2 atan2(|a - b|, |a + b|) of the unit vectors a and b, which is exact for equal and for opposite ones,
    where the arc cosine has no digits left.

    >>> compared(0, [torch.tensor([0.0, -2.0])], [torch.tensor([0.0, 1.0])])
    PartAlignment(part=0, angle=180.0, cosine=-1.0, ratio=2.0)
    """
    nothing = PartAlignment(part=part, angle=None, cosine=None, ratio=None)
    if not reference:
        return nothing
    a, b = (torch.cat([tensor.detach().double().reshape(-1) for tensor in some]) for some in (direction, reference))
    length, other = float(a.norm()), float(b.norm())
    if not (0 < length < math.inf and 0 < other < math.inf):
        return nothing
    a, b = a / length, b / other
    angle = 2 * math.atan2(float((a - b).norm()), float((a + b).norm()))
    return PartAlignment(part=part, angle=math.degrees(angle), cosine=math.cos(angle), ratio=length / other)


def _directions(trainer: Trainer, x: Any, y: Any, views: int) -> list[list[Tensor]]:
    """For every part where the method moves it, with the sign of a gradient: uphill."""
    if trainer.solver is None:
        return _gradients(trainer, x, y, views)
    parts = range(len(trainer.partition))
    before = [[p.detach().clone() for p in trainer.updater.parameters(part, Role.PART)] for part in parts]
    trainer.step(x, y, views=views)
    after = [trainer.updater.parameters(part, Role.PART) for part in parts]
    return [[old - new.detach() for old, new in zip(*pair, strict=True)] for pair in zip(before, after, strict=True)]


def _gradients(trainer: Trainer, x: Any, y: Any, views: int) -> list[list[Tensor]]:
    """For every part the gradient that its optimiser sees in one step; zero where it sees none."""
    parameters = [trainer.updater.parameters(part, Role.PART) for part in range(len(trainer.partition))]
    seen = [[torch.zeros_like(p) for p in own] for own in parameters]

    def note(part: int, *_: Any) -> None:
        for total, parameter in zip(seen[part], parameters[part], strict=True):
            if parameter.grad is not None:
                total += parameter.grad

    with ExitStack() as stack:
        for part in range(len(parameters)):
            optimizer = trainer.updater.optimizer(part, Role.PART)
            if optimizer is not None:
                stack.callback(optimizer.register_step_pre_hook(partial(note, part)).remove)
        trainer.step(x, y, views=views)
    return seen


def _end_to_end(trainer: Trainer) -> Trainer:
    """A trainer of the same parts by backpropagation, at the same step, with the same draws, slices and clipping."""
    reference = Trainer(
        trainer.partition,
        Backprop(),
        loss=trainer.loss,
        optimizer=partial(torch.optim.SGD, lr=0.0),
        clip_norm=trainer.updater.clip_norm,
        precision=trainer.engine.precision,
        accumulate=trainer.accumulate,
        seed=trainer.seed,
    )
    reference.steps = trainer.steps
    return reference
