"""Peak bytes of a training step relative to end-to-end backpropagation, at 224 x 224 and batch 64.

Counted: parameters, gradients, momentum, input, heads, activations and temporaries. Steps run on tensors without
memory, so that models that do not fit can be measured; one case is run on real tensors as well and must agree.
"""

from __future__ import annotations

from functools import partial

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

import modulewise as mw
from benchmarks.common import SEED, PlainLoop, fake_peak, real_peak, report, row, trainer
from modulewise.metering import Category

SHAPE = (64, 3, 224, 224)


def build(name: str, classes: int) -> nn.Module:
    """A torchvision model with weights from the benchmark's seed."""
    torch.manual_seed(SEED)
    return getattr(torchvision.models, name)(num_classes=classes)


def blockwise(model: nn.Module) -> tuple[str, ...]:
    """Cuts of a ResNet with one residual block a part; the stem is with the first, the classifier with the last."""
    names = [f"layer{i}.{j}" for i in range(1, 5) for j in range(len(getattr(model, f"layer{i}")))]
    return tuple(names[:-1])


def checkpointed_blocks(model: nn.Module, x: Tensor) -> Tensor:
    """A ResNet's forward with every residual block checkpointed."""
    h = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    blocks = [block for i in range(1, 5) for block in getattr(model, f"layer{i}")]
    h = checkpoint_sequential(blocks, len(blocks), h, use_reentrant=False)
    return model.fc(torch.flatten(model.avgpool(h), 1))


RECOMPUTED = ("layer1.0", "layer1.1", "layer3.0")
"""Cuts of ResNet-50 in 4 parts whose recomputation costs little: the neediest blocks alone, the rest in two parts."""


def local(name: str, classes: int, parts: int | None, *, recompute: bool = False) -> mw.Trainer:
    """Local learning with linear heads; `parts=None` for one residual block a part."""
    model, example = build(name, classes), torch.zeros(SHAPE)
    if recompute:
        partition = mw.Partition(model, cuts=RECOMPUTED, example=example)
    elif parts is None:
        partition = mw.Partition(model, cuts=blockwise(model), example=example)
    else:
        partition = mw.Partition(model, parts=parts, example=example, balance=mw.balance.memory)
    head = partial(mw.heads.linear, pool=1)
    return trainer(partition, mw.methods.DGL(classes=classes, head=head), recompute=recompute)


def cases(name: str, classes: int, wanted: list[tuple[int | None, bool, float | None]]) -> list[dict]:
    """Rows for one model and number of classes."""
    end_to_end = fake_peak(PlainLoop(build(name, classes)), SHAPE).peak_bytes
    rows = [row("memory", f"{name}, {classes} classes, E2EBP", "peak", end_to_end, end_to_end, None)]
    plain = fake_peak(PlainLoop(build(name, classes), checkpointed_blocks), SHAPE).peak_bytes
    rows.append(
        row("memory", f"{name}, {classes} classes, E2EBP, blocks checkpointed", "peak", plain, end_to_end, None)
    )
    for parts, recompute, target in wanted:
        subject = local(name, classes, parts, recompute=recompute)
        found = fake_peak(subject, SHAPE)
        label = "one block a part" if parts is None else f"{parts} parts"
        rows.append(
            row(
                "memory",
                f"{name}, {classes} classes, {label}{', recompute' if recompute else ''}",
                "peak",
                found.peak_bytes,
                end_to_end,
                target,
                heads_bytes=found.at_peak[Category.HEADS],
                at_peak={category.value: size for category, size in found.at_peak.items()},
                cuts=list(subject.partition.cuts),
            )
        )
    return rows


def main() -> None:
    small = cases(
        "resnet50",
        10,
        [(4, False, 0.40), (8, False, 0.28), (16, False, 0.28), (4, True, 0.30), (None, False, None)],
    )
    large = cases("resnet152", 10, [(16, False, 0.17), (None, False, None)])
    many = cases("resnet50", 1000, [(4, False, None), (8, False, None), (16, False, None), (4, True, None)])
    many += cases("resnet152", 1000, [(16, False, None)])
    growth = [
        row("memory", f"from resnet50 to resnet152, {label}", "peak", b["value"], a["value"], target)
        for label, index, target in (("E2EBP", 0, None), ("one block a part", -1, 1.25))
        for a, b in [(small[index], large[index])]
    ]
    rows = [*small, *large, *many, *growth]
    rows.append(agreement())
    report("memory", rows)


def agreement() -> dict:
    """The same step on real tensors: the figure counted without memory must be its figure to the byte."""
    subject = local("resnet50", 10, 8)
    counted = fake_peak(subject, (8, 3, 224, 224)).peak_bytes
    x, y = torch.randn(8, 3, 224, 224), torch.zeros(8, dtype=torch.long)
    subject.step(x, y)
    real = real_peak(subject, x, y).peak_bytes
    return row("memory", "resnet50, 8 parts, batch 8: counted without memory / real", "peak", counted, real, 1.0)


if __name__ == "__main__":
    main()
