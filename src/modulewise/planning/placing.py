"""Parts on devices: what each holds, and the throughput of local learning beside backpropagation in pipelines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from ..balance import Slice, memory
from ..errors import PlanError
from ..methods import Backprop
from .pipelines import Stage, bubble_free, decoupled, gpipe, one_forward_one_backward, zero_bubble_h1
from .plan import Plan
from .searching import Costs, Found, costs_of, foretell, named
from .sizes import read_size, size_text
from .task import Residence, Task

__all__ = ["Devices", "Placement", "Throughput", "place", "stages_of"]

PARTS_A_DEVICE = 8
"""Most parts a device is given before a placement is given up."""


@dataclass(frozen=True)
class Devices:
    """Equal devices.

    Args:
        count: how many, >= 1.
        memory: bytes of each.

    >>> Devices.read("4x80GiB")
    Devices(count=4, memory=85899345920)
    """

    count: int
    memory: int

    @classmethod
    def read(cls, text: str) -> Devices:
        """Devices of a text such as 4x80GiB.

        Raises:
            PlanError: it is none.
        """
        match = re.fullmatch(r"\s*(\d+)\s*[x*]\s*(.+)", text)
        if match is None or int(match[1]) < 1:
            raise PlanError(f"devices {text!r} are malformed, expected a number and a size, such as 4x80GiB")
        return cls(int(match[1]), read_size(match[2]))

    def __str__(self) -> str:
        return f"{self.count} x {size_text(self.memory)}"


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """One way to train on the devices.

    Args:
        name: the way.
        relative: samples a second relative to end-to-end backpropagation on one such device, were it to fit there.
        share: of the devices' time that goes into the operations of end-to-end backpropagation.
        peak: most bytes on the neediest device.
        fits: whether that is within a device's memory.
    """

    name: str
    relative: float
    share: float
    peak: int
    fits: bool


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Parts on devices.

    Args:
        devices: all of them.
        depth: devices that hold one copy of the model.
        replicas: such copies, each with its share of the batch.
        plan: of one copy's batch, every part alone on its device.
        groups: the parts of each device of a copy.
        ways: local learning first, then backpropagation on the same cuts, then data parallelism.
    """

    devices: Devices
    depth: int
    replicas: int
    plan: Plan
    groups: tuple[tuple[int, ...], ...]
    ways: tuple[Throughput, ...]


def place(task: Task, devices: Devices, *, depth: int | None = None, micro_batches: int = 8) -> Placement:
    """Cut the model for devices, parts of even work among those that fit, and predict what each way of training gives.

    Relative throughput is in operations: equal devices at equal efficiency, transfers hidden behind work.

    Args:
        task: what is trained; its batch is that of all devices together.
        devices: equal ones.
        depth: devices that hold one copy of the model; all of them where left out, or the most that divide them and
            that the model has cut points for.
        micro_batches: slices of a copy's batch for backpropagation in pipelines, >= 1.

    Raises:
        PlanError: the parts do not fit, or the devices or the batch cannot be shared out.
    """
    whole = task.partition([])
    slices = len(whole.points()) + 1
    depth = depth or max(d for d in range(1, slices + 1) if devices.count % d == 0)
    if devices.count % depth or depth > slices:
        raise PlanError(f"depth={depth} was given for {devices.count} devices and {slices} slices, expected a divisor")
    replicas = devices.count // depth
    if task.batch % replicas:
        raise PlanError(f"batch {task.batch} cannot be shared by {replicas} copies of the model; give a multiple of it")
    batch = task.batch
    task = replace(task.at(batch // replicas), residence=Residence.PART)
    whole = task.partition([])
    costs = costs_of(task, whole)
    found, groups = _placed(task, costs, devices, depth)
    plan = foretell(task, whole, costs, found, devices.memory)
    ways = [
        *_local(task, found, plan, groups, devices, replicas),
        *_pipelines(plan, found, groups, devices, replicas, micro_batches),
        _data_parallel(task, devices, plan, batch),
    ]
    return Placement(devices=devices, depth=depth, replicas=replicas, plan=plan, groups=tuple(groups), ways=tuple(ways))


def stages_of(plan: Plan, groups: Sequence[Sequence[int]]) -> list[Stage]:
    """The work of every device."""
    return [
        Stage(
            forward=sum(plan.parts[part].forward_flops for part in group),
            to_input=sum(plan.parts[part].input_flops for part in group),
            to_weights=sum(plan.parts[part].weight_flops for part in group),
            objective=sum(plan.parts[part].flops - plan.parts[part].plain_flops for part in group),
        )
        for group in groups
    ]


def _placed(task: Task, costs: Costs, devices: Devices, depth: int) -> tuple[Found, list[tuple[int, ...]]]:
    """The fewest parts a device with which all devices hold theirs; of even work where one part each fits."""
    most = len(costs.slices)
    need = sum(costs.kept) // depth  # of weights and optimiser state alone, were they shared out evenly
    for each in range(1, PARTS_A_DEVICE + 1 if need <= devices.memory else 1):
        parts = min(depth * each, most)
        groups = [tuple(range(parts * d // depth, parts * (d + 1) // depth)) for d in range(depth)]
        even = costs.even(parts, devices.memory) if each == 1 else None
        for ends in (even, costs.ends(parts)):
            if ends is None:
                continue
            found = named(task, costs, ends)
            rows = found.plan(task, (), None).parts
            need = max(
                sum(rows[k].kept_bytes for k in group) + max(rows[k].alone - rows[k].kept_bytes for k in group)
                for group in groups
            )
            if need <= devices.memory:
                return found, groups
        if parts == most:
            break
    raise PlanError(
        f"{type(task.method).__name__} at batch {task.batch} on {devices}: the neediest device needs at least "
        f"{size_text(need)} with {depth} devices a copy; give more or larger devices, a smaller batch, or recompute"
    )


def _way(name: str, time: float, peak: int, plan: Plan, devices: Devices, copies: int, used: int) -> Throughput:
    relative = copies * plan.controls[0].flops / time
    return Throughput(name=name, relative=relative, share=relative / used, peak=peak, fits=peak <= devices.memory)


def _local(
    task: Task, found: Found, plan: Plan, groups: Sequence[Sequence[int]], devices: Devices, replicas: int
) -> list[Throughput]:
    everything = found.rehearsal.peak
    one = _way("simultaneous, one device", plan.flops, everything, plan, devices, 1, 1)
    if plan.waits:
        return [one]  # parts that wait for later ones are locked to them: no schedule of independent parts
    stages = stages_of(plan, groups)
    peaks = []
    for group in groups:
        rows = [plan.parts[k] for k in group]
        kept = sum(row.kept_bytes for row in rows)
        arriving = plan.parts[group[0] - 1].output_bytes if group[0] else task.fed_bytes
        peaks.append(kept + max(row.alone - row.kept_bytes for row in rows) + arriving)
    ways = [partial(_way, name, decoupled(stages), max(peaks)) for name in ("pipelined", "asynchronous")]
    return [one, *(way(plan, devices, replicas, devices.count) for way in ways)]


def _pipelines(
    plan: Plan, found: Found, groups: Sequence[Sequence[int]], devices: Devices, replicas: int, micro_batches: int
) -> list[Throughput]:
    """Backpropagation on the same cuts; every device keeps the activations of the micro-batches under way."""
    stages, depth = stages_of(plan, groups), len(groups)
    runs = [[piece for part in group for piece in found.groups[part]] for group in groups]
    times = {
        "GPipe": (gpipe(stages, micro_batches), [micro_batches] * depth),
        "1F1B": (one_forward_one_backward(stages, micro_batches), [depth - d for d in range(depth)]),
        "zero-bubble (ZB-H1)": (zero_bubble_h1(stages, micro_batches), [depth - d for d in range(depth)]),
        "zero-bubble, were it zero": (bubble_free(stages), [2 * (depth - d) - 1 for d in range(depth)]),
    }
    ways = []
    for name, (time, kept) in times.items():
        peak = max(
            _stage_bytes(plan, group, run, min(1.0, live / micro_batches))
            for group, run, live in zip(groups, runs, kept, strict=True)
        )
        ways.append(_way(name, time, peak, plan, devices, replicas, devices.count))
    return ways


def _stage_bytes(plan: Plan, group: Sequence[int], run: Sequence[Slice], share: float) -> int:
    """Weights, gradients and optimiser state of a stage, and what it keeps of a share of the batch."""
    rows = [plan.parts[part] for part in group]
    held = sum(row.parameter_bytes + row.gradient_bytes + row.optimizer_bytes for row in rows)
    gradients = sum(piece.parameter_bytes for piece in run)
    return held + round(share * max(0.0, memory(run) - gradients))


def _data_parallel(task: Task, devices: Devices, plan: Plan, batch: int) -> Throughput:
    """Every device a copy of the whole model and its share of the batch."""
    smaller = task.at(max(1, batch // devices.count))
    step = smaller.rehearse(smaller.partition([]), Backprop(), recompute=False, counted=False)
    time, count = plan.controls[0].flops, devices.count
    return _way("E2EBP, data parallel", time, step.peak, plan, devices, count, count)
