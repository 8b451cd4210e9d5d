"""Run one part by itself, on the user's own forward.

Modules that finished before the part return stand-ins, the cut below returns the given boundary, the cut above ends
the forward. What the batch alone determines (masks, position tables) is recomputed on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import PartitionError
from .plans import PartPlan, StandIn
from .shadowing import Shadows, original_call
from .tree import call_model, tensors

__all__ = ["Enter", "run_part"]

Enter = Callable[[int], None]
"""enter(k): called when the forward passes into part k, so that generators can be set there."""


class _Reached(BaseException):
    """The cut above was reached; a BaseException, so that the user's own `except Exception` lets it pass."""

    def __init__(self, boundary: Tensor) -> None:
        super().__init__()
        self.boundary = boundary


def _stopping(module: nn.Module, call: Callable[..., Any] | None) -> Callable[..., Any]:
    run = call or original_call(module)

    def stop(*args: Any, **kwargs: Any) -> Any:
        raise _Reached(tensors(run(*args, **kwargs))[0])

    return stop


class _Prefix:
    """The stand-ins before a part: on when the forward starts, off when the boundary has been fed in.

    Gradients stay as they are: a context manager of the user's that spans the cut must find them unchanged.
    """

    def __init__(self, plan: PartPlan, part: int, fed: Mapping[int, Tensor], n: int, enter: Enter | None) -> None:
        self.plan, self.part, self.fed, self.n, self.enter = plan, part, fed, n, enter
        self.device = fed[part - 1].device
        self.shadows = Shadows()
        self.passed = False

    def put(self) -> None:
        assert self.plan.feed is not None
        for module, actions in self.plan.stubs:
            self.shadows.put(module, self._stub(module, actions))
        module, stand_in = self.plan.feed
        self.shadows.put(module, lambda *args, **kwargs: self._feed(stand_in))

    def remove(self) -> None:
        self.shadows.remove()

    def _stub(self, module: nn.Module, actions: list[StandIn | None]) -> Callable[..., Any]:
        run, left = original_call(module), iter(actions)

        def stub(*args: Any, **kwargs: Any) -> Any:
            action = next(left, None)
            if action is None:
                return run(*args, **kwargs)
            if action.boundary is None:
                return action.make(self.n, self.device)
            return action.make(self.n, self.device, self._given(action.boundary))

        return stub

    def _given(self, boundary: int) -> Tensor:
        h = self.fed[boundary]
        return h.clone() if boundary in self.plan.copies else h

    def _feed(self, stand_in: StandIn) -> Any:
        self.passed = True
        self.remove()
        if self.enter is not None:
            self.enter(self.part)
        return stand_in.make(self.n, self.device, self._given(self.part - 1))


def run_part(
    model: nn.Module,
    plan: PartPlan,
    part: int,
    x: Any,
    fed: Mapping[int, Tensor],
    *,
    n: int,
    enter: Enter | None = None,
    calls: Mapping[nn.Module, Callable[..., Any]] | None = None,
) -> Any:
    """Run one part.

    Args:
        model: the user's model.
        plan: the part's plan.
        part: its index.
        x: the model's input (N, ...), read for side inputs by parts after the first.
        fed: the boundaries the part reads, by index.
        n: batch size.
        enter: called with a part's index as the forward passes into it.
        calls: other calls for modules inside the part (compiled ones).

    Returns:
        The boundary above the part, or the model's raw output for the last.

    Raises:
        PartitionError: this forward does not call a cut.
    """
    shadows = Shadows()
    prefix = _Prefix(plan, part, fed, n, enter) if plan.feed is not None else None
    try:
        for module, call in (calls or {}).items():
            if module is not plan.stop:
                shadows.put(module, call)
        if plan.stop is not None:
            shadows.put(plan.stop, _stopping(plan.stop, (calls or {}).get(plan.stop)))
        if prefix is not None:
            prefix.put()
        elif enter is not None:
            enter(part)
        out = call_model(model, x)
    except _Reached as reached:
        if prefix is not None and not prefix.passed:
            raise _missed(plan.below) from None
        return reached.boundary
    finally:
        if prefix is not None:
            prefix.remove()
        shadows.remove()
    if prefix is not None and not prefix.passed:
        raise _missed(plan.below)
    if plan.stop is not None:
        raise _missed(plan.above)
    return out


def _missed(cut: str) -> PartitionError:
    return PartitionError(
        f"cut {cut!r} was not called in this forward, expected once, in order (a branch or a dropped layer goes "
        "around it); cut at a module that every forward calls"
    )
