"""The pieces of a part, from cut point to cut point, and running a part piece by piece with recomputation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..balance import Slice, kept_from, recomputed_memory
from .running import Enter, run_part
from .shadowing import scratch_buffers
from .slices import measure_slices

if TYPE_CHECKING:
    from .recording import Call
    from .survey import Survey

__all__ = ["Pieces"]


class Pieces:
    """A finer partition below the one asked for: every part cut again at its own cut points.

    As few pieces are run again as bring every part down to what the neediest needs at least.

    Args:
        survey: the recorded model.
        cuts: the calls at which the parts end.
        x: an input at the batch size to measure the pieces at.
    """

    def __init__(self, survey: Survey, cuts: list[Call], x: Any) -> None:
        self.model: nn.Module = survey.model
        fine = _merged(survey, cuts)
        self.plans = survey.plans(fine)
        # ends[k] is the index of the last piece of part k.
        self.ends = [fine.index(cut) for cut in cuts] + [len(fine)]
        # kept[k] is the first piece of part k that keeps its activations.
        self.kept = self._kept(measure_slices(survey, fine, x, timed=False))

    def _kept(self, slices: list[Slice]) -> list[int]:
        starts = [0, *(end + 1 for end in self.ends[:-1])]
        parts = [slices[start : end + 1] for start, end in zip(starts, self.ends, strict=True)]
        limit = max(recomputed_memory(part) for part in parts)
        return [start + kept_from(part, limit) for start, part in zip(starts, parts, strict=True)]

    def run(self, part: int, x: Any, fed: Mapping[int, Tensor], *, n: int, enter: Enter | None) -> Any:
        """Run a part, keeping of its lower pieces only the inputs; the backward runs those pieces again.

        Random draws are replayed, and the second run writes to copies of buffers, so that numbers and statistics are
        those of an ordinary run.

        Args:
            part: index of the part.
            x: the model's input, read for side inputs.
            fed: the boundaries the part reads, by index.
            n: batch size.
            enter: called with the part's index as the forward passes into it.
        """
        held = {self.ends[index]: h for index, h in fed.items()}
        first, last = (self.ends[part - 1] + 1 if part else 0), self.ends[part]
        out: Any = None
        for piece in range(first, last + 1):
            seeds = _only(enter, part) if piece == first else None
            given = {index: held[index] for index in self.plans[piece].reads}
            if piece < self.kept[part] and torch.is_grad_enabled():
                out = self._kept_small(piece, x, given, n, seeds)
            else:
                out = run_part(self.model, self.plans[piece], piece, x, given, n=n, enter=seeds)
            held[piece] = out
            later = {index for plan in self.plans[piece + 1 : last + 1] for index in plan.reads}
            for index in [index for index in held if index not in later]:
                del held[index]
        return out

    def _kept_small(self, piece: int, x: Any, given: Mapping[int, Tensor], n: int, enter: Enter | None) -> Any:
        names = list(given)

        def run(*tensors: Tensor) -> Any:
            fed = dict(zip(names, tensors, strict=True))
            return run_part(self.model, self.plans[piece], piece, x, fed, n=n, enter=enter)

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            return nullcontext(), _Repeatedly(lambda: scratch_buffers(self.model))

        return checkpoint(run, *given.values(), use_reentrant=False, context_fn=contexts)


class _Repeatedly(AbstractContextManager[None]):
    """A context made anew whenever it is entered: a graph may be gone through, and recomputed, more than once."""

    def __init__(self, make: Callable[[], AbstractContextManager[None]]) -> None:
        self.make = make

    def __enter__(self) -> None:
        self.context = self.make()
        self.context.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.context.__exit__(*error)


def _only(enter: Enter | None, part: int) -> Callable[[int], None] | None:
    """Say that a part was entered, whatever piece it was entered by."""
    return None if enter is None else lambda piece: enter(part)


def _merged(survey: Survey, cuts: list[Call]) -> list[Call]:
    """The cut points with the cuts among them; of two that end at one place the cut."""
    busy = {operation.clock for operation in survey.small.operations}

    def apart(a: Call, b: Call) -> bool:
        low, high = sorted((a.exit, b.exit))
        return any(clock in busy for clock in range(low, high))

    points = [point for point in survey.points() if all(apart(point, cut) for cut in cuts)]
    return sorted([*points, *cuts], key=lambda call: call.exit)
