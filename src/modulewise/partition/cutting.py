"""Names to cuts: find them in the model, refuse what cannot be cut and say what to do, share out the parameters."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import numpy
from torch import nn
from torch.nn.parameter import is_lazy

from ..errors import PartitionError, suggest
from .boundary import Boundary
from .crossings import boundary_of, candidates, parameters_between, single_output, skips, unfit
from .plans import PartPlan, make_plans
from .recorder import record
from .recording import END, Call, Recording
from .shadowing import is_compiled
from .tree import batch_size, call_model, rebatch
from .verification import undisturbed, verify

__all__ = ["Survey", "check_owners", "named_cuts", "owners"]

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
        except Exception:
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
            before = _foreign_state()
            self.small, self.large = (record(self.model, x) for x in self.examples)
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
        """Compare the parts with the whole, more often where random numbers that Python looks at steer the forward."""
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
        return [call for call in candidates(self.small) if self.batched(call)]

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


def _foreign_state() -> str:
    """Python's and numpy's random state, to see whether a forward draws from them."""
    return repr((random.getstate(), [part.tolist() if hasattr(part, "tolist") else part for part in _numpy_state()]))


def _numpy_state() -> tuple[Any, ...]:
    return tuple(numpy.random.get_state(legacy=True))


def _cut(survey: Survey, name: str) -> Call:
    model, recording = survey.model, survey.small
    modules = {known: module for known, module in model.named_modules(remove_duplicate=False) if known}
    if name not in modules:
        raise PartitionError(f"cut {name!r} is not a module of {type(model).__name__}{suggest(name, modules)}")
    first = next(known for known, module in model.named_modules() if module is modules[name])
    if first != name:
        raise PartitionError(f"cut {name!r} is another name of module {first!r}; write {first!r}")
    calls = [call for call in recording.calls if call.name == name]
    if len(calls) != 1:
        times = "never called" if not calls else f"called {len(calls)} times"
        raise PartitionError(
            f"cut {name!r} is {times} in one forward, expected once; cut at a module around or beside it"
        )
    slot = single_output(calls[0])
    if slot is None:
        kinds = ", ".join(f"{output.dtype} {output.shape}".replace("torch.", "") for output in calls[0].outputs)
        raise PartitionError(
            f"cut {name!r} returns {len(calls[0].outputs)} tensors ({kinds or 'nothing'}), expected one of floating "
            "point, the boundary; cut at a module that returns one"
        )
    if not survey.batched(calls[0]):
        raise PartitionError(
            f"cut {name!r} returns a tensor whose axis 0 is not the batch ({slot.shape} for N={survey.sizes[0]}), "
            "expected (N, ...); cut elsewhere, or put the batch first"
        )
    reason = unfit(recording, calls[0])
    if reason is not None:
        raise PartitionError(f"cut {name!r} {reason}")
    return calls[0]


def named_cuts(survey: Survey, names: tuple[str, ...]) -> list[Call]:
    """The calls at which the model is cut, in order of call.

    Args:
        survey: the recorded model.
        names: the modules to cut after.

    Raises:
        PartitionError: a name is unknown, given twice, called twice or never, returns no single tensor, lies before
            its predecessor, or something beside the boundary crosses there.
    """
    if len(set(names)) != len(names):
        raise PartitionError(f"a cut is named twice in {list(names)}; name each once")
    calls = [_cut(survey, name) for name in names]
    order = [call.exit for call in calls]
    if order != sorted(order):
        right = [call.name for call in sorted(calls, key=lambda call: call.exit)]
        raise PartitionError(f"cuts {list(names)} are not in the order of the forward; write cuts={right}")
    for position in range(1, len(calls)):
        if not any(
            calls[position - 1].exit < operation.clock <= calls[position].exit for operation in survey.small.operations
        ):
            raise PartitionError(
                f"nothing happens between cuts {names[position - 1]!r} and {names[position]!r}; drop one"
            )
    for index, found in skips(survey.small, calls).items():
        routes = sorted(
            {f"from {skip.origin or 'the forward'!r} to {skip.reader or 'the forward'!r}" for skip in found}
        )
        more = f" and {len(routes) - 3} more" if len(routes) > 3 else ""
        raise PartitionError(
            f"at cut {names[index]!r} more than the boundary crosses, a skip {'; '.join(routes[:3])}{more}: it starts "
            "inside one part and ends in another; cut where the skip begins or after it has ended"
        )
    return calls


def owners(survey: Survey, cuts: list[Call]) -> list[tuple[str, ...]]:
    """The names of the parameters that each part owns; every parameter is in exactly one part.

    A parameter that no operation read stays with the part that called its module, or else with the last.

    Raises:
        PartitionError: a trainable parameter is read in two parts (tied weights).
    """
    edges = [-1, *(cut.exit for cut in cuts), END]
    read = [parameters_between(survey.small, a, b) for a, b in pairwise(edges)]
    # Frozen parameters may be read anywhere; they belong to the first part that reads them.
    owner: dict[str, int] = {}
    parameters = dict(survey.model.named_parameters())
    for index, names in enumerate(read):
        for name, where in names.items():
            if name in owner and parameters[name].requires_grad:
                first = read[owner[name]][name]
                raise PartitionError(
                    f"parameter {_paths(survey.model, name)} is read in part {owner[name]} (by {first!r}) and in "
                    f"part {index} (by {where!r}), expected one part; untie the weights or move the cut so that both "
                    "uses fall into one part"
                )
            owner.setdefault(name, index)
    for name in parameters:
        owner.setdefault(name, _caller(survey.small, name, edges))
    return [tuple(name for name in parameters if owner[name] == index) for index in range(len(cuts) + 1)]


def check_owners(survey: Survey, cuts: list[Call], owner: dict[str, int]) -> None:
    """Refuse an input on which a trainable parameter is read in another part than the one that owns it.

    Raises:
        PartitionError: naming the parameter and both parts.
    """
    edges = [-1, *(cut.exit for cut in cuts), END]
    for index, (start, stop) in enumerate(pairwise(edges)):
        for name in parameters_between(survey.small, start, stop):
            if owner[name] != index and survey.model.get_parameter(name).requires_grad:
                raise PartitionError(
                    f"parameter {name!r} belongs to part {owner[name]} but is read in part {index} for an input of "
                    "this structure, expected one part; make the partition with such an input as example"
                )


def _paths(model: nn.Module, name: str) -> str:
    """Every name of a parameter: of the same object, or of one over the same memory."""
    tied = model.get_parameter(name)
    names = [
        other
        for other, parameter in model.named_parameters(remove_duplicate=False)
        if parameter is tied
        or (parameter.numel() and parameter.untyped_storage()._cdata == tied.untyped_storage()._cdata)
    ]
    return " and ".join(repr(other) for other in names)


def _caller(recording: Recording, parameter: str, edges: list[int]) -> int:
    path = parameter
    while "." in path:
        path = path.rpartition(".")[0]
        exits = [call.exit for call in recording.calls if call.name == path]
        if exits:
            return next(i for i, edge in enumerate(edges[1:]) if exits[0] <= edge)
    return len(edges) - 2
