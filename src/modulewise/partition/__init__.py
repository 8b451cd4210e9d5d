"""Cut a model: by names on the user's own forward, or a recurrent one into windows of time; checked when it is cut."""

from .boundary import Block, Boundary
from .partition import Part, Partition
from .unrolled import TimePartition, Window

AnyPartition = Partition | TimePartition
"""What a trainer trains: parts in depth, or windows of time."""

__all__ = ["AnyPartition", "Block", "Boundary", "Part", "Partition", "TimePartition", "Window"]
