"""What methods of target propagation share: parts that move to targets, and inverses that learn and send them on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...losses import sum_squared_error
from ...objective import Context, Objective, Role, Signal, Site
from ..objectives import TaskLoss, output_tensor
from ..reference.backprop import input_gradients

__all__ = [
    "ByGradient",
    "ByOutput",
    "FirstTarget",
    "Lesson",
    "OutputTarget",
    "Rule",
    "Targeted",
    "jacobian_matching",
    "reconstruction",
]

FirstTarget = Callable[[Tensor, Tensor], Tensor]
"""first(h, dL/dh) -> the target of h."""

Rule = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""rule(inverse, h_in, target of h_out, h_out) -> the target of h_in."""

Lesson = Callable[[nn.Module, Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]
"""lesson(inverse, run, h_in, h_out) -> a loss of the inverse alone, with h_out = run(h_in)."""


def reconstruction(
    inverse: nn.Module, run: Callable[[Tensor], Tensor], h_in: Tensor, h_out: Tensor, *, noise: float
) -> Tensor:
    """||g(f(h + e)) - (h + e)||^2, e ~ N(0, noise^2): batch mean of the sum over features; no gradient reaches f.

    >>> reconstruction(nn.Identity(), lambda h: h + 1, torch.zeros(4, 3), torch.ones(4, 3), noise=0.0)
    tensor(3.)
    """
    with torch.no_grad():
        corrupted = h_in + noise * torch.randn_like(h_in)
        output = run(corrupted)
    return sum_squared_error(inverse(output), corrupted)


def jacobian_matching(
    inverse: nn.Module,
    run: Callable[[Tensor], Tensor],
    h_in: Tensor,
    h_out: Tensor,
    *,
    noise: float,
    positions: int = 1,
) -> Tensor:
    """[-2 e.(g(f(h + e)) - g(f(h))) + ||g(f(h) + n) - g(f(h))||^2] / (noise^2 positions), with e, n ~ N(0, noise^2).

    Expected over small noise it is ||g' - f'^T||^2 - ||f'||^2 (Frobenius) a position, averaged over the batch: its
    least value is where the Jacobian of g is the transpose of that of f. No gradient reaches f.

    >>> jacobian_matching(nn.Identity(), lambda h: h, torch.zeros(2, 3), torch.zeros(2, 3), noise=0.1).dim()
    0
    """
    e, n = (noise * torch.randn_like(h_in), noise * torch.randn_like(h_out))
    with torch.no_grad():
        corrupted = run(h_in + e)
    back = inverse(h_out)
    matched = (e * (inverse(corrupted) - back)).flatten(1).sum(1).mean()
    return (sum_squared_error(inverse(h_out + n), back) - 2 * matched) / (noise**2 * positions)


class OutputTarget(nn.Module, ABC):
    """What the last part's inverse reads of the output, and what it should have read there. Abstract.

    Attributes:
        by_gradient: whether `wanted` needs dL/d(output).
    """

    by_gradient: ClassVar[bool] = False

    @abstractmethod
    def seen(self, output: Tensor, h_in: Tensor, y: Any) -> Tensor:
        """What the inverse reads, (N, E).

        Args:
            output: the model's raw output (N, ...).
            h_in: what entered the last part (N, ...).
            y: labels.
        """

    @abstractmethod
    def wanted(self, output: Tensor, h_in: Tensor, y: Any, gradient: Tensor | None) -> Tensor:
        """The target of `seen`, (N, E); gradient is dL/d(output) where `by_gradient` is set."""


class ByGradient(Objective):
    """The last part: the task loss, and the target of what entered it by one step down its gradient.

    Args:
        site: where the objective sits.
        first: makes the target.
        waits: learn only when all inverses have learned in the feedback phase.
    """

    def __init__(self, site: Site, *, first: FirstTarget, waits: bool = False) -> None:
        super().__init__()
        self.task, self._first, self.waits = TaskLoss(site.loss), first, waits
        self.reads_input_gradient = site.part > 0

    def forward(self, context: Context) -> Signal:
        """The task loss."""
        return self.task.forward(context)

    def messages(self, context: Context) -> Mapping[int, Tensor]:
        """The first target, to the part below."""
        gradient = input_gradients(context).get(context.part - 1)
        if gradient is None:
            return {}
        return {context.part - 1: self._first(context.h_in.detach(), gradient)}


class ByOutput(Objective):
    """The last part: the task loss, and an inverse of its own that maps a target of the output back; no gradient does.

    Args:
        site: where the objective sits.
        inverse: from what `target` reads to what entered the part; None where the last part is the first.
        target: of the output.
        rule: makes the target of what entered the part.
        lesson: the inverse's loss; None for an inverse that is fixed.
        rounds: updates of the inverse in the feedback phase; 0 to learn beside the part.
    """

    role: ClassVar[Role] = Role.FEEDBACK

    def __init__(
        self,
        site: Site,
        inverse: nn.Module | None,
        *,
        target: OutputTarget,
        rule: Rule,
        lesson: Lesson | None,
        rounds: int = 0,
        waits: bool = False,
    ) -> None:
        super().__init__()
        self.task, self.inverse, self.target = TaskLoss(site.loss), inverse, target
        self._rule, self._lesson = rule, lesson
        self.waits = inverse is not None and (waits or rounds > 0)
        self.rounds = rounds if inverse is not None else 0
        self._gradient: Tensor | None = None

    def forward(self, context: Context) -> Signal:
        """The task loss, which is what is shown, and the inverse's own where it learns beside the part."""
        signal = self.task.forward(context)
        if self.inverse is None:
            return signal
        assert signal.loss is not None
        if self.target.by_gradient:
            output = output_tensor(context.h_out)
            (self._gradient,) = torch.autograd.grad(signal.loss, output, retain_graph=True)
        taught = self._taught(context) if self.rounds == 0 else None
        return signal if taught is None else Signal(loss=signal.loss + taught, report=signal.loss)

    def messages(self, context: Context) -> Mapping[int, Tensor]:
        """The target of what entered the part, to the part below."""
        if self.inverse is None:
            return {}
        gradient, self._gradient = self._gradient, None
        with torch.no_grad():
            h_in, output = context.h_in.detach(), output_tensor(context.h_out).detach()
            wanted = self.target.wanted(output, h_in, context.labels, gradient)
            seen = self.target.seen(output, h_in, context.labels)
            return {context.part - 1: self._rule(self.inverse, h_in, wanted, seen)}

    def rehearse(self, context: Context) -> Signal | None:
        """The inverse's loss."""
        taught = self._taught(context)
        return None if taught is None else Signal(loss=taught)

    def _taught(self, context: Context) -> Tensor | None:
        if self.inverse is None or self._lesson is None:
            return None
        assert context.run is not None

        def run(h: Tensor) -> Tensor:
            assert context.run is not None
            return self.target.seen(output_tensor(context.run(h)), h, context.labels)

        h_in = context.h_in.detach()
        seen = self.target.seen(output_tensor(context.h_out).detach(), h_in, context.labels)
        return self._lesson(self.inverse, run, h_in, seen)


class Targeted(Objective):
    """An earlier part: moves to the target sent from above; above the first part, it sends one on through its inverse.

    Args:
        inverse: from what left the part to what entered it; None for the first part.
        rule: makes the target of what entered the part.
        lesson: the inverse's loss; None for an inverse that is fixed.
        rounds: updates of the inverse in the feedback phase; 0 to learn beside the part.
        scale: factor on ||h - t||^2.
    """

    role: ClassVar[Role] = Role.FEEDBACK
    waits = True

    def __init__(
        self,
        inverse: nn.Module | None,
        *,
        rule: Rule,
        lesson: Lesson | None,
        rounds: int = 0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.inverse, self._rule, self._lesson, self._scale = inverse, rule, lesson, scale
        self.rounds = rounds if inverse is not None else 0

    def forward(self, context: Context) -> Signal:
        """Squared distance to the target, and the inverse's own loss where it learns beside the part."""
        loss = sum_squared_error(context.h_out, context.feedback[context.part + 1], scale=self._scale)
        taught = self._taught(context) if self.rounds == 0 else None
        return Signal(loss=loss if taught is None else loss + taught)

    def messages(self, context: Context) -> Mapping[int, Tensor]:
        """The target of what entered the part, to the part below."""
        if self.inverse is None:
            return {}
        with torch.no_grad():
            target, h_out = context.feedback[context.part + 1], context.h_out.detach()
            return {context.part - 1: self._rule(self.inverse, context.h_in.detach(), target, h_out)}

    def rehearse(self, context: Context) -> Signal | None:
        """The inverse's loss."""
        taught = self._taught(context)
        return None if taught is None else Signal(loss=taught)

    def _taught(self, context: Context) -> Tensor | None:
        if self.inverse is None or self._lesson is None:
            return None
        assert context.run is not None
        return self._lesson(self.inverse, context.run, context.h_in.detach(), context.h_out.detach())
