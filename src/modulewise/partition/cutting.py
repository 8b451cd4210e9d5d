"""Names to cuts: find them in the model, refuse what cannot be cut and say what to do, share out the parameters."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import PartitionError, suggest
from .boundary import Boundary
from .crossings import boundary_of, candidates, parameters_between, single_output, skips
from .plans import PartPlan, make_plans
from .recording import END, Call, Recording, record
from .tree import batch_size, rebatch
from .verification import undisturbed

__all__ = ["Survey", "named_cuts", "owners"]

SIZES = (2, 3)
"""Batch sizes of the recordings: two, so that stand-ins scale with the batch; small, so that they cost little."""


class Survey:
    """A model recorded on one kind of input, at two batch sizes."""

    def __init__(self, model: nn.Module, example: Any) -> None:
        self.model = model
        self.n = batch_size(example)
        self.examples = tuple(rebatch(example, size) for size in SIZES)
        with undisturbed(model, training=True):
            self.small, self.large = (record(model, x) for x in self.examples)
        if [call.name for call in self.small.calls] != [call.name for call in self.large.calls]:
            raise PartitionError(
                "the model's forward calls other modules at another batch size; a partition needs one order of calls"
            )

    def plans(self, cuts: list[Call]) -> list[PartPlan]:
        """How every part runs."""
        return make_plans(self.small, self.large, cuts, SIZES)

    def boundary(self, call: Call) -> Boundary:
        """The boundary at a call's output, at the example's batch size."""
        found = boundary_of(self.small, call)
        return Boundary(found.name, (self.n, *found.shape[1:]), found.dtype, found.channel_axis)

    def candidates(self) -> list[Call]:
        """Every place where one boundary tensor alone crosses."""
        return [call for call in candidates(self.small) if call.outputs[0].shape[0] == SIZES[0]]

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


def _cut(recording: Recording, model: nn.Module, name: str) -> Call:
    names = [known for known, _ in model.named_modules() if known]
    if name not in names:
        raise PartitionError(f"cut {name!r} is not a module of {type(model).__name__}{suggest(name, names)}")
    calls = [call for call in recording.calls if call.name == name]
    if len(calls) != 1:
        times = "never called" if not calls else f"called {len(calls)} times"
        raise PartitionError(
            f"cut {name!r} is {times} in one forward, expected once; cut at a module around or beside it"
        )
    slot = single_output(calls[0])
    if slot is None:
        raise PartitionError(
            f"cut {name!r} returns {len(calls[0].outputs)} tensors or none of floating point, expected one tensor "
            "at the boundary; cut at a module that returns one"
        )
    if slot.shape[0] != SIZES[0]:
        raise PartitionError(f"cut {name!r} returns a tensor whose axis 0 is not the batch; cut elsewhere")
    return calls[0]


def named_cuts(survey: Survey, names: tuple[str, ...]) -> list[Call]:
    """The calls at which the model is cut, in order of call.

    Raises:
        PartitionError: a name is unknown, given twice, called twice or never, returns no single tensor, lies before
            its predecessor, or something beside the boundary crosses there.
    """
    if len(set(names)) != len(names):
        raise PartitionError(f"a cut is named twice in {list(names)}; name each once")
    calls = [_cut(survey.small, survey.model, name) for name in names]
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
        raise PartitionError(
            f"at cut {names[index]!r} more than the boundary crosses, a skip {'; '.join(routes[:3])}: it starts inside "
            "one part and ends in another; cut where the skip begins or after it has ended"
        )
    return calls


def owners(survey: Survey, cuts: list[Call]) -> list[tuple[str, ...]]:
    """The names of the parameters that each part owns; every parameter is in exactly one part.

    A parameter that no operation read stays with the part that called its module, or else with the last.

    Raises:
        PartitionError: a trainable parameter is read in two parts (tied weights).
    """
    edges = [-1, *(cut.exit for cut in cuts), END]
    read = [parameters_between(survey.small, a, b) for a, b in zip(edges, edges[1:], strict=False)]
    # Frozen parameters may be read anywhere; they belong to the first part that reads them.
    owner: dict[str, int] = {}
    parameters = dict(survey.model.named_parameters())
    aliases = _aliases(survey.model)
    for index, names in enumerate(read):
        for name, where in names.items():
            if name in owner and parameters[name].requires_grad:
                first = read[owner[name]][name]
                paths = " and ".join(repr(path) for path in aliases[id(parameters[name])])
                raise PartitionError(
                    f"parameter {paths} is read in part {owner[name]} (by {first!r}) and in part {index} (by {where!r}), "
                    "expected one part; untie the weights or move the cut so that both uses fall into one part"
                )
            owner.setdefault(name, index)
    for name in parameters:
        owner.setdefault(name, _caller(survey.small, name, edges))
    return [tuple(name for name in parameters if owner[name] == index) for index in range(len(cuts) + 1)]


def _aliases(model: nn.Module) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def _caller(recording: Recording, parameter: str, edges: list[int]) -> int:
    path = parameter
    while "." in path:
        path = path.rpartition(".")[0]
        exits = [call.exit for call in recording.calls if call.name == path]
        if exits:
            return next(i for i, edge in enumerate(edges[1:]) if exits[0] <= edge)
    return len(edges) - 2
