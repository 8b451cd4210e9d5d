"""Source parts: small networks trained on a source task, cut below their head."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn

from ... import losses
from ...data import Loader, Normalize, Split
from ...method import Method
from ...models.builtin import Shape
from ...partition import Partition
from ...seeding import preserved_generators, seed_of, set_generators
from ...trainer import Trainer

__all__ = ["BLOCKS", "Training", "part_of", "source_model", "train_source"]

BLOCKS = ("block1", "block2", "block3", "features")
"""Where a source network can be cut."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How source networks are trained, all in the same way.

    Args:
        epochs: passes per part, >= 1.
        batch_size: samples a step.
        rate: Adam's learning rate, falling to zero along a cosine.
        width: channels of the first block.
    """

    epochs: int = 8
    batch_size: int = 128
    rate: float = 2e-3
    width: int = 16


def source_model(shape: Shape, classes: int, *, width: int = 16, seed: int = 0) -> nn.Sequential:
    """Three blocks (3x3 convolution, batch norm, ReLU, 2x2 max pooling), 64 features with ReLU, linear head.

    Args:
        shape: (C, H, W) of one image, sides of 8 or more.
        classes: number of classes.
        width: channels of the first block; then 2 and 4 times as many.
        seed: of the initial weights; default generators are left alone.

    >>> [name for name, _ in source_model((1, 28, 28), 2).named_children()]
    ['block1', 'block2', 'block3', 'flatten', 'features', 'head']
    """
    with preserved_generators():
        set_generators(seed_of(seed, "model"))
        channels, height, across = shape
        chain = OrderedDict[str, nn.Module]()
        for index, out in enumerate((width, 2 * width, 4 * width), 1):
            chain[f"block{index}"] = nn.Sequential(
                nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)
            )
            channels, height, across = out, height // 2, across // 2
        chain["flatten"] = nn.Flatten()
        chain["features"] = nn.Sequential(nn.Linear(channels * height * across, 64), nn.ReLU())
        return nn.Sequential(OrderedDict(chain, head=nn.Linear(64, classes)))


def part_of(model: nn.Sequential, cut: str) -> nn.Sequential:
    """What lies below a cut, as a frozen module that shares the model's own.

    Args:
        model: a chain of named blocks.
        cut: the name of the last block.
    """
    chain = OrderedDict[str, nn.Module]()
    for name, module in model.named_children():
        chain[name] = module
        if name == cut:
            break
    return nn.Sequential(chain).eval()


def train_source(
    model: nn.Sequential,
    split: Split,
    method: Method,
    *,
    cuts: tuple[str, ...],
    training: Training,
    normalize: Normalize,
    seed: int = 0,
) -> nn.Sequential:
    """Train a source network, all parts on the same batches.

    Args:
        model: of `source_model`; the object that is trained.
        split: labelled samples of the source task.
        method: gives every part its learning signal.
        cuts: where the network is cut; none for a method that needs none.
        training: epochs, batch size, learning rate.
        normalize: what is done to images.
        seed: of heads, draws and order.
    """
    size = min(training.batch_size, len(split))
    loader = Loader(split, batch_size=size, seed=seed, drop_last=True, normalize=normalize)
    example = next(loader.indexed())[1][:4]
    trainer = Trainer(
        Partition(model, cuts=list(cuts), example=example),
        method,
        loss=losses.classification,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=training.rate),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=training.epochs),
        seed=seed,
    )
    trainer.fit(loader, epochs=training.epochs)
    return model
