"""`modulewise plan`: which parts fit a memory, what each takes, and what several devices give; nothing is allocated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
import typer
from torch import nn

from .. import losses, models, planning, registry
from ..compare import Descent
from ..engine.updating import OptimizerFactory
from ..errors import ModulewiseError
from ..seeding import preserved_generators
from . import options as o
from .tables import print_table

__all__ = ["plan"]


def plan(
    model: Annotated[str, typer.Argument(help="cnn, torchvision:NAME, timm:NAME, package.module:function, ...")],
    batch: Annotated[int, typer.Option(help="samples a step")],
    memory: Annotated[str | None, typer.Option(help="of one device, such as 16GiB")] = None,
    input: Annotated[str, typer.Option("--input", help="C,H,W of one image")] = "3,224,224",
    classes: Annotated[int, typer.Option(help="number of classes")] = 1000,
    method: Annotated[str, typer.Option(help="METHOD[:key=value,...]")] = "dgl",
    optimizer: o.Optimizer = Descent.SGD,
    momentum: o.Momentum = 0.9,
    devices: Annotated[str | None, typer.Option(help="several devices, such as 4x80GiB")] = None,
    depth: Annotated[int | None, typer.Option(help="devices that hold one copy of the model; all if left out")] = None,
    micro_batches: Annotated[int, typer.Option(help="of backpropagation in pipelines")] = 8,
    precision: o.PrecisionOption = o.Precision.FLOAT32,
    recompute: o.Recompute = False,
    one_part: Annotated[
        bool, typer.Option("--one-part", help="only the part that learns is on the device, the others elsewhere")
    ] = False,
) -> None:
    """Find the fewest parts that fit, what each takes, and what devices give, beside backpropagation."""
    shape = o.numbers("--input", input)
    if (memory is None) == (devices is None):
        raise ModulewiseError("plan needs either --memory (one device) or --devices (several), exactly one")
    if len(shape) != 3 or min(shape) < 1:
        raise ModulewiseError(f"--input {input} was given, expected C,H,W, all >= 1")
    task = planning.task_of(
        _built(model, (shape[0], shape[1], shape[2]), classes),
        example=torch.empty(2, *shape, device="meta"),
        batch=batch,
        method=registry.build(registry.parse(method), classes=classes),
        loss=losses.classification,
        optimizer=_factory(optimizer, momentum),
        precision=precision.dtype,
        recompute=recompute,
        residence=planning.Residence.PART if one_part else planning.Residence.ALL,
    )
    if devices is None:
        assert memory is not None
        _show(planning.find(task, planning.read_size(memory)))
        return
    placement = planning.place(task, planning.Devices.read(devices), depth=depth, micro_batches=micro_batches)
    _show(placement.plan)
    _show_devices(placement, micro_batches)


def _built(name: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The model without memory; really, where its constructor looks at values."""
    try:
        with torch.device("meta"):
            return models.build(name, shape=shape, classes=classes)
    except (RuntimeError, NotImplementedError, ModulewiseError):
        with preserved_generators():
            return models.build(name, shape=shape, classes=classes)


def _factory(descent: Descent, momentum: float) -> OptimizerFactory:
    """As `train` makes it; rates and decay change no sizes."""
    kinds: dict[Descent, Callable[..., torch.optim.Optimizer]] = {
        Descent.SGD: partial(torch.optim.SGD, momentum=momentum, fused=True),
        Descent.ADAM: partial(torch.optim.Adam, fused=True),
        Descent.ADAMW: partial(torch.optim.AdamW, fused=True),
        Descent.RMSPROP: torch.optim.RMSprop,
    }
    return partial(kinds[descent], lr=0.1)


def _show(found: planning.Plan) -> None:
    print_table(*planning.part_rows(found), right=range(2, 12))
    size = planning.size_text
    within = "" if found.memory is None else f" of {size(found.memory)}"
    typer.echo(
        f"\n{found.method}, batch {found.batch}, {len(found.parts)} parts, {found.residence.value} on the device: peak "
        f"{size(found.peak)}{within}, operations of a step / E2EBP {found.time:.3f}\n--cuts {','.join(found.cuts)}\n"
    )
    first = found.controls[0]
    rows = [(c.name, size(c.peak), f"{c.flops / first.flops:.3f}") for c in found.controls]
    print_table(("beside it, on one device", "peak", "operations / E2EBP"), rows, right=(1, 2))


def _show_devices(placement: planning.Placement, micro_batches: int) -> None:
    size = planning.size_text
    typer.echo(
        f"\n{placement.devices}: {placement.replicas} copies on {placement.depth} devices each, "
        f"{micro_batches} micro-batches in pipelines; parts by device: "
        f"{'; '.join(','.join(map(str, group)) for group in placement.groups)}\n"
    )
    rows = [
        (way.name, f"{way.relative:.2f}", f"{100 * way.share:.0f} %", size(way.peak), "yes" if way.fits else "no")
        for way in placement.ways
    ]
    print_table(("way", "throughput / E2EBP on one", "useful", "peak", "fits"), rows, right=(1, 2, 3))
    if placement.plan.waits:
        typer.echo(f"\nparts of {placement.plan.method} wait for later ones: they cannot be pipelined without a lock")
