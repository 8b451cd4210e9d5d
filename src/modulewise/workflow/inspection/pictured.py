"""Features kept for pictures: some samples of every part, pooled, in a file beside the records."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ...errors import ModulewiseError
from ...partition import AnyPartition
from .boundaries import Reading, pooled

__all__ = ["FEATURES", "Features", "features_of", "keep_features", "kept_features"]

FEATURES = "inspect-features.safetensors"
_MOST = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Pooled features of the same samples at every part.

    Args:
        names: where the parts end.
        features: one tensor (N, D) a part.
        labels: classes (N,), or None.
    """

    names: tuple[str, ...]
    features: tuple[Tensor, ...]
    labels: Tensor | None


def features_of(reading: Reading, partition: AnyPartition, *, most: int = _MOST) -> Features:
    """The first samples of a reading, pooled.

    Args:
        reading: all outputs.
        partition: the parts, for layouts and names.
        most: samples to keep.
    """
    boundaries = [part.output for part in partition.parts]
    pairs = zip(reading.outputs, boundaries, strict=True)
    return Features(
        names=tuple("output" if boundary is None else boundary.name for boundary in boundaries),
        features=tuple(pooled(h[:most], boundary).contiguous() for h, boundary in pairs),
        labels=None if reading.labels is None else reading.labels[:most].contiguous(),
    )


def keep_features(folder: Path, reading: Reading, partition: AnyPartition) -> None:
    """Write the features of some samples beside their place, then put them there in one step."""
    kept = features_of(reading, partition)
    # A tensor's name is the index and the name of its part; safetensors' own metadata keeps strings alone.
    named = {f"{index} {name}": h for index, (name, h) in enumerate(zip(kept.names, kept.features, strict=True))}
    if kept.labels is not None:
        named["labels"] = kept.labels
    draft = folder / f".draft-{FEATURES}"
    with draft.open("wb") as file:
        file.write(save(named))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / FEATURES)


def kept_features(folder: Path) -> Features | None:
    """What `keep_features` wrote; None where nothing was.

    Raises:
        ModulewiseError: the file is damaged.
    """
    path = folder / FEATURES
    if not path.is_file():
        return None
    try:
        named = load(path.read_bytes())
        labels = named.pop("labels", None)
        parts = sorted(named, key=lambda name: int(name.partition(" ")[0]))
    except (SafetensorError, ValueError, OSError) as error:
        raise ModulewiseError(f"{path} is damaged ({str(error).splitlines()[0]}); remove it") from error
    return Features(
        names=tuple(name.partition(" ")[2] for name in parts),
        features=tuple(named[name] for name in parts),
        labels=labels,
    )
