"""Runs out of core and the same in memory, from the same initial values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from small_networks import CLASSES, CUTS, Residual, images, sgd
from torch import Tensor, nn

import modulewise as mw
from modulewise.outofcore import OutOfCore

EPOCHS = 2


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def noisy() -> nn.Module:
    """Batch normalisation and dropout in every part."""
    return Residual(dropout=0.2)


def loader(n: int = 22, **settings: Any) -> mw.data.Loader:
    return mw.data.Loader(mw.data.Split(*images(n)), batch_size=8, seed=2, **settings)


def out_of_core(
    folder: Path,
    make: Callable[[], nn.Module] = noisy,
    method: Any = None,
    cuts: Sequence[str] = CUTS,
    x: Any = None,
    **settings: Any,
) -> OutOfCore:
    partition = mw.Partition(on_meta(make), cuts=list(cuts), example=images()[0] if x is None else x)
    method = method or mw.methods.PredSim(classes=CLASSES)
    return OutOfCore(
        partition, method, folder=folder, **{"loss": F.cross_entropy, "optimizer": sgd, "seed": 4, **settings}
    )


def plain_model(folder: Path, make: Callable[[], nn.Module] = noisy) -> nn.Module:
    """An ordinary model with the values of a folder, read with safetensors alone."""
    model = make()
    state: dict[str, Tensor] = {}
    for path in sorted(folder.glob("part-*.safetensors")):
        state |= load_file(path)
    model.load_state_dict(state)
    return model


def in_memory(
    folder: Path,
    make: Callable[[], nn.Module] = noisy,
    method: Any = None,
    cuts: Sequence[str] = CUTS,
    x: Any = None,
    **settings: Any,
) -> mw.Trainer:
    """A trainer that begins with the values that a folder holds now."""
    partition = mw.Partition(plain_model(folder, make), cuts=list(cuts), example=images()[0] if x is None else x)
    method = method or mw.methods.PredSim(classes=CLASSES)
    return mw.Trainer(partition, method, **{"loss": F.cross_entropy, "optimizer": sgd, "seed": 4, **settings})
