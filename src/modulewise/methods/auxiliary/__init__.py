"""Auxiliary variables: activations become free variables, updated block by block."""

from .bcd_updates import bcd_objective
from .block_coordinate_descent import BCD

__all__ = ["BCD", "bcd_objective"]
