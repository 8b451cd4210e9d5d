"""Signs and rounding inside a network: backpropagation finds slope 0 there, targets pass through learned inverses."""

import torch
from torch import Tensor, nn
from torch.nn import functional

import modulewise as mw


class Apply(nn.Module):
    """A function of a tensor as a layer; here one without a slope."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, h: Tensor) -> Tensor:
        """function(h)."""
        return self.function(h)


def network() -> nn.Sequential:
    """Three parts: few units, then their signs, then the rounded features of those."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Linear(64, 12), nn.Tanh()),
        nn.Sequential(Apply(torch.sign), nn.Linear(12, 64), nn.Tanh()),
        nn.Sequential(Apply(lambda h: (4 * h).round() / 4), nn.Linear(64, 10)),
    )


digits = mw.data.load("digits")
x, y = digits.train.x.flatten(1).float(), digits.train.y
mean, spread = x.mean(), x.std()
x, test = (x - mean) / spread, (digits.test.x.flatten(1).float() - mean) / spread

for method in (mw.methods.Backprop(), mw.methods.SimplifiedDTP(outputs=10)):
    partition = mw.Partition(network(), cuts=["0", "1"], example=x[:2])
    trainer = mw.Trainer(
        partition, method, loss=functional.cross_entropy, optimizer=lambda p: torch.optim.Adam(p, lr=0.003)
    )
    before = partition.model[0][0].weight.detach().clone()
    for _ in range(8):
        for rows in torch.randperm(len(x)).split(64):
            trainer.step(x[rows], y[rows])
    moved = (partition.model[0][0].weight - before).norm() / before.norm()
    correct = (partition.model(test).argmax(1) == digits.test.y).float().mean()
    print(f"{type(method).__name__:14} the first part moved by {moved:4.0%}, {correct:.1%} of test digits right")
