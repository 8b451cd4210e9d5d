"""What every method's objective costs: step time and peak memory of ResNet-32 in four parts, relative to E2EBP.

All candidates are timed in turn in one process, ratios are medians of pairs, and peaks are of a real step. Methods
that take several views of a sample are shown as many times the data that E2EBP sees, as the row's name says.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

import modulewise as mw
from benchmarks.common import SEED, PlainLoop, real_peak, report, row, trainer
from modulewise.metering import interleaved_seconds, ratio

BATCH, CLASSES, PARTS, REPEATS = 32, 10, 4, 5
LABEL = f"resnet32 CIFAR batch {BATCH}, {PARTS} parts"
M = mw.methods


def resnet32() -> nn.Module:
    """ResNet-32 for CIFAR."""
    torch.manual_seed(SEED)
    return mw.models.build("resnet32", shape=(3, 32, 32), classes=CLASSES)


def candidates() -> dict[str, mw.Method]:
    """Every proxy objective that takes images, with its published heads."""
    return {
        "DGL, linear head": M.DGL(CLASSES, head=mw.heads.linear),
        "DGL, MLP head": M.DGL(CLASSES, head=mw.heads.mlp),
        "DGL, MLP-SR head": M.DGL(CLASSES),
        "DGL, convolutional head": M.DGL(CLASSES, head=mw.heads.conv),
        "Greedy, k = 1": M.Greedy(CLASSES, depth=1),
        "Greedy, k = 3": M.Greedy(CLASSES, depth=3),
        "DeepCascade": M.DeepCascade(CLASSES, pool=4),
        "LocalErrors": M.LocalErrors(CLASSES),
        "PredSim, pred": M.PredSim(CLASSES, beta=0.0),
        "PredSim, sim": M.PredSim(CLASSES, beta=1.0),
        "PredSim": M.PredSim(CLASSES),
        "KernelProxy": M.KernelProxy(),
        "KernelProxy, 4x4": M.KernelProxy(pool=4),
        "HSICBottleneck": M.HSICBottleneck(CLASSES),
        "PHSIC": M.PHSIC(CLASSES),
        "GreedyInfoMax": M.GreedyInfoMax(),
        "LoCo, two views": M.LoCo(),
        "InfoPro": M.InfoPro(CLASSES),
        "AugLocal": M.AugLocal(CLASSES),
        "MAN": M.MAN(CLASSES),
        "SGR": M.SGR(CLASSES),
        "TRGL": M.TRGL(CLASSES),
        "LocalUpdates, overlapping": M.LocalUpdates(CLASSES),
        "BoostResNet": M.BoostResNet(CLASSES),
        "ForwardForward, three views": M.ForwardForward(CLASSES),
    }


def made(method: mw.Method) -> mw.Trainer:
    """A trainer of the network in four parts, cut where memory is balanced."""
    partition = mw.Partition(resnet32(), parts=PARTS, example=torch.zeros(BATCH, 3, 32, 32))
    return trainer(partition, method)


def main() -> None:
    """Time all candidates in turn, count their peaks, write the rows."""
    x, y = torch.rand(BATCH, 3, 32, 32), torch.arange(BATCH) % CLASSES
    plain = PlainLoop(resnet32())
    subjects = {name: made(method) for name, method in candidates().items()}
    steps = {"E2EBP": partial(plain.step, x, y)}
    for name, subject in subjects.items():
        views = subject.method.views
        stacked = torch.cat([x, *(x.flip(3) for _ in range(views - 1))])
        steps[name] = partial(subject.step, stacked, y, views=views)
    found = interleaved_seconds(steps, warmup=1, repeats=REPEATS)
    whole = real_peak(plain, x, y).peak_bytes
    rows = []
    for name, subject in subjects.items():
        seconds = ratio(found[name], found["E2EBP"]) * found["E2EBP"].median
        base = found["E2EBP"].median
        rows.append(row("heads", f"{LABEL}, {name} / E2EBP", "seconds", seconds, base, None, repeats=REPEATS))
        peak = real_peak(subject, *steps[name].args, **steps[name].keywords).peak_bytes
        rows.append(row("heads", f"{LABEL}, {name} / E2EBP", "peak", peak, whole, None))
    report("heads", rows)


if __name__ == "__main__":
    main()
