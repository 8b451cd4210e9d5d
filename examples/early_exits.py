"""Early exits from trained heads: an easy sample leaves at the first head that is sure, the rest go on.

The heads that a local method trains beside the network are classifiers; nothing has to be trained for this.
"""

import torch
from torch.nn import functional

import modulewise as mw

data = mw.data.load("digits")
scale = mw.data.normalization(data.train)
train = mw.data.Loader(data.train, batch_size=64, normalize=scale)
(held,) = mw.data.Loader(data.test, batch_size=len(data.test), normalize=scale, shuffle=False)
x, y = held

torch.manual_seed(0)
model = mw.models.mlp((1, 8, 8), 10, width=64)
partition = mw.Partition(model, cuts=["fc1", "fc2"], example=torch.zeros(64, 1, 8, 8))
trainer = mw.Trainer(
    partition,
    mw.methods.DGL(classes=10),
    loss=functional.cross_entropy,
    optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
)
trainer.fit(train, epochs=5)

SURE = 0.95  # probability from which on a sample leaves; to be chosen on held-out data, not on test data
left, guesses, gone = torch.arange(len(x)), torch.full_like(y, -1), {}
for part in range(len(partition)):
    logits = mw.exits(partition, trainer.objectives, x[left], parts=[part])[part]  # parts above do not run
    probability, guess = logits.softmax(1).max(1)
    leaves = (probability >= SURE) | (part == len(partition) - 1)
    guesses[left[leaves]] = guess[leaves]
    gone[part], left = int(leaves.sum()), left[~leaves]

accuracy = float((guesses == y).double().mean())
whole = float((trainer.predict(x).argmax(1) == y).double().mean())
together = float((mw.ensemble(partition, trainer.objectives, x).argmax(1) == y).double().mean())
print(f"samples that leave after every part: {gone}")
print(f"accuracy: early exits {accuracy:.3f}, whole network {whole:.3f}, ensemble of all heads {together:.3f}")
