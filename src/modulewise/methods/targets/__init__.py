"""Target propagation: parts move towards targets that learned inverses send down."""

from .difference_target_propagation import DifferenceTargetPropagation

__all__ = ["DifferenceTargetPropagation"]
