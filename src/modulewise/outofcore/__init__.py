"""Models larger than memory: one part in memory, every other one in a folder."""

from .caching import DiskCache, HostCache, Recompute
from .training import OutOfCore

__all__ = ["DiskCache", "HostCache", "OutOfCore", "Recompute"]
