"""Stop in the middle of an epoch, go on in a new trainer, and end with the bits of an uninterrupted run."""

import tempfile

import torch
from torch.nn import functional

import modulewise as mw

data = mw.data.load("digits")


def make() -> tuple[mw.Trainer, mw.data.Loader]:
    """A trainer and a loader, the same ones every time; the loader knows its place and can be put back there."""
    loader = mw.data.Loader(data.train, batch_size=64, normalize=mw.data.normalization(data.train), seed=1)
    torch.manual_seed(0)
    model = mw.models.cnn((1, 8, 8), 10, width=8)
    trainer = mw.Trainer(
        mw.Partition(model, cuts=["pool2", "conv3"], example=torch.zeros(64, 1, 8, 8)),
        mw.methods.DGL(classes=10),
        loss=functional.cross_entropy,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    )
    return trainer, loader


def train(trainer: mw.Trainer, loader: mw.data.Loader, *, until: int) -> None:
    """An ordinary loop that ends after so many steps, wherever in an epoch that is."""
    while trainer.steps < until:
        for x, y in loader:
            trainer.step(x, y)
            if trainer.steps == until:
                return


straight, loader = make()
train(straight, loader, until=60)

with tempfile.TemporaryDirectory() as folder:
    first, loader = make()
    train(first, loader, until=31)
    first.save(folder, loader=loader)  # safetensors and JSON; written beside the last one, flushed, renamed

    second, loader = make()
    second.load(folder, loader=loader)
    print(f"loaded: {second.steps} steps done, epoch {loader.epoch}, batch {loader.batch} of {len(loader)}")
    train(second, loader, until=60)

a, b = (trainer.partition.model.state_dict() for trainer in (straight, second))
print("bit for bit equal:", all(torch.equal(a[name], b[name]) for name in a))
