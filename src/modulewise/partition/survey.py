"""A model recorded on one kind of input: its candidate cuts, its boundaries, how its parts run."""

from __future__ import annotations

import random
from typing import Any

import numpy
from torch import nn
from torch.nn.parameter import is_lazy

from ..errors import PartitionError
from .boundary import Boundary
from .crossings import boundary_of, candidates, parameters_between, single_output
from .plans import PartPlan, make_plans
from .recorder import record
from .recording import END, Call
from .shadowing import is_compiled
from .tree import batch_size, call_model, rebatch, tensors
from .verification import undisturbed, verify

__all__ = ["Survey", "paths_of"]

SIZES = (2, 3)
"""Batch sizes of the recordings: two, so that stand-ins scale with the batch; small, so that they cost little."""


class Survey:
    """A model recorded on one kind of input, at two batch sizes.

    Raises:
        PartitionError: the forward has parameters without a shape, is compiled, is not one sequence of calls, or draws
            from a random source other than torch's.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        self.model = model
        self.n = batch_size(example)
        _check(model)
        self.sizes = SIZES
        try:
            foreign = self._record(example)
        except PartitionError:
            raise
        except Exception as error:
            if any(parameter.is_meta for parameter in model.parameters()):
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                raise PartitionError(
                    f"the model does not run on the meta device ({reason}), "
                    "expected a forward that needs no values (no .item(), nothing kept on another device); build the "
                    "whole model under `with torch.device('meta')`, or give it values"
                ) from error
            # A model that takes only batches of its own size (folded frames, pairs) is recorded at multiples of it.
            self.sizes = (self.n, 2 * self.n)
            foreign = self._record_multiples(example)
        if foreign:
            raise PartitionError(
                "the model's forward draws from Python's or numpy's random numbers, expected torch's alone, which are "
                "set for every part; draw with torch.rand"
            )
        if [call.name for call in self.small.calls] != [call.name for call in self.large.calls]:
            raise PartitionError(
                "the model's forward calls other modules from one forward to the next (a branch on values, a dropped "
                "layer), expected one order of calls; put the branch inside one module"
            )

    def _record(self, example: Any) -> bool:
        """Record at both sizes; whether numbers were drawn from a random source other than torch's."""
        self.examples = tuple(rebatch(example, size) for size in self.sizes)
        with undisturbed(self.model, training=True):
            before, numbers = _foreign_state(), [_numbers(self.model)]
            recordings = []
            for x in self.examples:
                recordings.append(record(self.model, x))
                numbers.append(_numbers(self.model))
            self.small, self.large = recordings
            first, second, third = numbers
            self.counting = {
                module: name
                for (module, name), number in third.items()
                if number != second.get((module, name), number) != first.get((module, name))
            }
            return before != _foreign_state()

    def _record_multiples(self, example: Any) -> bool:
        try:
            return self._record(example)
        except PartitionError:
            raise
        except Exception as error:
            with undisturbed(self.model, training=True):
                call_model(self.model, example)  # where the example itself fails, the model's own error is the answer
            raise PartitionError(
                f"the model's forward runs on {self.n} samples, but not on {SIZES[0]} or {2 * self.n} "
                f"({type(error).__name__}), expected it to take batches of other sizes"
            ) from error

    def verify(self, cuts: list[Call], plans: list[PartPlan]) -> None:
        """Compare the parts with the whole, more often where random numbers that Python looks at steer the forward.

        A model on the meta device has no values to compare.
        """
        if any(tensor.is_meta for tensor in tensors(self.examples)):
            return
        steered = any(escape.random and not escape.upstream for escape in self.small.escapes)
        verify(self.model, plans, cuts, self.examples, trials=16 if steered else 1)

    def plans(self, cuts: list[Call]) -> list[PartPlan]:
        """How every part runs."""
        return make_plans(self.small, self.large, cuts, self.sizes)

    def boundary(self, call: Call) -> Boundary:
        """The boundary at a call's output, at the example's batch size."""
        found = boundary_of(self.small, call)
        return Boundary(found.name, (self.n, *found.shape[1:]), found.dtype, found.channel_axis)

    def candidates(self) -> list[Call]:
        """Every place where one boundary tensor alone crosses."""
        spans = list(self._spans().values())
        drawn = [v for v in self.small.values.values() if v.drawn >= 0]

        def straddled(clock: int) -> bool:
            """Whether a trainable parameter, or a random number, is read on both sides."""
            return any(first <= clock < last for first, last in spans) or any(
                not v.upstream(clock) and v.drawn <= clock < v.last_read for v in drawn
            )

        return [
            call
            for call in candidates(self.small)
            if self.batched(call) and self.counted(call) is None and not straddled(call.exit)
        ]

    def straddling(self) -> str | None:
        """A trainable parameter that is read on both sides of some place where one tensor alone crosses."""
        clocks = [call.exit for call in candidates(self.small)]
        return next((name for name, (a, b) in self._spans().items() if any(a <= clock < b for clock in clocks)), None)

    def _spans(self) -> dict[str, tuple[int, int]]:
        """The first and the last clock at which a trainable parameter is read."""
        spans: dict[str, tuple[int, int]] = {}
        for operation in self.small.operations:
            for slot in operation.reads:
                for name, span, learned in self.small.constants.get(slot.key, ()):
                    if learned and slot.overlaps(span) and self.model.get_parameter(name).requires_grad:
                        spans[name] = (spans.get(name, (operation.clock, 0))[0], operation.clock)
        return spans

    def counted(self, call: Call) -> str | None:
        """The attribute in which a module around a call counts its forwards, of which there would be one a part."""
        outside = [frame for frame in call.frames()[:-1] if frame.module in self.counting]
        return f"{outside[0].name}.{self.counting[outside[0].module]}".lstrip(".") if outside else None

    def batched(self, call: Call) -> bool:
        """Whether axis 0 of a call's output is the batch, at both sizes."""
        other = self.large.calls[self.small.calls.index(call)]
        shapes = [single.shape for single in map(single_output, (call, other)) if single is not None]
        return [shape[0] for shape in shapes] == list(self.sizes)

    def points(self) -> list[Call]:
        """The candidates worth cutting at: one for every slice that holds a weight matrix or kernel.

        Normalisation, activation and pooling stay with the layer before them.
        """
        kernels = {name for name, parameter in self.model.named_parameters() if parameter.ndim > 1}
        found: list[Call] = []
        clock = -1
        for call in self.candidates():
            if found and not kernels & set(parameters_between(self.small, clock, call.exit)):
                found.pop()
            found.append(call)
            clock = call.exit
        while found and not kernels & set(parameters_between(self.small, found[-1].exit, END)):
            found.pop()
        return found


def _check(model: nn.Module) -> None:
    """Refuse what cannot be recorded."""
    lazy = next((name for name, parameter in model.named_parameters() if is_lazy(parameter)), None)
    if lazy is not None:
        raise PartitionError(f"parameter {lazy!r} has no shape yet; run the model once before making a partition")
    if is_compiled(model):
        raise PartitionError(
            "the model is compiled as a whole, expected it as it was before; its parts are compiled by "
            "Trainer(compile=True)"
        )


def _numbers(model: nn.Module) -> dict[tuple[nn.Module, str], float]:
    """The plain numbers kept on modules."""
    return {
        (module, name): attribute
        for module in model.modules()
        for name, attribute in module.__dict__.items()
        if isinstance(attribute, int | float) and not isinstance(attribute, bool)
    }


def _foreign_state() -> str:
    """Python's and numpy's random state, to see whether a forward draws from them."""
    return repr((random.getstate(), [part.tolist() if hasattr(part, "tolist") else part for part in _numpy_state()]))


def _numpy_state() -> tuple[Any, ...]:
    return tuple(numpy.random.get_state(legacy=True))


def paths_of(model: nn.Module, parameter: str) -> str:
    """Every name of a parameter: of the same object, or of one over the same memory."""
    tied = model.get_parameter(parameter)
    names = [
        other
        for other, candidate in model.named_parameters(remove_duplicate=False)
        if candidate is tied
        or (candidate.numel() and candidate.untyped_storage()._cdata == tied.untyped_storage()._cdata)
    ]
    return " and ".join(repr(other) for other in names)
