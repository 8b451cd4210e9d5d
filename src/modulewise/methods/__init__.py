"""Every method, by its name in the literature."""

from .auxiliary import BCD
from .gradients import DirectFeedbackAlignment, FeedbackAlignment, SyntheticGradients
from .proxy import DGL, AugLocal, Greedy, KernelProxy, PredSim
from .reference import Backprop, Checkpointed, DeeplySupervised
from .targets import DifferenceTargetPropagation

__all__ = [
    "BCD",
    "DGL",
    "AugLocal",
    "Backprop",
    "Checkpointed",
    "DeeplySupervised",
    "DifferenceTargetPropagation",
    "DirectFeedbackAlignment",
    "FeedbackAlignment",
    "Greedy",
    "KernelProxy",
    "PredSim",
    "SyntheticGradients",
]
