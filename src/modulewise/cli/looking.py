"""`modulewise parts` and `modulewise methods`: what can be cut, and what can be trained."""

from __future__ import annotations

from typing import Annotated

import torch
import typer

from .. import models, registry
from ..compare.summary import bytes_text, seconds_text
from ..errors import ModulewiseError
from ..partition import Partition
from ..seeding import preserved_generators, set_generators
from . import options as o
from .tables import print_table

__all__ = ["methods", "parts"]


def parts(
    model: Annotated[
        str, typer.Argument(help="cnn, lenet5, torchvision:NAME, timm:NAME, package.module:function, ...")
    ],
    input: Annotated[str, typer.Option("--input", help="C,H,W of one image")] = "3,32,32",
    classes: Annotated[int, typer.Option(help="number of classes")] = 10,
    batch: Annotated[int, typer.Option(help="samples to measure with")] = 16,
) -> None:
    """List the candidate cut points of a model, with parameters, memory and time of every slice between them."""
    shape = o.numbers("--input", input)
    if len(shape) != 3 or min(shape) < 1 or batch < 1:
        raise ModulewiseError(f"--input {input} --batch {batch} were given, expected C,H,W and a batch, all >= 1")
    with preserved_generators():
        set_generators(0)
        built = models.build(model, shape=(shape[0], shape[1], shape[2]), classes=classes)
        example = torch.randn(batch, *shape)
    whole = Partition(built, cuts=[], example=example)
    whole.measure()  # a first pass allocates and tunes; the second is timed
    slices = whole.measure()
    rows = [
        (
            str(index),
            piece.name or "(the model's output)",
            f"{piece.parameters:,}",
            bytes_text(piece.parameter_bytes),
            bytes_text(piece.saved_bytes),
            bytes_text(piece.output_bytes),
            seconds_text(piece.seconds),
        )
        for index, piece in enumerate(slices)
    ]
    headings = ("slice", "ends at", "parameters", "their bytes", "kept for backward", "output", "time")
    print_table(headings, rows, right=(0, 2, 3, 4, 5, 6))
    typer.echo(
        f"\n{len(slices) - 1} cut points, so up to {len(slices)} parts; forward and backward of every slice at batch "
        f"{batch} on the CPU"
    )


def methods(
    as_markdown: Annotated[bool, typer.Option("--markdown", help="print the table for a README")] = False,
) -> None:
    """List every method: family, class by schedule, locality, year, paper."""
    if as_markdown:
        print(registry.markdown())
        return
    rows = [
        (entry.name, entry.family, entry.modularity, entry.locality, entry.year, entry.paper)
        for entry in registry.table()
    ]
    print_table(("method", "family", "class", "locality", "year", "paper"), rows)
