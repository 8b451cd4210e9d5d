"""Cut a model: names on the user's own forward, checked when the cut is made."""

from .boundary import Block, Boundary
from .partition import Part, Partition

__all__ = ["Block", "Boundary", "Part", "Partition"]
