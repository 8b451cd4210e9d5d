"""End-to-end controls: backpropagation, with checkpointing, with another method's heads."""

from .backprop import Backprop
from .checkpointed import Checkpointed
from .deeply_supervised import DeeplySupervised

__all__ = ["Backprop", "Checkpointed", "DeeplySupervised"]
