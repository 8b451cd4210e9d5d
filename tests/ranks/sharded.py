"""Parts in pieces on a mesh of two by two ranks, beside the same mesh without pieces; every case runs on each rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cases import CLASSES, CUTS, _error, _losses, _trained, slow
from resuming import adam, steps_of
from small_networks import Residual, differing, images, seeded, state, trainer_of
from torch import nn

import modulewise as mw

METHODS = {
    "DGL": mw.methods.DGL(classes=CLASSES),
    "Backprop": mw.methods.Backprop(),
    "Checkpointed": mw.methods.Checkpointed(),
}


def _loader() -> mw.data.Loader:
    # The last batch has five samples: slices of three and two.
    return mw.data.Loader(mw.data.Split(*images(45)), batch_size=8, seed=2)


def _trainer(method: mw.Method, *, shard: bool, data: int = 2, **settings: Any) -> mw.Trainer:
    model = seeded(lambda: Residual(nn.BatchNorm2d, dropout=0.2))
    model.head.bias.requires_grad_(False)
    ranks = mw.Ranks(data=data, timeout=30, shard=shard)
    settings = {"optimizer": adam, "scheduler": steps_of, **settings}
    return trainer_of(model, method, CUTS, images()[0], seed=4, ranks=ranks, **settings)


def _bytes(trainer: mw.Trainer, *, optimizers: bool) -> int:
    """What this rank holds of its parts' weights, or of what their optimisers keep."""
    held = [*trainer.partition.model.parameters(), *trainer.updater.pieces.values()]
    own = {name for part in trainer.crew.seat.own for name in trainer.partition.part(part).parameter_names}
    others = {p for name, p in trainer.partition.model.named_parameters() if name not in own}
    if optimizers:
        held = [t for o in trainer.updater.optimizers.values() for s in o.state.values() for t in s.values()]
        others = set()
    local = [t.to_local() if hasattr(t, "to_local") else t for t in held if t not in others]
    return sum(t.untyped_storage().nbytes() for t in local)


def in_pieces(rank: int, folder: Path) -> dict[str, Any]:
    """Whole runs, a checkpoint in the middle, and what is left of the user's model."""
    said: dict[str, Any] = {}
    plain = list(_loader())
    for name, method in METHODS.items():
        there, pieces = (_trainer(method, shard=shard) for shard in (False, True))
        said[f"{name} weights at first"] = differing(*(state(t.partition.model) for t in (there, pieces)))
        before = [(type(m), dict(m.__dict__)) for m in pieces.partition.model.modules()]
        parameters = dict(pieces.partition.model.named_parameters())
        runs = [
            t.fit(
                _loader() if rank == 0 else None,
                epochs=2,
                validate=plain if rank == 0 else None,
                checkpoint=folder / f"{name}-{t is pieces}",
                every=4,
            )
            for t in (there, pieces)
        ]
        said[f"{name} weights"] = differing(*(state(t.partition.model, *t.objectives) for t in (there, pieces)))
        said[f"{name} losses"] = _losses(runs[0]) == _losses(runs[1])
        model = pieces.partition.model
        said[f"{name} same objects"] = all(dict(model.named_parameters())[n] is p for n, p in parameters.items())
        said[f"{name} as it was"] = all(
            (type(m), m.__dict__.keys(), m._forward_hooks) == (kind, own.keys(), own["_forward_hooks"])
            for m, (kind, own) in zip(model.modules(), before, strict=True)
        )
        for t in (there, pieces):
            t.step(*plain[0])
        said[f"{name} held"] = [_bytes(t, optimizers=o) for o in (False, True) for t in (there, pieces)]
        said[f"{name} stale"] = _error(lambda pieces=pieces: pieces.predict(plain[0][0]))
        pieces.save(folder / f"{name}-saved")
        dist.barrier()
        again = _trainer(method, shard=True)
        again.load(folder / f"{name}-saved")
        for t in (there, pieces, again):
            t.partition.model.two[1].eval()  # no dropout from here on, while it is in pieces
            t.step(*plain[1])
            t.crew.gather()
        said[f"{name} loaded"] = [
            differing(*(state(t.partition.model, *t.objectives) for t in pair))
            for pair in ((there, pieces), (there, again))
        ]
        for t in (there, pieces, again):
            t.close()
    return said


def clipped(rank: int, folder: Path) -> dict[str, Any]:
    """The norm of a part is that of all its pieces and its head together."""
    there, pieces = (_trainer(METHODS["DGL"], shard=shard, clip_norm=0.05, optimizer=slow) for shard in (False, True))
    free = _trainer(METHODS["DGL"], shard=False, optimizer=slow)
    for t in (there, pieces, free):
        for batch in list(_loader())[:3]:
            t.step(*batch)
        t.crew.gather()
    a, b, c = (state(t.partition.model, *t.objectives) for t in (there, pieces, free))
    return {
        "clipped": max(float((a[n].double() - b[n].double()).abs().max()) for n in a),
        "clipping counts": max(float((a[n].double() - c[n].double()).abs().max()) for n in a),
    }


def every_method(rank: int, folder: Path) -> dict[str, str]:
    """For every method "equal", "refused: why", or what differs from whole parts; two ranks, all parts on both."""
    found = {}
    for name in mw.methods.__all__:
        try:
            pair = [_trained(name, mw.Ranks(data=2, timeout=20, shard=shard)) for shard in (False, True)]
        except mw.errors.MethodError as error:
            found[name] = f"refused: {error}"
            continue
        for trainer in pair:
            trainer.crew.gather()
        different = differing(*(state(t.partition.model, *t.objectives) for t in pair))
        found[name] = f"differs: {different}" if different else "equal"
        for trainer in pair:
            trainer.close()
    return found


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Flatten(), nn.Linear(192, 192), nn.Linear(192, 192)
        self.two.weight = self.one.weight
        self.head = nn.Linear(192, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes)."""
        out: torch.Tensor = self.head(self.two(self.one(self.stem(x))))
        return out


class Recurrent(nn.Module):
    """A recurrent layer within a part."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.cell, self.head = nn.Flatten(2), nn.GRU(64, 8), nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes)."""
        out: torch.Tensor = self.head(self.cell(self.stem(x).transpose(0, 1))[0][-1])
        return out


class RowScaled(torch.optim.Optimizer):
    """Gradient descent that keeps one number a row."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self) -> None:
        """One step."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["rows"] = p.grad.flatten(1).square().sum(1) if p.dim() > 1 else p.grad.square()
                    p.sub_(p.grad, alpha=0.01)


def refused(rank: int, folder: Path) -> dict[str, str]:
    """What does not go in pieces."""
    dgl, x = METHODS["DGL"], images()[0]
    pieces = mw.Ranks(data=2, shard=True, timeout=30)

    def of(model: nn.Module, cut: str) -> mw.Trainer:
        return trainer_of(model, dgl, (cut,), x, ranks=pieces)

    answers = {
        "compile": lambda: _trainer(dgl, shard=True, compile=True),
        "recompute": lambda: _trainer(dgl, shard=True, recompute=True),
        "float16": lambda: _trainer(dgl, shard=True, precision=torch.float16),
        "data": lambda: _trainer(dgl, shard=True, data=1),
        "tied": lambda: of(Tied(), "two"),
        "recurrent": lambda: of(Recurrent(), "stem"),
        "overlapping": lambda: _trainer(mw.methods.LocalUpdates(classes=CLASSES), shard=True),
    }
    found = {name: _error(answer) for name, answer in answers.items()}
    trainer = trainer_of(seeded(lambda: Residual(nn.BatchNorm2d)), dgl, CUTS, x, optimizer=RowScaled, ranks=pieces)
    found["optimizer"] = _error(lambda: trainer.step(*images(8)))
    return found
