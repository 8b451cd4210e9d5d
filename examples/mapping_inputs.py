"""A small transformer that takes a mapping: masks and positions are side inputs, made again for every part."""

import torch
from torch import Tensor, nn
from torch.nn import functional

import modulewise as mw


class Block(nn.Module):
    """Attention and perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """(N, T, D) in and out; mask (N, 1, T)."""
        q, k, v = self.qkv(self.norm1(h)).chunk(3, dim=-1)
        h = h + self.out(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        return h + self.down(functional.gelu(self.up(self.norm2(h))))


class Encoder(nn.Module):
    """Classifies sequences of tokens of different lengths."""

    def __init__(self, words: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(words, width), nn.Embedding(64, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(4))
        self.head = nn.Linear(width, classes)

    def forward(self, ids: Tensor, attend: Tensor) -> Tensor:
        """Logits (N, C) of tokens (N, T) and which of them to attend to (N, T)."""
        mask = attend[:, None, :]  # depends on the batch alone: every block reads it
        h = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            h = block(h, mask)
        weights = attend.float() / attend.sum(1, keepdim=True)
        return self.head((h * weights[..., None]).sum(1))


torch.manual_seed(0)
lengths = torch.randint(5, 21, (128,))
x = {"ids": torch.randint(0, 50, (128, 20)), "attend": torch.arange(20) < lengths[:, None]}
y = (x["ids"][:, :5] < 25).sum(1).clamp(max=3)  # how many of the first five words are small

partition = mw.Partition(Encoder(50, 4), cuts=["blocks.0", "blocks.2"], example=x)
print(partition, end="\n\n")
method = mw.methods.DGL(classes=4)
trainer = mw.Trainer(partition, method, loss=functional.cross_entropy, optimizer=torch.optim.Adam)
for _ in range(40):
    losses = trainer.step(x, y)
print("after 40 steps:", ", ".join(f"part {part} {loss:.3f}" for part, loss in losses.items()))
print("locality:", mw.checks.locality(trainer, x, y))
