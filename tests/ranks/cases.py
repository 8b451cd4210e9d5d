"""What ranks do in tests; every case runs on each of them and returns plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from resuming import adam, noise, steps_of
from small_networks import Residual, differing, images, seeded, state, trainer_of
from torch import nn

import modulewise as mw
from contracts.test_conformance import PROBLEMS, make
from modulewise.checks import example_problem, linear_problem
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
        here = _trained(name, None)
        a, b = (state(t.partition.model, *t.objectives) for t in (here, there))
        different = differing(a, b)
        found[name] = f"differs: {different}" if different else "equal"
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
