"""The slices between cut points: what each keeps and costs, and the blocks that heads may copy."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..balance import Slice
from ..metering import Category, MemoryMeter, counted_flops, weightless
from .boundary import Block, Boundary
from .crossings import parameters_between, single_output
from .plans import PartPlan
from .recording import END, Call
from .running import run_part
from .tree import batch_size, map_tensors, tensors
from .verification import undisturbed

if TYPE_CHECKING:
    from .survey import Survey

__all__ = ["blocks_after", "measure_slices", "steps"]


def measure_slices(
    survey: Survey, points: list[Call], example: Any, *, timed: bool = True, counted: bool = False
) -> list[Slice]:
    """Run every slice forward and backward at the example's batch size; note what it keeps and how long it takes.

    Slices run one at a time, so that a model too large to train whole can be measured. Untimed, they run on tensors
    without memory where the forward allows it; floating-point operations are counted where asked for.
    """
    if timed:
        return _measured(survey, points, example, timed=True, counted=counted)
    positions = {id(call): position for position, call in enumerate(survey.small.calls)}
    indices = [positions[id(point)] for point in points]
    mode = FakeTensorMode()
    try:
        fake, x = weightless((survey, example), mode)
        with mode:
            calls = [fake.small.calls[index] for index in indices]
            return _measured(fake, calls, x, timed=False, counted=counted)
    except (RuntimeError, NotImplementedError, TypeError):  # a forward that asks for values, an operator without shapes
        return _measured(survey, points, example, timed=False, counted=counted)


def _measured(survey: Survey, points: list[Call], example: Any, *, timed: bool, counted: bool) -> list[Slice]:
    model, n = survey.model, batch_size(example)
    plans = survey.plans(points)
    named = dict(model.named_parameters())
    edges = [-1, *(point.exit for point in points), END]
    slices: list[Slice] = []
    boundaries: list[Tensor] = []
    before: dict[int, int] = {}
    with undisturbed(model, training=True):
        for index, plan in enumerate(plans):
            fed = {j: boundaries[j].detach().requires_grad_() for j in plan.reads}
            owned = [named[name] for name in parameters_between(survey.small, edges[index], edges[index + 1])]
            with MemoryMeter(model=model, inputs=list(fed.values())) as meter:
                out, saved = _learn(model, plan, index, example, fed, n)
            report = meter.report()
            inputs = sum(_bytes(h) for h in fed.values())
            peak = report.at_peak[Category.ACTIVATIONS] + report.at_peak[Category.GRADIENTS] + inputs
            started = perf_counter()
            if timed:
                _learn(model, plan, index, example, fed, n)
            seconds = perf_counter() - started if timed else 0.0
            forward, to_input, to_weights = _operations(model, plan, index, example, fed, n) if counted else (0, 0, 0)
            slices.append(
                Slice(
                    name=points[index].name if index < len(points) else "",
                    parameters=sum(p.numel() for p in owned),
                    parameter_bytes=sum(_bytes(p) for p in owned),
                    input_bytes=inputs,
                    output_bytes=sum(_bytes(t) for t in tensors(out)),
                    saved_bytes=sum(saved.values()),
                    shared_bytes=sum(saved.get(key, 0) for key in map(_key, fed.values()) if key in before),
                    transient_bytes=max(0, peak - sum(saved.values())),
                    seconds=seconds,
                    forward_flops=forward,
                    input_flops=to_input,
                    weight_flops=to_weights,
                )
            )
            before = saved
            if index < len(points):
                boundaries.append(out)
    return slices


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _learn(
    model: nn.Module, plan: PartPlan, index: int, x: Any, fed: dict[int, Tensor], n: int
) -> tuple[Any, dict[int, int]]:
    """One forward and backward of a slice; its output, and the bytes of every storage it kept."""
    parameters = {_key(p) for p in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _key(tensor) not in parameters:
            saved[_key(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.enable_grad():
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = run_part(model, plan, index, x, fed, n=n)
        roots = [t for t in tensors(out) if t.requires_grad and t.is_floating_point()]
        detached = map_tensors(lambda t: t.detach(), out)
        del out
        leaves = [p for p in model.parameters() if p.requires_grad] + list(fed.values())
        if roots:
            torch.autograd.grad(roots, leaves, [torch.ones_like(t) for t in roots], allow_unused=True)
    return detached, saved


def _operations(
    model: nn.Module, plan: PartPlan, index: int, x: Any, fed: dict[int, Tensor], n: int
) -> tuple[int, int, int]:
    """Operations of the forward, of the backward to the boundaries below, and of the rest of the backward."""
    made: list[Any] = []
    with torch.enable_grad():
        forward = counted_flops(lambda: made.append(run_part(model, plan, index, x, fed, n=n)))
    roots = [t for t in tensors(made) if t.requires_grad and t.is_floating_point()]

    def backward(leaves: list[Tensor]) -> int:
        ones = [torch.ones_like(t) for t in roots]
        return (
            counted_flops(lambda: torch.autograd.grad(roots, leaves, ones, retain_graph=True, allow_unused=True)) or 0
            if roots and leaves
            else 0
        )

    to_input = backward(list(fed.values()))
    both = backward([*fed.values(), *(p for p in model.parameters() if p.requires_grad)])
    return forward or 0, to_input, both - to_input


def steps(survey: Survey, start: int, stop: int) -> list[tuple[Call, bool]]:
    """The calls from candidate to candidate within (start, stop], each with whether it holds a kernel."""
    kernels = {name for name, parameter in survey.model.named_parameters() if parameter.ndim > 1}
    found: list[tuple[Call, bool]] = []
    position = start
    for candidate in survey.candidates():
        if start < candidate.exit <= stop:
            call = _since(survey, candidate, position)
            if call is not None and len(call.inputs) == 1:
                found.append((call, bool(kernels & set(parameters_between(survey.small, position, call.exit)))))
            position = candidate.exit
    return found


def blocks_after(survey: Survey, clock: int) -> tuple[Block, ...]:
    """The modules called after a clock with one tensor in, one out and a kernel, grouped with what follows them.

    A block is one module, or a run of modules (convolution, normalisation, activation) as an `nn.Sequential` of the
    user's own modules, to be copied from.
    """
    groups: list[list[Call]] = []
    for call, starts in steps(survey, clock, END):
        if starts:
            groups.append([call])
        elif groups and groups[-1][-1].outputs[0].shape == call.inputs[0].shape:
            groups[-1].append(call)
    return tuple(_block(survey, group) for group in groups)


def _since(survey: Survey, candidate: Call, clock: int) -> Call | None:
    """The outermost call that begins after a clock and ends where the candidate ends."""
    busy = [operation.clock for operation in survey.small.operations if operation.clock <= candidate.exit]
    ends = [
        call
        for call in survey.small.calls
        if call.enter > clock and busy[-1] < call.exit <= candidate.exit and single_output(call) is not None
    ]
    return min(ends, key=lambda call: call.enter, default=None)


def _block(survey: Survey, group: list[Call]) -> Block:
    first, last = group[0], group[-1]
    output = survey.boundary(last)
    shape = (survey.n, *first.inputs[0].shape[1:])
    below = Boundary(first.name, shape, output.dtype, _input_axis(first, output))
    module = first.module if len(group) == 1 else nn.Sequential(*(call.module for call in group))
    return Block(first.name, module, below, output)


def _input_axis(call: Call, output: Boundary) -> int:
    """The channel axis of a call's input: its own, where it is as deep as the output's."""
    same_depth = len(call.inputs[0].shape) == len(output.shape)
    return output.channel_axis if same_depth else (1 if len(call.inputs[0].shape) != 3 else -1)
