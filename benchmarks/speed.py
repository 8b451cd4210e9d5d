"""Step time relative to end-to-end backpropagation, and the library's overhead over a hand-written loop.

Everything is timed in turn in one process (A B C A B C ...), and ratios are medians of pairs, so that they hold on a
noisy machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint_sequential

import modulewise as mw
from benchmarks.common import SEED, PlainLoop, fake_peak, report, row, sgd, trainer
from benchmarks.memory import build, checkpointed_blocks, local
from modulewise.metering import Timing, interleaved_seconds, ratio

REPEATS = 15
LINEAR = partial(mw.heads.linear, pool=1)


def resnet18() -> nn.Module:
    """ResNet-18 with the CIFAR stem: a 3x3 convolution, no pooling."""
    torch.manual_seed(SEED)
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return model


def resnet32() -> nn.Module:
    """ResNet-32 for CIFAR: a stem, 15 blocks, a classifier."""
    torch.manual_seed(SEED)
    return mw.models.build("resnet32", shape=(3, 32, 32), classes=10)


def checkpointed_resnet18(model: nn.Module, x: Tensor) -> Tensor:
    """The forward in four checkpointed segments."""
    return checkpoint_sequential(nn.Sequential(*parts_of_resnet18(model)), 4, x, use_reentrant=False)


class HandWritten:
    """Local learning as one would write it for one model: a chain of parts, a linear head each, one optimiser each."""

    def __init__(self, parts: Sequence[nn.Module], x: Tensor) -> None:
        self.parts, heads = parts, []
        for part in parts[:-1]:
            x = part(x).detach()
            heads.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(x.shape[1], 10)))
        self.heads = [*heads, nn.Identity()]
        self.optimizers = [
            (sgd(part.parameters()), sgd(head.parameters()) if head is not self.heads[-1] else None)
            for part, head in zip(self.parts, self.heads, strict=True)
        ]

    def step(self, x: Tensor, y: Tensor) -> None:
        """One training step."""
        h = x
        for part, head, optimizers in zip(self.parts, self.heads, self.optimizers, strict=True):
            h = part(h.detach())
            loss = functional.cross_entropy(head(h), y)
            loss.isfinite().item()
            loss.backward()
            for optimizer in optimizers:
                if optimizer is not None:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)


def parts_of_resnet18(model: nn.Module) -> list[nn.Module]:
    """The four parts as a chain."""
    first = nn.Sequential(model.conv1, model.bn1, model.relu, model.layer1)
    return [first, model.layer2, model.layer3, nn.Sequential(model.layer4, model.avgpool, nn.Flatten(), model.fc)]


def parts_of_resnet32(model: nn.Module) -> list[nn.Module]:
    """Stem, fourteen blocks, and the last block with the classifier, as a chain of 16."""
    blocks = [*model.layer1, *model.layer2, *model.layer3]
    return [model.stem, *blocks[:-1], nn.Sequential(blocks[-1], model.mean, model.flatten, model.head)]


def checkpointed_resnet32(model: nn.Module, x: Tensor) -> Tensor:
    """The forward in four checkpointed segments."""
    chain = nn.Sequential(*parts_of_resnet32(model))
    return checkpoint_sequential(chain, 4, x, use_reentrant=False)


def timed(steps: dict[str, Callable[[], object]], repeats: int = REPEATS) -> dict[str, Timing]:
    """Seconds of every candidate, in turn."""
    return interleaved_seconds(steps, warmup=2, repeats=repeats)


def rows_of(label: str, base: str, timings: dict[str, Timing], targets: dict[str, float | None]) -> list[dict]:
    """A row for every candidate beside the base."""
    return [
        row(
            "speed",
            f"{label}, {name} / {base}",
            "seconds",
            ratio(timings[name], timings[base]) * timings[base].median,
            timings[base].median,
            target,
            repeats=timings[name].repeats,
        )
        for name, target in targets.items()
    ]


def small_images() -> list[dict]:
    """ResNet-18, batch 64, 4 parts, linear heads, against E2EBP, checkpointing and the hand-written loop."""
    x, y = torch.randn(64, 3, 32, 32), torch.arange(64) % 10
    plain = PlainLoop(resnet18())
    kept = PlainLoop(resnet18(), checkpointed_resnet18)
    partition = mw.Partition(resnet18(), cuts=["layer1", "layer2", "layer3"], example=x)
    library = trainer(partition, mw.methods.DGL(classes=10, head=LINEAR))
    later = mw.Partition(resnet18(), cuts=["layer1.0", "layer1", "layer2.0"], example=x)
    timed_cuts = mw.Partition(resnet18(), parts=4, example=x, balance=mw.balance.time)
    subjects = {
        "E2EBP": plain,
        "checkpointed": kept,
        "4 parts": library,
        "4 parts, cuts inside stages": trainer(later, mw.methods.DGL(classes=10, head=LINEAR)),
        "4 parts, balanced by time": trainer(timed_cuts, mw.methods.DGL(classes=10, head=LINEAR)),
        "hand-written": HandWritten(parts_of_resnet18(resnet18()), x),
    }
    found = timed({name: partial(subject.step, x, y) for name, subject in subjects.items()})
    label = "resnet18 CIFAR batch 64"
    return [
        *rows_of(
            label,
            "E2EBP",
            found,
            {
                "4 parts": 0.85,
                "4 parts, cuts inside stages": 0.85,
                "4 parts, balanced by time": 0.85,
                "checkpointed": None,
                "hand-written": None,
            },
        ),
        *rows_of(label, "hand-written", found, {"4 parts": 1.03}),
    ]


def many_parts() -> list[dict]:
    """ResNet-32, batch 128, 16 parts: the hand-written loop, and AugLocal heads of depth 2 against E2EBP."""
    shape = (128, 3, 32, 32)
    x, y = torch.randn(shape), torch.arange(128) % 10
    names = list(mw.Partition(resnet32(), parts=1, example=x[:2]).points())[:-1]
    assert len(names) == 15, "16 parts"

    def sixteen(method: mw.Method) -> mw.Trainer:
        return trainer(mw.Partition(resnet32(), cuts=names, example=x[:2]), method)

    subjects = {
        "E2EBP": PlainLoop(resnet32()),
        "checkpointed": PlainLoop(resnet32(), checkpointed_resnet32),
        "hand-written": HandWritten(parts_of_resnet32(resnet32()), x),
        "16 parts, linear heads": sixteen(mw.methods.DGL(classes=10, head=LINEAR)),
        "16 parts, AugLocal depth 2": sixteen(mw.methods.AugLocal(classes=10, depth=2)),
        "16 parts, AugLocal depth 2, shrink 4": sixteen(mw.methods.AugLocal(classes=10, depth=2, shrink=4)),
        "16 parts, AugLocal depth 1, shrink 4": sixteen(mw.methods.AugLocal(classes=10, depth=1, shrink=4)),
    }
    found = timed({name: partial(subject.step, x, y) for name, subject in subjects.items()}, repeats=9)
    label, auglocal = "resnet32 CIFAR batch 128", [name for name in subjects if "AugLocal depth 2" in name]
    others = ["16 parts, AugLocal depth 1, shrink 4", "16 parts, linear heads", "checkpointed"]
    rows = rows_of(label, "E2EBP", found, dict.fromkeys(auglocal, 1.0) | dict.fromkeys(others))
    rows += rows_of(label, "hand-written", found, {"16 parts, linear heads": 1.06})
    whole = fake_peak(subjects["E2EBP"], shape).peak_bytes
    made_by_whole = whole - persistent(subjects["E2EBP"], x)
    for name in [*auglocal, *others]:
        peak, target = fake_peak(subjects[name], shape).peak_bytes, 0.18 if name in auglocal else None
        rows.append(row("speed", f"{label}, {name} / E2EBP", "peak", peak, whole, target))
        # The published figure that the target comes from leaves out parameters, optimiser state and input.
        made = peak - persistent(subjects[name], x)
        rows.append(row("speed", f"{label}, {name} / E2EBP, made in the step", "peak", made, made_by_whole, target))
    return rows


def persistent(subject: mw.Trainer | PlainLoop, x: Tensor) -> int:
    """Bytes that are there before the step: parameters, buffers and momentum of model and heads, input and labels."""
    library = isinstance(subject, mw.Trainer)
    modules = [subject.partition.model, *subject.objectives] if library else [subject.model]
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    momentum = [t for t in tensors if t.requires_grad]
    return sum(t.nbytes for t in (*tensors, *momentum, x)) + 8 * len(x)


def large_images() -> list[dict]:
    """ResNet-50 at 224 x 224, batch 8, 4 parts: recomputation inside parts against E2EBP, plain and checkpointed."""
    x, y = torch.randn(8, 3, 224, 224), torch.arange(8) % 10
    plain, kept = PlainLoop(build("resnet50", 10)), PlainLoop(build("resnet50", 10), checkpointed_blocks)
    subjects = {
        "E2EBP": plain,
        "blocks checkpointed": kept,
        "4 parts": local("resnet50", 10, 4),
        "4 parts, recompute": local("resnet50", 10, 4, recompute=True),
    }
    found = timed({name: partial(subject.step, x, y) for name, subject in subjects.items()}, repeats=5)
    targets = {"4 parts, recompute": 1.3, "4 parts": None, "blocks checkpointed": None}
    return rows_of("resnet50 224 batch 8", "E2EBP", found, targets)


def main() -> None:
    """All speed rows."""
    torch.set_num_threads(2)
    report("speed", [*small_images(), *many_parts(), *large_images()])


if __name__ == "__main__":
    main()
