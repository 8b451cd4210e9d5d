"""Train one part after another: each sees only the finished parts below it, whose features are kept.

While part k trains, the parts below are frozen in eval mode and the parts above have not been touched.
"""

import torch
from torch.nn import functional

import modulewise as mw

data = mw.data.load("digits")
scale = mw.data.normalization(data.train)
train = mw.data.Loader(data.train, batch_size=64, normalize=scale)
test = mw.data.Loader(data.test, batch_size=256, normalize=scale, shuffle=False)

torch.manual_seed(0)
model = mw.models.mlp((1, 8, 8), 10, width=64)
partition = mw.Partition(model, cuts=["fc1", "fc2"], example=torch.zeros(64, 1, 8, 8))
trainer = mw.Trainer(
    partition,
    mw.methods.PredSim(classes=10, beta=0.0),
    loss=functional.cross_entropy,
    optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
)

before = {name: parameter.clone() for name, parameter in model.named_parameters()}


def show(epoch) -> None:
    """Say which parts have moved since the start of the run."""
    moved = [
        part.index
        for part in partition.parts
        if any(not torch.equal(before[name], parameter) for name, parameter in part.named_parameters())
    ]
    loss = epoch.losses[epoch.part]
    print(f"part {epoch.part}, pass {epoch.epoch}: loss {loss:.3f}, {epoch.seconds:.2f} s; parts moved so far: {moved}")


trainer.fit(train, epochs=3, schedule=mw.schedules.sequential, callbacks=[show])
print(f"test accuracy {trainer.evaluate(test).accuracy:.3f}")
