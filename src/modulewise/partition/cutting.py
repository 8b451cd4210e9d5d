"""Names to cuts: find them in the model, refuse what cannot be cut and say what to do, share out the parameters."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from ..errors import PartitionError, suggest
from .crossings import parameters_between, single_output, skips, unfit
from .plans import PartPlan
from .recording import END, Call, Recording
from .survey import Survey, paths_of

__all__ = ["check_owners", "named_cuts", "owners", "shared_tables"]


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
    attribute = survey.counted(calls[0])
    if attribute is not None:
        raise PartitionError(
            f"cut {name!r} lies inside a forward that counts its calls, in attribute {attribute!r}, and would be "
            "called once for every part; count in the training loop, or cut around it"
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
                    f"parameter {paths_of(survey.model, name)} is read in part {owner[name]} (by {first!r}) and in "
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


def shared_tables(survey: Survey, cuts: list[Call], plans: list[PartPlan]) -> tuple[str, ...]:
    """The frozen parameters that more than one part reads, itself or through a side input made of them."""
    edges = [-1, *(cut.exit for cut in cuts), END]
    times = Counter(name for start, stop in pairwise(edges) for name in parameters_between(survey.small, start, stop))
    found = {name for name, count in times.items() if count > 1}.union(*(plan.tables for plan in plans))
    return tuple(name for name, _ in survey.model.named_parameters() if name in found)


def _caller(recording: Recording, parameter: str, edges: list[int]) -> int:
    path = parameter
    while "." in path:
        path = path.rpartition(".")[0]
        exits = [call.exit for call in recording.calls if call.name == path]
        if exits:
            return next(i for i, edge in enumerate(edges[1:]) if exits[0] <= edge)
    return len(edges) - 2
