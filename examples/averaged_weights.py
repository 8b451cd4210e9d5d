"""Averages of the weights, part by part: each part has its own average over its own updates.

Under the sequential schedule a part's average ends with the part. Batch normalisation has statistics of the weights
that were trained, so they are taken anew for the averages.
"""

import copy

import torch
from torch.nn import functional

import modulewise as mw

data = mw.data.load("digits")
scale = mw.data.normalization(data.train)
train = mw.data.Loader(data.train, batch_size=32, normalize=scale)
test = mw.data.Loader(data.test, batch_size=256, normalize=scale, shuffle=False)

torch.manual_seed(0)
model = mw.models.cnn((1, 8, 8), 10, width=8)
partition = mw.Partition(model, parts=2, example=torch.zeros(64, 1, 8, 8))
trainer = mw.Trainer(
    partition,
    mw.methods.DGL(classes=10),
    loss=functional.cross_entropy,
    optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
)
averages = mw.workflow.PartAverages(partition, decay=0.98)
with averages.following(trainer):
    trainer.fit(train, epochs=3, schedule=mw.schedules.sequential)

last = trainer.evaluate(test)
statistics = copy.deepcopy(model.state_dict())
with averages.applied():
    mw.workflow.recalibrate(partition, train)
    averaged = trainer.evaluate(test)
    weights = copy.deepcopy(model.state_dict())  # to keep: the averages with their own statistics
model.load_state_dict(statistics)
print(f"updates averaged: {averages.updates}")
print(f"test loss {last.loss:.4f} with the last weights, {averaged.loss:.4f} with their averages")
print(f"test accuracy {last.accuracy:.3f} with the last weights, {averaged.accuracy:.3f} with their averages")
