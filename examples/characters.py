"""A character model of Shakespeare over windows of time: truncated, bridged by a guess, and backpropagation in full.

A recurrent network unrolled in time is a partition over time. Its windows share their parameters, and only there do
parts do so; graphs are one window long.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import modulewise as mw

LENGTH, WINDOWS, STEPS = 32, 4, 60
FILE = Path(__file__).resolve().parents[2] / "shared/data/tinyshakespeare/input.txt"
text = FILE.read_text() if FILE.exists() else "to be, or not to be: that is the question. " * 200
alphabet = sorted(set(text))
codes = torch.tensor([alphabet.index(letter) for letter in text[:100_000]])


def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """32 excerpts (N, T) and the characters that follow each (N, T)."""
    starts = torch.randint(0, len(codes) - LENGTH - 1, (32, 1), generator=generator)
    positions = starts + torch.arange(LENGTH)
    return codes[positions], codes[positions + 1]


def loss(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean over samples and moments."""
    return functional.cross_entropy(output.flatten(0, 1), y.flatten())


for method in (
    mw.methods.SyntheticBPTT(bridged=False),
    mw.methods.SyntheticBPTT(width=64),
    mw.methods.Backprop(),
):
    torch.manual_seed(0)
    layer = nn.LSTM(16, 64, batch_first=True)
    model = mw.models.RecurrentNetwork(
        layer, outputs=len(alphabet), every=True, embedding=nn.Embedding(len(alphabet), 16)
    )
    generator = torch.Generator().manual_seed(0)
    partition = mw.TimePartition(model, windows=WINDOWS, example=batch(generator)[0])
    trainer = mw.Trainer(partition, method, loss=loss, optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    for _ in range(STEPS):
        losses = trainer.step(*batch(generator))
    print(f"{method}: {sum(losses.values()):.2f} nats a character after {STEPS} steps")
