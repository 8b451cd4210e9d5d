"""Predicted against measured peak of a training step: plans are made without memory, steps are run on real tensors.

The measured peak is the meter's, over parameters, gradients, optimiser state, heads, activations and batch; where
Linux says it, the growth of the resident set, which the plan does not see, stands beside it without a target.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

import modulewise as mw
from benchmarks.common import SEED, real_peak, report, row, sgd
from modulewise import planning

TARGET = 0.10
STATUS = Path("/proc/self/status")


def adam(parameters: Any) -> torch.optim.Optimizer:
    """Two moments a parameter."""
    return torch.optim.AdamW(parameters, lr=1e-3)


@dataclass(frozen=True)
class Case:
    """A model, a method and a number of parts."""

    name: str
    model: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    method: mw.Method
    parts: int
    settings: dict[str, Any] = field(default_factory=dict)
    optimizer: Callable[[Any], torch.optim.Optimizer] = sgd


def _torchvision(name: str) -> Callable[[], nn.Module]:
    return partial(getattr(torchvision.models, name), num_classes=10)


def _methods() -> list[tuple[mw.Method, int]]:
    m = mw.methods
    return [
        (m.Backprop(), 1),
        (m.Checkpointed(), 4),
        (m.DGL(classes=10), 2),
        (m.DGL(classes=10), 4),
        (m.DGL(classes=10), 8),
        (m.PredSim(classes=10), 4),
        (m.InfoPro(classes=10), 4),
        (m.AugLocal(classes=10), 4),
        (m.KernelProxy(), 4),
        (m.SyntheticGradients(classes=10), 4),
        (m.DirectFeedbackAlignment(outputs=10), 4),
        (m.DDG(), 4),
    ]


def cases() -> list[Case]:
    """What is compared: a residual network with every kind of method, then other networks, optimisers and settings."""
    resnet, vit = _torchvision("resnet18"), partial(torchvision.models.VisionTransformer, 64, 8, 6, 4, 128, 512)
    found = [
        Case("resnet18, 64 x 64, batch 32", resnet, (3, 64, 64), 32, method, parts) for method, parts in _methods()
    ]
    dgl, linear = mw.methods.DGL(classes=10), mw.methods.DGL(classes=10, head=mw.heads.linear)
    found += [
        Case("resnet18, 64 x 64, batch 32, AdamW", resnet, (3, 64, 64), 32, dgl, 4, optimizer=adam),
        Case("resnet18, 64 x 64, batch 32, recompute", resnet, (3, 64, 64), 32, dgl, 4, {"recompute": True}),
        Case("resnet18, 64 x 64, batch 32, bfloat16", resnet, (3, 64, 64), 32, dgl, 4, {"precision": torch.bfloat16}),
        Case("resnet50, 96 x 96, batch 16", _torchvision("resnet50"), (3, 96, 96), 16, dgl, 4),
        Case("mobilenet_v3_small, 96 x 96, batch 32", _torchvision("mobilenet_v3_small"), (3, 96, 96), 32, dgl, 4),
        Case(
            "vit, width 128, 64 x 64, batch 32, AdamW",
            partial(vit, num_classes=10),
            (3, 64, 64),
            32,
            linear,
            3,
            optimizer=adam,
        ),
        Case("vgg11, 64 x 64, batch 16", _torchvision("vgg11_bn"), (3, 64, 64), 16, linear, 3),
    ]
    return found


def predicted(case: Case) -> planning.Plan:
    """The plan, on a model that has no memory."""
    with torch.device("meta"):
        model = case.model()
    task = planning.task_of(
        model,
        example=torch.empty(2, *case.shape, device="meta"),
        batch=case.batch,
        method=case.method,
        loss=mw.losses.classification,
        optimizer=case.optimizer,
        **case.settings,
    )
    return planning.predict(task, parts=case.parts)


def measured(case: Case, cuts: tuple[str, ...]) -> tuple[int, int | None]:
    """The meter's peak of the second step, and by how much the resident set has grown at its highest."""
    gc.collect()
    before = _resident("VmRSS", trimmed=True)
    torch.manual_seed(SEED)
    model = case.model()
    x, y = torch.randn(case.batch, *case.shape), torch.randint(0, 10, (case.batch,))
    partition = mw.Partition(model, cuts=cuts, example=x)
    trainer = mw.Trainer(
        partition, case.method, loss=mw.losses.classification, optimizer=case.optimizer, seed=SEED, **case.settings
    )
    for _ in range(1 + max((objective.delay for objective in trainer.objectives), default=0)):
        trainer.step(x, y)
    _resident("VmRSS", trimmed=True)
    _forget_highest()
    trainer.step(x, y)
    highest = _resident("VmHWM")
    peak = real_peak(trainer, x, y).peak_bytes
    return peak, None if before is None or highest is None else highest - before


def _resident(word: str, *, trimmed: bool = False) -> int | None:
    """A figure of /proc/self/status in bytes; None on systems without it."""
    if not STATUS.exists():
        return None
    if trimmed:
        library = ctypes.CDLL(ctypes.util.find_library("c"))
        if hasattr(library, "malloc_trim"):
            library.malloc_trim(0)
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    return int(lines[word].split()[0]) * 1024


def _forget_highest() -> None:
    """Let the highest resident set be looked for anew; where that is not allowed it is that of the whole run."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def main() -> None:
    rows = []
    for case in cases():
        plan = predicted(case)
        peak, resident = measured(case, plan.cuts)
        label = f"{case.name}, {type(case.method).__name__}, {case.parts} parts: predicted / measured"
        found = row("plan", label, "peak", plan.peak, peak, None, resident_bytes=resident, cuts=list(plan.cuts))
        rows.append(found | {"target": 1 + TARGET, "met": abs(found["ratio"] - 1) <= TARGET})
    report("plan", rows)


if __name__ == "__main__":
    main()
