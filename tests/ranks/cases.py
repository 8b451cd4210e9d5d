"""What ranks do in tests; every case runs on each of them and returns plain data."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from contracts.test_conformance import PROBLEMS, make
from resuming import adam, noise, steps_of
from small_networks import Residual, Skipping, differing, images, perceptron, rows, seeded, state, trainer_of
from torch import nn

import modulewise as mw
from modulewise.checks import example_problem
from modulewise.engine.ranks.group import digest
from modulewise.method import SolverMethod


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def _trained(name: str, ranks: mw.Ranks | None) -> mw.Trainer:
    method = make(name)
    problem = PROBLEMS.get(name, example_problem)().seen(method.views)
    trainer = mw.Trainer(
        problem.partition(problem.model()),
        method,
        loss=F.cross_entropy,
        optimizer=None if isinstance(method, SolverMethod) else sgd,
        ranks=ranks,
    )
    for _ in range(3):
        trainer.step(problem.x, problem.y, views=problem.views)
    return trainer


def every_method(rank: int, folder: Path) -> dict[str, str]:
    """For every method "equal", "refused: why", or what differs from one process."""
    found = {}
    for name in mw.methods.__all__:
        try:
            there = _trained(name, mw.Ranks(timeout=20))
        except mw.errors.MethodError as error:
            found[name] = f"refused: {error}"
            continue
        assert there.crew is not None
        there.crew.gather()
        mine = state(there.partition.model, *there.objectives)
        different = []
        if rank == 0:
            here = _trained(name, None)
            different = differing(state(here.partition.model, *here.objectives), mine)
        # One process is enough to compare with: the other rank must have what rank 0 has.
        answers = there.crew.group.facts((different, digest(mine)))
        different += [] if answers[0][1] == answers[1][1] else ["between ranks"]
        found[name] = f"differs: {answers[0][0] or different}" if answers[0][0] or different else "equal"
        there.close()
    return found


CUTS = ("stem", "one", "two")
CLASSES = 4


def _loader(views: int = 1) -> mw.data.Loader:
    return mw.data.Loader(mw.data.Split(*images(46)), batch_size=8, seed=2, augment=noise, views=views)


def _residual(method: mw.Method, ranks: mw.Ranks | None, *, norm: Any = nn.BatchNorm2d, **settings: Any) -> mw.Trainer:
    model = seeded(lambda: Residual(norm, dropout=0.2))
    settings = {"optimizer": adam, "scheduler": steps_of, "clip_norm": 1.0, **settings}
    return trainer_of(model, method, CUTS, images()[0], seed=4, ranks=ranks, **settings)


def _losses(history: list[mw.Epoch]) -> list[Any]:
    return [(e.epoch, e.losses, e.steps, e.validation) for e in history]


def whole_runs(rank: int, folder: Path) -> dict[str, Any]:
    """Fit, validate, save and load on ranks, beside one process."""
    said: dict[str, Any] = {}
    plain = list(_loader())
    ranks = mw.Ranks(timeout=30)
    methods = {"DGL": mw.methods.DGL(classes=CLASSES), "SGR": mw.methods.SGR(classes=CLASSES)}
    for name, method in methods.items():
        here, there = _residual(method, None), _residual(method, ranks)
        expected = here.fit(_loader(), epochs=2, validate=plain)
        # Only rank 0 reads data.
        found = there.fit(
            _loader() if rank == 0 else None,
            epochs=2,
            schedule=mw.schedules.pipelined,
            validate=plain if rank == 0 else None,
            checkpoint=folder / name,
            every=5,
        )
        said[f"{name} weights"] = differing(*(state(t.partition.model, *t.objectives) for t in (here, there)))
        said[f"{name} losses"] = _losses(found) == _losses(expected)
        said[f"{name} own"] = sorted(there.step(plain[0][0], plain[0][1]))
        there.close()
    said["resumed"] = _resumed(folder / "DGL", ranks, rank)
    trainer = _residual(methods["DGL"], ranks)
    trainer.step(*plain[0])
    said["stale"] = _error(lambda: trainer.predict(plain[0][0]))
    trainer.save(folder / "saved")
    again = _residual(methods["DGL"], None)
    dist.barrier()
    again.load(folder / "saved")
    here = _residual(methods["DGL"], None)
    here.step(*plain[0])
    said["saved"] = differing(*(state(t.partition.model, *t.objectives) for t in (here, again)))
    here.save(folder / f"one-{rank}")
    trainer.load(folder / f"one-{rank}")
    for other in (here, trainer):
        other.step(*plain[1])
    trainer.crew.gather()
    said["loaded from one process"] = differing(*(state(t.partition.model, *t.objectives) for t in (here, trainer)))
    shares = trainer.crew.timeline().shares()
    said["timeline"] = [share.rank for share in shares]
    trainer.close()
    said["group still there"] = dist.is_initialized()
    return said


def _resumed(folder: Path, ranks: mw.Ranks, rank: int) -> list[str]:
    """A run that stopped in the middle of a pass, against one that did not."""
    method = mw.methods.DGL(classes=CLASSES)
    there, here = _residual(method, ranks), _residual(method, None)
    loader = _loader()
    there.load(folder, loader=loader)
    assert there.steps == 10
    there.fit(loader if rank == 0 else None, epochs=3, schedule=mw.schedules.pipelined)
    here.fit(_loader(), epochs=3)
    there.close()
    return differing(*(state(t.partition.model, *t.objectives) for t in (here, there)))


def _error(call: Any) -> str:
    try:
        call()
    except mw.errors.ModulewiseError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def four_ranks(rank: int, folder: Path) -> dict[str, Any]:
    """Four parts on four ranks with a skip over two of them; two parts on a mesh of two by two."""
    said: dict[str, Any] = {}
    x, y = rows(12)
    for name, method in {"DGL": mw.methods.DGL(classes=CLASSES), "Backprop": mw.methods.Backprop()}.items():
        pair = [
            trainer_of(seeded(Skipping), method, ("a", "b", "c"), x, ranks=ranks)
            for ranks in (None, mw.Ranks(timeout=30))
        ]
        for trainer in pair:
            trainer.fit([(x, y)] * 5, epochs=1)
        said[f"{name} over ports"] = differing(*(state(t.partition.model) for t in pair))
        pair[1].close()
    # A slice of the batch on each of two ranks is what accumulation does in one process, but for the order of sums.
    for name, method in {"DGL": mw.methods.DGL(classes=CLASSES), "Backprop": mw.methods.Backprop()}.items():
        here = _residual(method, None, norm=_group, accumulate=2, optimizer=slow, scheduler=None, clip_norm=None)
        there = _residual(
            method, mw.Ranks(data=2, timeout=30), norm=_group, optimizer=slow, scheduler=None, clip_norm=None
        )
        expected, found = (t.fit(_loader(), epochs=1) for t in (here, there))
        a, b = (state(t.partition.model) for t in (here, there))
        said[f"{name} on a mesh"] = max(float((a[n] - b[n]).abs().max()) for n in a)
        said[f"{name} moved"] = float((a["0.head.weight"] - seeded(_plain).head.weight.detach()).abs().max())
        said[f"{name} losses"] = max(
            abs(u - v) for u, v in zip(expected[0].losses.values(), found[0].losses.values(), strict=True)
        )
        said[f"{name} alike"] = digest(there.partition.model.state_dict())
        there.close()
    pairwise = mw.methods.PredSim(classes=CLASSES)
    said["pairwise"] = _error(lambda: _residual(pairwise, mw.Ranks(data=2)))
    said["too many"] = _error(lambda: trainer_of(seeded(Skipping), mw.methods.Backprop(), ("a",), x, ranks=mw.Ranks()))
    return said


def _group(channels: int) -> nn.Module:
    return nn.GroupNorm(2, channels)


def _plain() -> nn.Module:
    return Residual(_group, dropout=0.2)


def slow(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def mismatches(rank: int, folder: Path) -> dict[str, str]:
    """Ranks that were not made alike are refused before the first step."""
    x, _ = rows(8)
    method = mw.methods.DGL(classes=CLASSES)
    told = {
        "seed": lambda: trainer_of(seeded(perceptron), method, ("0", "1"), x, seed=rank, ranks=mw.Ranks()),
        "cuts": lambda: trainer_of(seeded(perceptron), method, ("0", "1")[rank:], x, ranks=mw.Ranks()),
        "method": lambda: trainer_of(
            seeded(perceptron), method if rank else mw.methods.Backprop(), ("0", "1"), x, ranks=mw.Ranks()
        ),
        "weights": lambda: trainer_of(seeded(perceptron, 3 + rank), method, ("0", "1"), x, ranks=mw.Ranks()),
        "accumulate": lambda: trainer_of(seeded(perceptron), method, ("0", "1"), x, accumulate=2, ranks=mw.Ranks()),
        "clip": lambda: trainer_of(
            seeded(perceptron), mw.methods.Backprop(), ("0", "1"), x, clip_norm=1.0, ranks=mw.Ranks()
        ),
        "schedule": lambda: trainer_of(seeded(perceptron), method, ("0", "1"), x, ranks=mw.Ranks()).fit(
            [rows(8)], epochs=1, schedule=mw.schedules.sequential
        ),
    }
    return {name: _error(call) for name, call in told.items()}


def hangs(rank: int, folder: Path) -> dict[str, Any]:
    """Rank 0 stands still in its fourth batch; rank 1 says whom it waited for, and does not wait for ever."""
    x, y = rows(8)

    def batches() -> Any:
        yield from [(x, y)] * 3
        time.sleep(4)
        yield x, y

    trainer = trainer_of(
        seeded(perceptron), mw.methods.DGL(classes=CLASSES), ("0", "1"), x, ranks=mw.Ranks(timeout=1.5)
    )
    start = time.monotonic()
    message = _error(lambda: trainer.fit(batches(), epochs=1, schedule=mw.schedules.pipelined))
    return {"message": message, "seconds": time.monotonic() - start}


def stops(rank: int, folder: Path) -> dict[str, Any]:
    """A value that is not finite stops at the boundary it would cross; the other rank is told why."""
    x, y = rows(8)
    bad = x.clone()
    bad[0, 0] = float("nan")
    trainer = trainer_of(seeded(perceptron), mw.methods.DGL(classes=CLASSES), ("0",), x, ranks=mw.Ranks(timeout=20))
    start = time.monotonic()
    message = _error(lambda: trainer.fit([(x, y), (x, y), (bad, y)], epochs=1, schedule=mw.schedules.pipelined))
    return {"message": message, "seconds": time.monotonic() - start, "steps": trainer.steps}
