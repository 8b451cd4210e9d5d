"""A partition: the user's model plus the names where it is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from ..balance import Balance, Slice, memory, split, time
from ..errors import PartitionError
from .boundary import Block, Boundary
from .cutting import check_owners, named_cuts, owners, shared_tables
from .pieces import Pieces
from .plans import PartPlan
from .recording import END
from .running import Enter, run_part
from .shadowing import scratch_buffers
from .slices import blocks_after, measure_slices
from .survey import Survey, paths_of
from .table import table
from .tree import batch_size, map_tensors, plain, signature, structure, where_model_is

__all__ = ["Part", "Partition"]


class Partition:
    """The user's model, cut into K parts by names on its own forward.

    Nothing is rewritten, traced, copied or renamed: `state_dict()` keys and parameter identities stay, and the object
    passed in is the trained model. At construction the model is run on a few samples of the example and the composed
    parts are compared with the whole model, bit for bit, in eval and train mode and at two batch sizes. A model on the
    meta device has shapes and no values: shapes, gradient flags and what crosses a cut are checked, values are not.

    Args:
        model: any `nn.Module` whose forward crosses every cut with one tensor.
        cuts: module names; part k ends at the output of the module named `cuts[k]`.
        parts: K >= 1, for automatic cuts instead of names.
        example: an input of the model: tensor (N, ...), tuple or mapping.
        balance: cost of a part for automatic cuts: `mw.balance.memory` (default), `mw.balance.recomputed_memory` (for
            `Trainer(recompute=True)`), `mw.balance.time` or `mw.balance.parameters`.

    Raises:
        PartitionError: unknown or unsuitable cuts, a skip that starts inside one part and ends in another, a parameter
            in two parts, more parts than cut points, or composed parts that differ from the whole.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> partition = Partition(model, cuts=["1"], example=torch.randn(5, 4))
    >>> [part.parameter_names for part in partition.parts]
    [('0.weight', '0.bias'), ('2.weight', '2.bias')]
    >>> h = partition.part(0)(torch.zeros(2, 4))
    >>> partition.part(1)(h).shape
    torch.Size([2, 3])
    """

    shared = False

    def __init__(
        self,
        model: nn.Module,
        *,
        example: Any,
        cuts: Sequence[str] | None = None,
        parts: int | None = None,
        balance: Balance = memory,
    ) -> None:
        if (cuts is None) == (parts is None):
            raise PartitionError("a partition needs either cuts= (module names) or parts= (a number), exactly one")
        if isinstance(cuts, str):
            raise PartitionError(f"cuts={cuts!r} is one string, expected a list of module names; write [{cuts!r}]")
        self.model = model
        self.example = where_model_is(model, plain(example))
        self._survey = Survey(model, self.example)
        if cuts is None:
            assert parts is not None
            cuts = self._automatic(parts, balance)
        self.cuts: tuple[str, ...] = tuple(cuts)
        self._calls = named_cuts(self._survey, self.cuts)
        self._plans = {signature(self.example): self._survey.plans(self._calls)}
        self._pieces: dict[Any, Pieces] = {}
        owned = owners(self._survey, self._calls)
        self._owner = {name: index for index, names in enumerate(owned) for name in names}
        self._survey.verify(self._calls, self._plans[signature(self.example)])
        self._structures = {structure(self.example)}
        self._tables = shared_tables(self._survey, self._calls, self._plans[signature(self.example)])
        boundaries = [self._survey.boundary(call) for call in self._calls]
        self.parts: tuple[Part, ...] = tuple(
            Part(
                self,
                index,
                names,
                boundaries[index - 1] if index else None,
                boundaries[index] if index < len(boundaries) else None,
            )
            for index, names in enumerate(owned)
        )

    def __len__(self) -> int:
        """K, the number of parts."""
        return len(self.parts)

    def part(self, index: int) -> Part:
        """Part `index`, 0 <= index < K."""
        if not 0 <= index < len(self.parts):
            raise PartitionError(f"part {index} was asked for, expected 0 to {len(self.parts) - 1}")
        return self.parts[index]

    def module(self, name: str) -> nn.Module:
        """A module of the model by its name."""
        return self.model.get_submodule(name)

    def labels(self, part: int, y: Any) -> Any:
        """The labels that a part sees: all of them."""
        return y

    def plans(self, x: Any) -> list[PartPlan]:
        """How every part runs on inputs of x's structure and shapes; a new structure is recorded once."""
        key = signature(x)
        self._check_tables()
        if key not in self._plans:
            survey = Survey(self.model, plain(x))
            calls = named_cuts(survey, self.cuts)
            check_owners(survey, calls, self._owner)
            plans = survey.plans(calls)
            if structure(x) not in self._structures:
                survey.verify(calls, plans)
                self._structures.add(structure(x))
            self._plans[key] = plans
        return self._plans[key]

    def run(
        self,
        index: int,
        x: Any,
        fed: Mapping[int, Tensor],
        *,
        enter: Enter | None = None,
        recomputing: bool = False,
        calls: Mapping[nn.Module, Callable[..., Any]] | None = None,
        plan: PartPlan | None = None,
        piecewise: bool = False,
    ) -> Any:
        """Run part `index` on the boundaries it reads.

        Args:
            index: the part.
            x: the model's input; of parts after the first it is read for side inputs alone.
            fed: boundary j (N, ...) for every j in `reads(x, index)`.
            enter: called with a part's index as the forward passes into it, to set generators.
            recomputing: let buffers be written to copies, so that a second run updates no statistics.
            calls: other calls for modules inside the part, e.g. compiled ones.
            plan: the part's plan, where the caller has looked it up already.
            piecewise: keep for the backward only the inputs of the pieces between the part's own cut points.
        """
        with ExitStack() as stack:
            if recomputing:
                stack.enter_context(scratch_buffers(self.model))
            if piecewise:
                return self._pieces_for(x).run(index, x, fed, n=batch_size(x), enter=enter)
            return run_part(
                self.model, plan or self.plans(x)[index], index, x, fed, n=batch_size(x), enter=enter, calls=calls
            )

    def _pieces_for(self, x: Any) -> Pieces:
        key = signature(x)
        if key not in self._pieces:
            known = key == signature(self.example)
            survey = self._survey if known else Survey(self.model, plain(x))
            self._pieces[key] = Pieces(survey, self._calls if known else named_cuts(survey, self.cuts), plain(x))
        return self._pieces[key]

    def reads(self, x: Any, index: int) -> tuple[int, ...]:
        """The boundaries part `index` reads: the one below it and, by a skip, earlier ones."""
        return self.plans(x)[index].reads

    @property
    def ports(self) -> dict[int, tuple[int, ...]]:
        """For every part that reads boundaries before its own input, those boundaries."""
        plans = self._plans[signature(self.example)]
        ports = {index: plan.reads[:-1] for index, plan in enumerate(plans)}
        return {index: earlier for index, earlier in ports.items() if earlier}

    def blocks(self, index: int) -> tuple[Block, ...]:
        """The modules called after part `index`, each with one tensor in and one out, in order of call."""
        return blocks_after(self._survey, self._calls[index].exit if index < len(self._calls) else END)

    def points(self) -> tuple[str, ...]:
        """The places where one tensor alone crosses and a cut is worth making: names for `cuts=`."""
        return tuple(call.name for call in self._survey.points())

    def measure(self, *, timed: bool = True) -> list[Slice]:
        """Every slice between neighbouring cut points, at the example's batch size; not timed, operations instead."""
        return measure_slices(self._survey, self._survey.points(), self.example, timed=timed, counted=not timed)

    def blank(self, n: int) -> Any:
        """An input of the example's structure at batch size n that takes no memory, for parts that do not read x."""
        size = batch_size(self.example)
        return map_tensors(
            lambda t: t[:1].expand(n, *t.shape[1:]) if t.ndim and t.shape[0] == size else t, self.example
        )

    def _check_tables(self) -> None:
        """A table that several parts read belongs to one of them, so that it cannot be learned."""
        for name in self._tables:
            if self.model.get_parameter(name).requires_grad:
                raise PartitionError(
                    f"parameter {name!r} was frozen when the partition was made and is read in several parts, but now "
                    "requires a gradient; keep it frozen, or unfreeze it first and make the partition again"
                )

    def _automatic(self, parts: int, balance: Balance) -> list[str]:
        points = self._survey.points()
        if not 1 <= parts <= len(points) + 1:
            shared = self._survey.straddling()
            names = paths_of(self.model, shared) if shared else ""
            tied = f"; parameter {names} is read on both sides of others, untie it" if shared else ""
            raise PartitionError(
                f"{parts} parts were asked for, expected 1 to {len(points) + 1}: the model has {len(points)} cut "
                f"points{tied}"
            )
        if parts == 1:
            return []
        slices = measure_slices(self._survey, points, self.example, timed=balance is time)
        ends = split(
            lambda start, stop: balance(slices[start:stop]),
            len(slices),
            parts,
            spread=lambda start, stop: memory(slices[start:stop]),
        )
        return [points[index].name for index in ends]

    def __str__(self) -> str:
        return table(self)


class Part:
    """One slice of the user's network; calling it runs that slice alone.

    Attributes:
        index: 0 <= index < K.
        parameter_names: the names, in the whole model, of the parameters it owns.
        input: the boundary below it; None for part 0.
        output: the boundary above it; None for the last part.
    """

    def __init__(
        self,
        partition: Partition,
        index: int,
        parameter_names: tuple[str, ...],
        below: Boundary | None,
        above: Boundary | None,
    ) -> None:
        self._partition = partition
        self.index = index
        self.parameter_names = parameter_names
        self.input, self.output = below, above

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters this part owns, by their names in the whole model."""
        for name in self.parameter_names:
            yield name, self._partition.model.get_parameter(name)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters this part owns."""
        return (parameter for _, parameter in self.named_parameters())

    def modules(self) -> list[tuple[str, nn.Module]]:
        """The outermost modules that this part calls, in order."""
        plan = next(iter(self._partition._plans.values()))[self.index]
        return [(call.name, call.module) for call in plan.inside]

    def __call__(self, h: Any, *, x: Any = None, ports: Mapping[int, Tensor] | None = None) -> Any:
        """Run this part alone.

        Args:
            h: the boundary below it (N, ...); for part 0 the model's input.
            x: the model's input, needed where the part reads side inputs (masks).
            ports: earlier boundaries, where the part reads them by a skip.

        Raises:
            PartitionError: x or a port is needed and missing.
        """
        if self.index == 0:
            return self._partition.run(0, h, {})
        plan = self._partition.plans(x if x is not None else self._partition.example)[self.index]
        if x is None and plan.reads_batch:
            raise PartitionError(f"part {self.index} reads side inputs of the batch (a mask, say): give x= as well")
        fed = {**(ports or {}), self.index - 1: h}
        missing = [index for index in plan.reads if index not in fed]
        if missing:
            raise PartitionError(
                f"part {self.index} reads earlier boundaries {missing} by a skip: give ports={{index: tensor}} as well"
            )
        blank = self._partition.blank(h.shape[0]) if x is None else x
        return self._partition.run(self.index, blank, fed)
