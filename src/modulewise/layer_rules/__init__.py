"""How an error passes back through single layers: by another matrix than the layer's own weight."""

from .direct import DirectFeedback, projected_error
from .feedback_weights import FeedbackWeights
from .following import FollowingWeights
from .layerwise import LayerwiseRule, RuleReport, WeightRule, layers_of
from .mirrored import MirroredWeights, mirror_increment
from .passing import ConvolutionGeometry, angle, error_below, feedback_linear
from .signs import SignFeedback, SignVariant
from .weights import Feedback

__all__ = [
    "ConvolutionGeometry",
    "DirectFeedback",
    "Feedback",
    "FeedbackWeights",
    "FollowingWeights",
    "LayerwiseRule",
    "MirroredWeights",
    "RuleReport",
    "SignFeedback",
    "SignVariant",
    "WeightRule",
    "angle",
    "error_below",
    "feedback_linear",
    "layers_of",
    "mirror_increment",
    "projected_error",
]
