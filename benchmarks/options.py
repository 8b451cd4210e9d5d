"""What one process can gain: compiled parts, memory layout, fused optimisers, bfloat16; and InfoPro beside E2EBP.

Every option is timed in turn with the same local step without it, and end-to-end backpropagation with the option with
end-to-end backpropagation without it, in one process; ratios are medians of pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import modulewise as mw
from benchmarks.common import SEED, PlainLoop, report, row, trainer
from modulewise.metering import Timing, interleaved_seconds, ratio
from modulewise.recipes import load
from modulewise.registry import build, parse

NETWORK, CUTS = "resnet32", ["layer1", "layer2"]
BATCH, CLASSES = 64, 10
INFOPRO = {4: 1.16, 16: 2.14}
"""Parts -> step time of the authors' code relative to its own E2EBP, ResNet-110, batch 128, two CPU threads."""


def fused(parameters: Any) -> torch.optim.Optimizer:
    """The benchmarks' SGD, all parameters in one call of the optimiser's kernel."""
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, fused=True)


def network(name: str) -> nn.Module:
    """A named network on CIFAR's shape, always with the same initial weights."""
    torch.manual_seed(SEED)
    return mw.models.build(name, shape=(3, 32, 32), classes=CLASSES)


def local(x: Tensor, **settings: Any) -> mw.Trainer:
    """A residual network in three parts with linear heads; the images say the memory layout."""
    model = network(NETWORK)
    if x.is_contiguous(memory_format=torch.channels_last):
        model = model.to(memory_format=torch.channels_last)
    partition = mw.Partition(model, cuts=CUTS, example=x)
    optimizer = settings.pop("optimizer", None)
    method = mw.methods.DGL(CLASSES, head=mw.heads.linear)
    if optimizer is None:
        return trainer(partition, method, **settings)
    loss = functional.cross_entropy
    return mw.Trainer(partition, method, loss=loss, optimizer=optimizer, seed=SEED, **settings)


def lowered(model: nn.Module, x: Tensor) -> Tensor:
    """The forward under bfloat16 autocast."""
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        output: Tensor = model(x)
    return output.float()


def whole(x: Tensor, *, option: str = "") -> PlainLoop:
    """End-to-end backpropagation with the same option."""
    model = network(NETWORK)
    if option == "channels_last":
        model = model.to(memory_format=torch.channels_last)
    compiled = torch.compile(model) if option == "compile" else model
    forwards: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
        "bfloat16": lowered,
        "compile": lambda _, x: compiled(x),
    }
    loop = PlainLoop(model, forwards.get(option))
    if option == "fused SGD":
        loop.optimizer = fused(model.parameters())
    return loop


def options() -> list[dict[str, Any]]:
    """One row an option for the local step, one for E2EBP, and the local step beside E2EBP with the option in both."""
    x, y = torch.randn(BATCH, 3, 32, 32), torch.arange(BATCH) % CLASSES
    images = {"channels_last": x.contiguous(memory_format=torch.channels_last)}
    settings: dict[str, dict[str, Any]] = {
        "": {},
        "compile": {"compile": True},
        "channels_last": {},
        "fused SGD": {"optimizer": fused},
        "bfloat16": {"precision": torch.bfloat16},
    }
    steps: dict[str, Callable[[], object]] = {}
    for option, given in settings.items():
        taken = images.get(option, x)
        steps[f"local {option}"] = partial(local(taken, **given).step, taken, y)
        steps[f"E2EBP {option}"] = partial(whole(taken, option=option).step, taken, y)
    found = interleaved_seconds(steps, warmup=2, repeats=9)
    rows = [beside(found, "local ", "E2EBP ", "plain")]
    for option in list(settings)[1:]:
        rows += [beside(found, f"{who} {option}", f"{who} ", f"{who} with {option}") for who in ("local", "E2EBP")]
        rows.append(beside(found, f"local {option}", f"E2EBP {option}", f"both with {option}"))
    return rows


def beside(found: dict[str, Timing], name: str, base: str, label: str) -> dict[str, Any]:
    """One candidate beside another."""
    median = found[base].median
    case = f"{NETWORK} CIFAR batch {BATCH}, 3 parts, {label}: {name.strip()} / {base.strip()}"
    seconds = ratio(found[name], found[base]) * median
    return row("options", case, "seconds", seconds, median, None, repeats=found[name].repeats)


def infopro() -> list[dict[str, Any]]:
    """ResNet-110, batch 128, with the cuts and weights of the recipes, beside what the authors' code takes."""
    x, y = torch.rand(128, 3, 32, 32), torch.arange(128) % CLASSES
    plain = PlainLoop(network("resnet110"))
    steps: dict[str, Callable[[], object]] = {"E2EBP": partial(plain.step, x, y)}
    for parts in INFOPRO:
        recipe = load(f"infopro-resnet110-cifar10-k{parts}")
        experiment = recipe.rows[-1].experiment
        partition = mw.Partition(network("resnet110"), cuts=list(experiment.cuts), example=x[:2])
        method = build(parse(recipe.rows[-1].method), classes=CLASSES)
        steps[f"{parts} parts"] = partial(trainer(partition, method).step, x, y)
    found = interleaved_seconds(steps, warmup=1, repeats=3)
    median = found["E2EBP"].median
    return [
        row(
            "options",
            f"resnet110 CIFAR batch 128, InfoPro, {parts} parts / E2EBP",
            "seconds",
            ratio(found[f"{parts} parts"], found["E2EBP"]) * median,
            median,
            bar,
            repeats=found["E2EBP"].repeats,
        )
        for parts, bar in INFOPRO.items()
    ]


def main() -> None:
    """Time all candidates in turn, write the rows."""
    torch.set_num_threads(2)
    report("options", [*options(), *infopro()])


if __name__ == "__main__":
    main()
