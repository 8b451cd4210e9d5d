"""Rows of encoded images and their labels, decoded into one array."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError

__all__ = ["Row", "Source", "class_names", "decode", "extra", "label_indices"]

_GRAY = frozenset({"1", "L", "LA"})
_DEEP = frozenset({"F", "I", "I;16", "I;16B", "I;16L", "I;16N"})
_MAX_CLASSES = 1_000_000

Label = int | str


@dataclass(frozen=True)
class Row:
    """One sample before decoding: where it stands, its encoded image or the file of it, its label."""

    file: str
    number: int | None
    image: bytes | Path | None
    label: Label | None

    def __str__(self) -> str:
        return self.file if self.number is None else f"{self.file}, row {self.number}"


@dataclass(frozen=True)
class Source:
    """The rows of one split.

    Args:
        place: file or folder, for messages.
        count: number of rows.
        rows: starts a pass over them.
        names: class names where the source declares them; labels are then indices of them.
    """

    place: str
    count: int
    rows: Callable[[], Iterator[Row]]
    names: tuple[str, ...] | None


def extra(package: str) -> ModuleType:
    """Import a package of the extra `data`, or say how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise DataError(
            f"reading images needs {package}, which cannot be imported; pip install 'modulewise[data]'"
        ) from error


def decode(source: Source, *, shape: tuple[int, int, int] | None = None) -> tuple[Tensor, list[Label]]:
    """Decode all images of a source.

    Args:
        source: rows, at least one.
        shape: (C, H, W) that images must have, C = 1 for gray and 3 for RGB; that of the first image where
            left out.

    Returns:
        Images (N, C, H, W) uint8, and labels as the source gives them.

    Raises:
        DataError: an image cannot be decoded, is of another size or deeper than 8 bits, is colour among gray
            ones, or has no label.
    """
    pillow = extra("PIL.Image")
    images: np.ndarray[Any, np.dtype[np.uint8]] | None = None
    labels: list[Label] = []
    for i, row in enumerate(source.rows()):
        pixels = _pixels(pillow, row, channels=None if shape is None else shape[0])
        if shape is None:
            shape = (pixels.shape[0], pixels.shape[1], pixels.shape[2])
        if pixels.shape != shape:
            raise DataError(
                f"{row}: the image is {pixels.shape[1]}x{pixels.shape[2]}, the first of the training split is "
                f"{shape[1]}x{shape[2]}; make all images the same size"
            )
        if row.label is None:
            raise DataError(f"{row}: the label is missing; expected an integer or a string")
        if images is None:
            images = np.empty((source.count, *shape), dtype=np.uint8)
        images[i] = pixels
        labels.append(row.label)
    assert images is not None, "an empty source is refused before"
    return torch.from_numpy(images), labels


def _pixels(pillow: ModuleType, row: Row, *, channels: int | None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One image, (C, H, W); gray ones become RGB where three channels are asked for, never the reverse."""
    try:
        with pillow.open(io.BytesIO(row.image) if isinstance(row.image, bytes) else row.image) as image:
            image.load()
    # Damaged bytes raise anything: OSError, SyntaxError, struct.error, DecompressionBombError.
    except Exception as error:
        raise DataError(f"{row}: the image cannot be decoded ({error}); repair or remove it") from error
    if image.mode in _DEEP:
        raise DataError(f"{row}: the image has mode {image.mode}; expected 8 bits a channel, convert it")
    gray = image.mode in _GRAY
    if channels == 1 and not gray:
        raise DataError(
            f"{row}: the image is {image.mode}, the first of the training split is gray; convert one of them"
        )
    pixels = np.asarray(image.convert("L" if gray and channels != 3 else "RGB"))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def class_names(source: Source, labels: Sequence[Label]) -> tuple[str, ...]:
    """Class names: as declared, or the sorted strings, or '0', '1', ... up to the largest integer."""
    if source.names is not None:
        return source.names
    strings = [label for label in labels if isinstance(label, str)]
    if strings:
        return tuple(sorted(set(strings)))
    largest = max(label for label in labels if isinstance(label, int))
    if largest >= _MAX_CLASSES:
        raise DataError(f"{source.place}: label {largest} is no index of a class; number classes from 0")
    return tuple(str(i) for i in range(largest + 1))


def label_indices(source: Source, labels: Sequence[Label], names: tuple[str, ...]) -> Tensor:
    """Labels (N,) as int64 indices of class names.

    Raises:
        DataError: a string is not among the class names.
    """
    index = {name: i for i, name in enumerate(names)}
    unknown = sorted({label for label in labels if isinstance(label, str) and label not in index})
    if unknown:
        raise DataError(f"{source.place}: class {unknown[0]!r} is not in the training split; remove or add it there")
    return torch.tensor([index[label] if isinstance(label, str) else label for label in labels])
