"""Every method, by its name in the literature."""

from .auxiliary import BCD
from .gradients import DirectFeedbackAlignment, FeedbackAlignment, SyntheticGradients
from .proxy import (
    DGL,
    MAN,
    PHSIC,
    SGR,
    TRGL,
    AugLocal,
    BoostResNet,
    DeepCascade,
    ForwardForward,
    GatedLinearNetwork,
    Greedy,
    GreedyInfoMax,
    HSICBottleneck,
    InfoPro,
    KernelProxy,
    LocalErrors,
    LocalUpdates,
    LoCo,
    PredSim,
)
from .reference import Backprop, Checkpointed, DeeplySupervised
from .targets import DifferenceTargetPropagation

__all__ = [
    "BCD",
    "DGL",
    "MAN",
    "PHSIC",
    "SGR",
    "TRGL",
    "AugLocal",
    "Backprop",
    "BoostResNet",
    "Checkpointed",
    "DeepCascade",
    "DeeplySupervised",
    "DifferenceTargetPropagation",
    "DirectFeedbackAlignment",
    "FeedbackAlignment",
    "ForwardForward",
    "GatedLinearNetwork",
    "Greedy",
    "GreedyInfoMax",
    "HSICBottleneck",
    "InfoPro",
    "KernelProxy",
    "LoCo",
    "LocalErrors",
    "LocalUpdates",
    "PredSim",
    "SyntheticGradients",
]
