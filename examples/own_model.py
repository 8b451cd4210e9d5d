"""Train a hand-written network in three parts, in a loop of your own."""

import torch
import torch.nn.functional as F
from torch import nn

import modulewise as mw


class Network(nn.Module):
    """A convolutional network with a skip, functional operators and no nn.Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.merge = nn.Identity()  # the skip ends here: a place where one tensor alone crosses
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.hidden, self.head = nn.Linear(32 * 16, 64), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, 10) of images (N, 1, 8, 8)."""
        h = F.relu(self.stem(x))
        h = self.merge(h + F.relu(self.first(h)))
        h = self.pool(F.relu(self.second(h)))
        return self.head(F.relu(self.hidden(h.flatten(1))))


data = mw.data.load("digits")
scale = mw.data.normalization(data.train)
train = mw.data.Loader(data.train, batch_size=64, normalize=scale)
test = mw.data.Loader(data.test, batch_size=256, normalize=scale, shuffle=False)

torch.manual_seed(0)
model = Network()
partition = mw.Partition(model, cuts=["merge", "pool"], example=torch.zeros(64, 1, 8, 8))
print(partition, end="\n\n")

trainer = mw.Trainer(
    partition,
    mw.methods.DGL(classes=10),
    loss=F.cross_entropy,
    optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
)
for epoch in range(5):
    for x, y in train:
        losses = trainer.step(x, y)
    shown = ", ".join(f"part {part}: {loss:.3f}" for part, loss in losses.items())
    print(f"epoch {epoch}: losses of the last batch {shown}")

print(f"test accuracy {trainer.evaluate(test).accuracy:.3f}")
