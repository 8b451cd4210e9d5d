"""What the benchmarks share: rows, ratios, peaks without memory for them, and where results go."""

from __future__ import annotations

import copy
import json
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.nn import functional

import modulewise as mw
from modulewise.metering import MemoryReport, measure_step

RESULTS = Path(__file__).resolve().parent.parent / "results"
SEED = 0


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """SGD with momentum, the optimiser of every benchmark."""
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def trainer(partition: mw.Partition, method: mw.Method, **settings: Any) -> mw.Trainer:
    """A trainer on cross-entropy."""
    return mw.Trainer(partition, method, loss=functional.cross_entropy, optimizer=sgd, seed=SEED, **settings)


class PlainLoop:
    """End-to-end backpropagation in plain torch, optionally with checkpointed blocks."""

    def __init__(self, model: nn.Module, forward: Callable[[nn.Module, Tensor], Tensor] | None = None) -> None:
        self.model, self.forward = model, forward or (lambda model, x: model(x))
        self.optimizer = sgd(model.parameters())

    def step(self, x: Tensor, y: Tensor) -> None:
        """One training step."""
        self.optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(self.forward(self.model, x), y).backward()
        self.optimizer.step()


def fake_peak(subject: Any, shape: tuple[int, ...]) -> MemoryReport:
    """The peak of one step at a shape, counted on tensors without memory; optimiser state is there already.

    Args:
        subject: a `Trainer` or a `PlainLoop`; it is copied, and stays as it is.
        shape: of the batch, (N, C, H, W).
    """
    x, y = torch.empty(shape), torch.zeros(shape[0], dtype=torch.long)
    if not isinstance(subject, PlainLoop):
        return mw.checks.memory(subject, x, y)
    mode = FakeTensorMode()
    with FakeCopyMode(mode):
        subject, x, y = copy.deepcopy((subject, x, y))
    with mode:
        subject.step(x, y)
        return real_peak(subject, x, y)


def real_peak(subject: Any, x: Tensor, y: Tensor, *, views: int = 1) -> MemoryReport:
    """The peak of one step of a `Trainer` (with so many views of every sample in x) or a `PlainLoop`."""
    if isinstance(subject, PlainLoop):
        return measure_step(
            lambda: subject.step(x, y), model=subject.model, optimizers=[subject.optimizer], inputs=[x, y]
        )
    return measure_step(
        lambda: subject.step(x, y, views=views),
        model=subject.partition.model,
        heads=subject.objectives,
        optimizers=list(subject.updater.optimizers.values()),
        inputs=[x, y],
    )


def _git() -> dict[str, Any]:
    def run(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()

    return {"commit": run("rev-parse", "HEAD"), "dirty": bool(run("status", "--porcelain", "--", "src", "benchmarks"))}


def row(
    benchmark: str,
    case: str,
    quantity: str,
    value: float,
    reference: float,
    target: float | None,
    **details: Any,
) -> dict[str, Any]:
    """One result: a value beside its reference from the same run, and whether the ratio meets its target (<=)."""
    ratio = value / reference
    return {
        "benchmark": benchmark,
        "case": case,
        "quantity": quantity,
        "value": value,
        "reference": reference,
        "ratio": round(ratio, 4),
        "target": target,
        "met": None if target is None else ratio <= target,
        "seed": SEED,
        "device": f"cpu ({torch.get_num_threads()} threads)",
        "versions": {
            "modulewise": mw.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "git": _git(),
        **details,
    }


def report(name: str, rows: list[dict[str, Any]]) -> None:
    """Write `results/bench-NAME.jsonl` and print the ratios."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"bench-{name}.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    for r in rows:
        target = "" if r["target"] is None else f"  target <= {r['target']:.2f}  {'met' if r['met'] else 'MISSED'}"
        print(f"{r['case']:<62} {r['quantity']:<8} ratio {r['ratio']:.3f}{target}", flush=True)
    print(f"wrote {path.relative_to(RESULTS.parent)}")
