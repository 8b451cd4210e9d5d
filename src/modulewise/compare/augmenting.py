"""Augmentations by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from ..data import Augmentation, Compose, Crop, Cutout, Flip, Jitter
from ..errors import DataError, suggest

__all__ = ["augmentation"]

_KNOWN: Mapping[str, tuple[Callable[[int], float], Callable[[float], Augmentation]]] = MappingProxyType(
    {
        "crop": (lambda side: max(1, side // 8), lambda padding: Crop(padding=int(padding))),
        "flip": (lambda side: 0.5, lambda p: Flip(p=p)),
        "jitter": (lambda side: 0.4, lambda s: Jitter(brightness=s, contrast=s, saturation=s)),
        "cutout": (lambda side: max(1, side // 2), lambda size: Cutout(size=int(size))),
    }
)


def augmentation(words: Sequence[str], *, shape: tuple[int, int, int]) -> Augmentation | None:
    """The augmentations of a list of words, in order; None for an empty list.

    Args:
        words: `crop` (padding of an eighth of the side), `flip` (probability 0.5), `jitter` (strength 0.4), `cutout`
            (half the side), each also with its number, as in `crop:4`.
        shape: (C, H, W) of one image.

    Raises:
        DataError: a word is unknown, or its number malformed.

    >>> augmentation(["crop", "flip:0.3"], shape=(3, 32, 32))
    Compose(steps=(Crop(padding=4), Flip(p=0.3)))
    """
    steps: list[Augmentation] = []
    for word in words:
        name, colon, number = word.partition(":")
        if name not in _KNOWN:
            raise DataError(
                f"unknown augmentation {name!r}{suggest(name, _KNOWN)}; expected one of {', '.join(_KNOWN)} "
                "(normalisation is apart)"
            )
        default, make = _KNOWN[name]
        try:
            steps.append(make(float(number) if colon else default(min(shape[1:]))))
        except (ValueError, OverflowError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"augmentation {word!r} is malformed, expected {name} or {name}:NUMBER") from error
    return Compose(tuple(steps)) if steps else None
