"""Bytes as people write them, in powers of 1024."""

from __future__ import annotations

import re

from ..errors import ModulewiseError

__all__ = ["read_size", "size_text"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def read_size(text: str) -> int:
    """Bytes of a size such as 16GiB, 512MiB or 80GB (a power of 1000).

    Raises:
        ModulewiseError: it is no positive size.

    >>> read_size("1.5KiB"), read_size("2GB")
    (1536, 2000000000)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if match is None or (match[3] and not match[2]):
        raise ModulewiseError(f"{text!r} is no size, expected a number and a unit, such as 16GiB or 512MiB")
    found = int(float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2].upper() or " "))
    if found < 1:
        raise ModulewiseError(f"{text!r} is no size, expected at least one byte")
    return found


def size_text(count: float) -> str:
    """Bytes for people.

    >>> size_text(1536), size_text(17_179_869_184), size_text(12)
    ('1.5 KiB', '16 GiB', '12 B')
    """
    for unit in _UNITS[:-1]:
        if count < 1024:
            return f"{count:.3g} {unit}" if count < 1000 else f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.3g} {_UNITS[-1]}" if count < 1000 else f"{count:,.0f} {_UNITS[-1]}"
