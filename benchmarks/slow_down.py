"""One part slower than the others: accuracy and throughput of the asynchronous schedule beside the synchronous one.

The slow-down experiment of Belilovsky, Eickenberg, Oyallon (ICML 2020) on MNIST: a small convolutional network in four
parts, decoupled greedy learning, the second part 1.0 to 2.0 times slower, on the simulated clock. The synchronous
schedule goes at the pace of its slowest part, whatever its speed with the same numbers, so that one run, looked at
whenever its clock passes what an asynchronous run took, stands for all factors. Then what boundaries cost on the wire:
accuracy against bytes of every format.

    python -m benchmarks.slow_down            # about ten minutes of one core
    python -m benchmarks.slow_down --quick    # a tenth of the data, about a minute

`--limit` samples and `--epochs` are the budget of every run; the data set is looked for as recipes look for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import modulewise as mw
from benchmarks.common import SEED, report, row
from modulewise import wires
from modulewise.buffers import LeastUsed, OldestFirst, WhenFull
from modulewise.data import Loader, Split
from modulewise.recipes.places import data_place
from modulewise.schedules import Asynchronous, Event

CLASSES, PARTS, BATCH, SLOW = 10, 4, 128, 1
FACTORS = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
PAPER = {"capacity": 8, "reuse": 4, "policy": LeastUsed(), "when_full": WhenFull.DROP}
WIRES: dict[str, wires.Wire] = {
    "exact": wires.Exact(),
    "bfloat16": wires.BFloat16(),
    "float8": wires.Float8(),
    "int8 a channel": wires.Int8(),
    "product quantisation, 4 groups of 64": wires.ProductQuantization(groups=4, codewords=64),
    "product quantisation, 1 group of 64": wires.ProductQuantization(groups=1, codewords=64),
}


@dataclass(frozen=True)
class Task:
    """The data and the budget.

    Args:
        train: training samples.
        test: test samples.
        epochs: passes of every run.
    """

    train: Split
    test: Split
    epochs: int

    def loader(self) -> Loader:
        """Batches in the same order for every run."""
        return Loader(self.train, batch_size=BATCH, seed=SEED, normalize=((0.1307,), (0.3081,)), drop_last=True)

    def accuracy(self, trainer: mw.Trainer) -> float:
        """On the test split."""
        accuracy = trainer.evaluate(
            Loader(self.test, batch_size=500, shuffle=False, normalize=((0.1307,), (0.3081,)))
        ).accuracy
        assert accuracy is not None, "labels are classes"
        return accuracy


def network() -> nn.Sequential:
    """Three convolutions, 8, 16 and 16 channels wide, and a linear layer."""
    torch.manual_seed(SEED)

    def stage(inputs: int, outputs: int, pool: int) -> nn.Sequential:
        layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*layers, nn.MaxPool2d(pool) if pool > 1 else nn.Identity())

    head = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, CLASSES))
    return nn.Sequential(stage(1, 8, 2), stage(8, 16, 2), stage(16, 16, 1), head)


def trainer() -> mw.Trainer:
    """Decoupled greedy learning with linear classifiers; a constant learning rate, so that moments compare."""
    partition = mw.Partition(network(), cuts=["0", "1", "2"], example=torch.zeros(2, 1, 28, 28))
    return mw.Trainer(
        partition,
        mw.methods.DGL(CLASSES, head=mw.heads.linear),
        loss=functional.cross_entropy,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9),
        seed=SEED,
    )


def slowed(factor: float) -> tuple[float, ...]:
    """Ticks of every part."""
    return tuple(factor if part == SLOW else 1.0 for part in range(PARTS))


def synchronous_ticks(factor: float, batches: int, epochs: int) -> list[float]:
    """When, in simulated ticks, each batch has left the last part, in lock-step: by events alone."""
    schedule = Asynchronous(capacity=1, policy=OldestFirst(), slow_down=slowed(factor))
    state, times = schedule.start(parts=PARTS, epochs=epochs), []
    state, work = schedule.next(state, Event.START)
    while work is not None:
        out = work.part == 0 and work.batch >= batches
        if work.part == PARTS - 1:
            assert state.lanes is not None, "parts are at work"
            times.append(state.lanes.lanes[-1].until)
        state, work = schedule.next(state, Event.EXHAUSTED if out else Event.DONE)
    return times


def asynchronous(task: Task, **settings: Any) -> tuple[mw.Trainer, list[mw.Epoch]]:
    """A trained trainer and its passes."""
    made = trainer()
    return made, made.fit(task.loader(), epochs=task.epochs, schedule=Asynchronous(**settings))


def synchronous(task: Task, moments: set[int]) -> dict[int, float]:
    """Accuracy of the synchronous schedule after so many batches."""
    made, loader, seen = trainer(), task.loader(), 0
    found = {0: task.accuracy(made)} if 0 in moments else {}
    made.partition.model.train()
    for _ in range(task.epochs):
        for x, y in loader:
            made.step(x, y)
            seen += 1
            if seen in moments:
                found[seen] = task.accuracy(made)
    return found


def sweep(task: Task) -> Iterator[dict[str, Any]]:
    """Every factor: the asynchronous run beside the synchronous one at the same simulated time."""
    batches = len(task.loader())
    runs, moments = {}, {}
    for factor in FACTORS:
        made, passes = asynchronous(task, slow_down=slowed(factor), **PAPER)
        flows = [epoch.flow for epoch in passes if epoch.flow is not None]
        ticks = sum(flow.duration for flow in flows)
        times = synchronous_ticks(factor, batches, task.epochs)
        runs[factor] = (task.accuracy(made), ticks, times[-1], flows[-1])
        moments[factor] = min(sum(time <= ticks for time in times), len(times))
        print(f"slow-down {factor}: accuracy {runs[factor][0]:.4f}, {ticks:.0f} ticks", flush=True)
    total = batches * task.epochs
    beside = synchronous(task, {*moments.values(), total})
    for factor, (accuracy, ticks, synchronous_total, flow) in runs.items():
        details = {
            "slow_down": factor,
            "seen": moments[factor],
            "batches": total,
            "accuracy_of_the_same_data": beside[total],
            "updates": list(flow.updates.values()),
            "staleness": {str(part): round(value, 3) for part, value in flow.staleness.items()},
            "most_used": flow.most_used,
            "dropped": list(flow.dropped.values()),
        }
        label = f"part {SLOW} of {PARTS} slowed x {factor}"
        yield row("slow-down", label, "accuracy", accuracy, beside[moments[factor]], None, **details)
        per_tick, synchronous_per_tick = BATCH * total / ticks, BATCH * total / synchronous_total
        yield row("slow-down", label, "samples a tick", per_tick, synchronous_per_tick, None, **details)


def wire_costs(task: Task) -> Iterator[dict[str, Any]]:
    """Every format: accuracy and bytes a sample over all boundaries, beside boundaries as they are."""
    found = {}
    for name, wire in WIRES.items():
        made, passes = asynchronous(task, capacity=4, policy=OldestFirst(), wire=wire)
        flow = passes[-1].flow
        assert flow is not None, "the schedule is asynchronous"
        found[name] = (task.accuracy(made), sum(flow.bytes.values()) / flow.samples)
        print(f"{name}: accuracy {found[name][0]:.4f}, {found[name][1]:.0f} bytes a sample", flush=True)
    accuracy, size = found["exact"]
    for name, (reached, bytes_) in found.items():
        yield row("slow-down", f"wire: {name}", "accuracy", reached, accuracy, None, bytes_a_sample=bytes_)
        yield row("slow-down", f"wire: {name}", "bytes a sample", bytes_, size, None, accuracy=reached)


def main() -> None:
    """Both experiments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="6,000 samples and one pass; nothing is written")
    parser.add_argument("--limit", type=int, default=60_000, help="training samples")
    parser.add_argument("--epochs", type=int, default=2, help="passes of every run")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = mw.data.load(data_place("mnist"))
    limit = 6_000 if given.quick else given.limit
    epochs = 1 if given.quick else given.epochs
    task = Task(Split(data.train.x[:limit], data.train.y[:limit]), data.test, epochs)
    budget = {"samples": len(task.train), "epochs": epochs}
    rows = [made | budget for made in (*sweep(task), *wire_costs(task))]
    if given.quick:
        print(
            *(f"{made['case']}: {made['quantity']} {made['value']:.4f} / {made['reference']:.4f}" for made in rows),
            sep="\n",
        )
    else:
        report("slow-down", rows)


if __name__ == "__main__":
    main()
