"""Train, store and test a part; then load it frozen for another task, where only a new output part learns."""

import tempfile

import torch
from torch.nn import Flatten, Linear, Sequential, functional

import modulewise as mw
from modulewise.workflow import ModelSpec, Store

digits = mw.data.load("digits")
normalize = mw.data.normalization(digits.train)
spec = ModelSpec(name="cnn", shape=digits.shape, classes=digits.classes)
example = torch.zeros(64, *digits.shape)


def train(partition: mw.Partition, split: mw.data.Split, *, epochs: int) -> mw.Trainer:
    """One part after another, each to its own proxy."""
    trainer = mw.Trainer(
        partition,
        mw.methods.KernelProxy(),
        loss=functional.cross_entropy,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    )
    loader = mw.data.Loader(split, batch_size=64, normalize=normalize)
    trainer.fit(loader, epochs=epochs, schedule=mw.schedules.sequential)
    return trainer


torch.manual_seed(0)
model = mw.models.build(spec.name, shape=spec.shape, classes=spec.classes)
partition = mw.Partition(model, parts=2, example=example)
train(partition, digits.train, epochs=3)

with tempfile.TemporaryDirectory() as folder:
    store = Store(folder)
    store.save(partition.part(0), "digit-features", model=spec, normalize=normalize, data="digits", licence="CC0-1.0")
    part = store.load("digit-features")  # its weights are verified by their hash

mw.expect(part).probe_accuracy(on=digits).at_least(0.9)  # a unit test: an AssertionError if it fails

odd = mw.data.Split(digits.train.x, digits.train.y % 2), mw.data.Split(digits.test.x, digits.test.y % 2)
head = Sequential(Flatten(), Linear(torch.Size(part.card.output.shape).numel(), 2))
reused = train(mw.compose(part, head), odd[0], epochs=3)
accuracy = reused.evaluate(mw.data.Loader(odd[1], batch_size=360, normalize=normalize)).accuracy
print(f"{part.card.label} takes {part.card.input}, gives {part.card.output}")
print(f"odd or even, a new output part on the frozen one: {100 * accuracy:.1f} % of test digits")
