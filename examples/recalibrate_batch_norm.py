"""Statistics of batch normalisation taken anew after sequential training, part by part.

A part's running statistics are moving averages over its own last steps, in small batches and while its weights moved.
One more pass a part gives plain means on the weights as they ended, on the features that the part will meet.
"""

import torch
from torch.nn import functional

import modulewise as mw

data = mw.data.load("digits")
scale = mw.data.normalization(data.train)
train = mw.data.Loader(data.train, batch_size=16, normalize=scale)
whole = mw.data.Loader(data.train, batch_size=256, normalize=scale, shuffle=False)
test = mw.data.Loader(data.test, batch_size=256, normalize=scale, shuffle=False)

torch.manual_seed(0)
model = mw.models.cnn((1, 8, 8), 10, width=8)
partition = mw.Partition(model, parts=3, example=torch.zeros(64, 1, 8, 8))
trainer = mw.Trainer(
    partition,
    mw.methods.DGL(classes=10),
    loss=functional.cross_entropy,
    optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
)
trainer.fit(train, epochs=2, schedule=mw.schedules.sequential)

before = trainer.evaluate(test)
count = mw.workflow.recalibrate(partition, whole)
after = trainer.evaluate(test)
print(f"{count} normalisation layers; test loss {before.loss:.4f} before, {after.loss:.4f} after")
print(f"test accuracy {before.accuracy:.3f} before, {after.accuracy:.3f} after")
