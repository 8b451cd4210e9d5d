"""One experiment, run straight on or resumed: for tests, and for the new process that they start.

As a program: `python resuming.py FOLDER` goes on from every experiment's checkpoint in FOLDER and writes the ends.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from small_networks import CLASSES, CUTS, Residual, images, perceptron, rows, seeded, state, trainer_of
from torch import Tensor, nn

import modulewise as mw

M = mw.methods
EPOCHS = 4
HALF = 10
"""Steps before the checkpoint: in the middle of the second of four passes of 6 batches, or of a part's passes."""


def noise(x: Tensor, *, generator: torch.Generator) -> Tensor:
    return x + 0.1 * torch.randn(x.shape, generator=generator)


def loader(augmented: bool) -> mw.data.Loader:
    split = mw.data.Split(*images(46))
    return mw.data.Loader(split, batch_size=8, seed=2, augment=noise if augmented else None)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


def steps_of(optimizer: torch.optim.Optimizer) -> Any:
    """A schedule of rates whose state has integers for keys."""
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[1, 2], gamma=0.3)


def residual(method: Any, **settings: Any) -> mw.Trainer:
    return trainer_of(seeded(lambda: Residual(dropout=0.2)), method, CUTS, images()[0], seed=4, **settings)


TRAINERS: dict[str, Callable[[], mw.Trainer]] = {
    "DGL": lambda: residual(M.DGL(classes=CLASSES), scheduler=steps_of),
    "DGL-adam": lambda: residual(M.DGL(classes=CLASSES), optimizer=adam, clip_norm=1.0, accumulate=2),
    "DGL-half": lambda: residual(M.DGL(classes=CLASSES), precision=torch.float16),
    "Backprop": lambda: residual(M.Backprop(), optimizer=adam),
    "SyntheticGradients": lambda: residual(M.SyntheticGradients(classes=CLASSES, width=4), optimizer=adam),
    "FeedbackAlignment": lambda: residual(M.FeedbackAlignment()),
    "sequential": lambda: residual(M.DGL(classes=CLASSES), scheduler=steps_of),
    "sequential-augmented": lambda: residual(M.PredSim(classes=CLASSES), optimizer=adam),
}


def fit(name: str, trainer: mw.Trainer, data: Any, **settings: Any) -> Any:
    schedule = mw.schedules.sequential if name.startswith("sequential") else mw.schedules.simultaneous
    return trainer.fit(data, epochs=EPOCHS, schedule=schedule, **settings)


def data_of(name: str) -> mw.data.Loader:
    """Shuffled; augmented but for the run that keeps features."""
    return loader(augmented=name != "sequential")


def end(trainer: mw.Trainer) -> dict[str, Tensor]:
    return state(trainer.partition.model, *trainer.objectives)


def tiny() -> mw.Trainer:
    return trainer_of(seeded(perceptron), M.DGL(classes=CLASSES), ("0", "1"), rows()[0])


def resume(name: str, folder: Path) -> dict[str, Tensor]:
    data, trainer = data_of(name), TRAINERS[name]()
    trainer.load(folder, loader=data)
    fit(name, trainer, data)
    return end(trainer)


def chain() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, CLASSES)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in TRAINERS:
        folder = Path(sys.argv[1]) / name
        save_file(resume(name, folder), folder.with_suffix(".end"))
