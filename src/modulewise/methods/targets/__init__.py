"""Target propagation: parts move towards targets that learned inverses send down."""

from .auxiliary_output_difference_target_propagation import AuxiliaryOutputSDTP
from .difference_target_propagation import DifferenceTargetPropagation
from .direct_dtp import DirectDTP, DirectFeedback
from .dtp_drl import DTPDRL
from .fixed_weight_dtp import FixedWeightDTP
from .gait_prop import GaitProp
from .gauss_newton_targets import GaussNewtonTargets
from .invertible import orthogonal_
from .local_drl import LocalDRL
from .simplified_difference_target_propagation import SimplifiedDTP
from .target_prop_through_time import TargetPropThroughTime
from .target_propagation import TargetPropagation

__all__ = [
    "DTPDRL",
    "AuxiliaryOutputSDTP",
    "DifferenceTargetPropagation",
    "DirectDTP",
    "DirectFeedback",
    "FixedWeightDTP",
    "GaitProp",
    "GaussNewtonTargets",
    "LocalDRL",
    "SimplifiedDTP",
    "TargetPropThroughTime",
    "TargetPropagation",
    "orthogonal_",
]
