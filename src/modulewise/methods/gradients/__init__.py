"""Synthetic and modified gradients: learned guesses, random projections, fixed feedback weights."""

from .critic_training import CriticTraining
from .ddg import DDG
from .direct_feedback_alignment import DirectFeedbackAlignment
from .drtp import DRTP
from .features_replay import FeaturesReplay
from .feedback_alignment import FeedbackAlignment
from .kolen_pollack import KolenPollack
from .local_critic import LocalCritic
from .node_perturbation import NodePerturbation
from .sign_symmetry import SignSymmetry
from .synthetic_bptt import SyntheticBPTT
from .synthetic_gradients import SyntheticGradients
from .synthetic_inputs import SyntheticInputs
from .weight_mirror import WeightMirror

__all__ = [
    "DDG",
    "DRTP",
    "CriticTraining",
    "DirectFeedbackAlignment",
    "FeaturesReplay",
    "FeedbackAlignment",
    "KolenPollack",
    "LocalCritic",
    "NodePerturbation",
    "SignSymmetry",
    "SyntheticBPTT",
    "SyntheticGradients",
    "SyntheticInputs",
    "WeightMirror",
]
