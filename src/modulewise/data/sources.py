"""Image classification data from an embedded set, a folder, or a hub, as two splits of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DataError, suggest
from .files import folder_sources, hub_sources
from .images import Source, class_names, decode, label_indices

__all__ = ["Dataset", "Split", "load"]


@dataclass(frozen=True, eq=False)
class Split:
    """Samples and their labels.

    Args:
        x: (N, C, H, W) uint8 images, or any other (N, ...) tensor; floats that are images lie in [0, 1].
        y: (N,) int64 labels; (N, T) or (N, H, W) for labels of tokens or pixels.

    Raises:
        DataError: lengths differ, or labels are not int64.

    >>> len(Split(torch.zeros(3, 1, 8, 8), torch.tensor([0, 1, 2])))
    3
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if self.x.ndim < 1 or self.y.ndim < 1 or len(self.x) != len(self.y) or self.y.dtype != torch.int64:
            raise DataError(
                f"samples {tuple(self.x.shape)} and {self.y.dtype} labels {tuple(self.y.shape)} do not fit; "
                "expected as many int64 labels as samples"
            )

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device | str) -> Split:
        """The split on another device, so that batches need no transfer."""
        return Split(self.x.to(device), self.y.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split of one task.

    Args:
        name: what it was loaded by.
        train: the training split.
        test: the test split.
        classes: number of classes; labels lie in [0, classes).
        class_names: name of every class.
        shape: (C, H, W) of one image.

    Raises:
        DataError: a split is empty, a label is out of range, or samples are not of the given shape.
    """

    name: str
    train: Split
    test: Split
    classes: int
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        if len(self.class_names) != self.classes:
            raise DataError(f"{self.name}: {len(self.class_names)} class names for {self.classes} classes")
        for part, split in (("train", self.train), ("test", self.test)):
            if len(split) == 0:
                raise DataError(f"{self.name}: the {part} split is empty; expected at least one sample")
            if split.x.shape[1:] != self.shape:
                raise DataError(
                    f"{self.name}: {part} samples are {tuple(split.x.shape[1:])}, expected {self.shape}; "
                    "make all images the same size"
                )
            wrong = ((split.y < 0) | (split.y >= self.classes)).nonzero()
            if len(wrong):
                row = int(wrong[0, 0])
                raise DataError(
                    f"{self.name}: label {int(split.y[tuple(wrong[0])])} of {part} sample {row} is "
                    f"out of range; expected 0 to {self.classes - 1}"
                )


def load(name: str, *, cache: Path | None = None) -> Dataset:
    """Load a data set.

    Args:
        name: one of

            - 'digits': the 1,797 digits of scikit-learn, (1, 8, 8) floats in [0, 1], 80 % for training;
            - a folder with `train.parquet` and `test.parquet` (also `valid`, `validation` or `val`, and
              shards such as `train-00000-of-00003.parquet`) in the image schema of Hugging Face: a column
              `image` or `img`, or else the only one that holds bytes, and a column `label`, `labels` or
              `fine_label`, or else the only other one of integers or strings;
            - a folder with `train/CLASS/*.png` and `test/CLASS/*.png` (also `valid`, `validation` or `val`;
              any format that pillow reads);
            - 'hub:NAME': a data set of the Hugging Face hub in the same schema.
        cache: where downloads from the hub are kept; the usual place of `datasets` where left out.

    Returns:
        uint8 images (N, C, H, W), all gray or all RGB as the first training image is.

    Raises:
        DataError: nothing of this name, or it cannot be read; the message names file and row.

    >>> digits = load("digits")
    >>> digits.shape, digits.classes, len(digits.train), len(digits.test)
    ((1, 8, 8), 10, 1437, 360)
    """
    if name == "digits":
        return _digits()
    if name.startswith("hub:"):
        return _dataset(name, *hub_sources(name.removeprefix("hub:"), cache=cache))
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"no data set or folder {name!r}; expected 'digits', a folder or 'hub:NAME'{_closest(name, folder)}"
        )
    return _dataset(name, *folder_sources(folder))


def _closest(name: str, folder: Path) -> str:
    beside = [str(p) for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
    return suggest(name, ["digits", *beside])


def _digits() -> Dataset:
    # scikit-learn takes a second to import, which other data need not wait for.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    x = torch.from_numpy(found.images).float().unsqueeze(1) / 16
    y = torch.from_numpy(found.target).long()
    parts = train_test_split(torch.arange(len(y)).numpy(), test_size=0.2, random_state=0, stratify=y.numpy())
    train, test = (torch.from_numpy(part).sort().values for part in parts)
    names = tuple(str(name) for name in found.target_names)
    return Dataset("digits", Split(x[train], y[train]), Split(x[test], y[test]), len(names), names, (1, 8, 8))


def _dataset(name: str, train: Source, test: Source) -> Dataset:
    for part, source in (("train", train), ("test", test)):
        if source.count == 0:
            raise DataError(f"{name}: the {part} split ({source.place}) is empty; expected at least one sample")
    if train.names is not None and test.names is not None and train.names != test.names:
        raise DataError(
            f"{name}: {train.place} and {test.place} declare different class names; write both with the same ones"
        )
    x, labels = decode(train)
    shape = (x.shape[1], x.shape[2], x.shape[3])
    names = class_names(train, labels)
    x_test, labels_test = decode(test, shape=shape)
    return Dataset(
        name=name,
        train=Split(x, label_indices(train, labels, names)),
        test=Split(x_test, label_indices(test, labels_test, names)),
        classes=len(names),
        class_names=names,
        shape=shape,
    )
