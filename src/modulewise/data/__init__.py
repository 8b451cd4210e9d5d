"""Read data, feed it in a reproducible order, augment it in batches on the device."""

from .augment import Augmentation, Compose, Crop, Cutout, Flip, Jitter, Normalize, normalization
from .loader import Loader
from .sources import Dataset, Split, load

__all__ = [
    "Augmentation",
    "Compose",
    "Crop",
    "Cutout",
    "Dataset",
    "Flip",
    "Jitter",
    "Loader",
    "Normalize",
    "Split",
    "load",
    "normalization",
]
