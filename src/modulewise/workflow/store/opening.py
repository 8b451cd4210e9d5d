"""From an address to files: a folder, any fsspec address, or a repository of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from .files import AddressFiles, Files, LocalFiles
from .hub import HubFiles

__all__ = ["open_files"]


def open_files(address: str | Path) -> Files:
    """The files at an address.

    Args:
        address: a folder, PROTOCOL://PATH for fsspec, or hf://OWNER/NAME for a repository of the Hub.

    Raises:
        StoreError: it cannot be opened.

    >>> open_files("memory://parts").address
    'memory://parts'
    """
    text = str(address)
    protocol, slashes, path = text.partition("://")
    if not slashes:
        return LocalFiles(address)
    if protocol in ("file", "local"):
        return LocalFiles(path)
    if protocol == "hf":
        return HubFiles(path)
    return AddressFiles(text)
