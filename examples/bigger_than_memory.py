"""Train a model that never exists in memory as a whole: one part at a time, every other part in a folder.

Stop this at any moment and start it again: it goes on in its folder where it was, to the same numbers.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

import modulewise as mw


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, h):
        """The next hidden state."""
        return h + self.two(functional.relu(self.one(self.norm(h))))


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), *(Block(64) for _ in range(6)), nn.Linear(64, 10))


data = mw.data.load("digits")
scale = mw.data.normalization(data.train)
train = mw.data.Loader(data.train, batch_size=64, normalize=scale)
test = mw.data.Loader(data.test, batch_size=256, normalize=scale, shuffle=False)
folder = Path(sys.argv[1] if len(sys.argv) > 1 else "bigger-than-memory")

with torch.device("meta"):  # names and shapes, no values
    model = network()
partition = mw.Partition(model, cuts=["2", "3", "4", "5", "6", "7"], example=torch.zeros(64, 1, 8, 8))
run = mw.OutOfCore(
    partition,
    mw.methods.DGL(classes=10),
    folder=folder,
    loss=functional.cross_entropy,
    optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
)
for epoch in run.fit(train, epochs=2):
    print(f"part {epoch.part}, pass {epoch.epoch}: loss {epoch.losses[epoch.part]:.3f}")
print(f"test accuracy {run.evaluate(test).accuracy:.3f}, part by part")

# The folder is an ordinary checkpoint with the model's own names.
whole = network()
for path in sorted(folder.glob("part-*.safetensors")):
    whole.load_state_dict(load_file(path), strict=False)
x, y = next(iter(test))
print(f"first batch by the whole model: accuracy {(whole.eval()(x).argmax(1) == y).float().mean():.3f}")
