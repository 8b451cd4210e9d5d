"""Proxy objectives: every part minimises a loss of its own."""

from .auglocal import AugLocal
from .boostresnet import BoostResNet
from .deep_cascade import DeepCascade
from .dgl import DGL
from .forward_forward import ForwardForward
from .gated_linear_network import GatedLinearNetwork
from .greedy import Greedy
from .greedy_infomax import GreedyInfoMax
from .hsic_bottleneck import HSICBottleneck
from .infopro import InfoPro
from .kernel_proxy import KernelProxy
from .local_errors import LocalErrors
from .local_updates import LocalUpdates
from .loco import LoCo
from .man import MAN
from .phsic import PHSIC
from .predsim import PredSim
from .sgr import SGR
from .trgl import TRGL

__all__ = [
    "DGL",
    "MAN",
    "PHSIC",
    "SGR",
    "TRGL",
    "AugLocal",
    "BoostResNet",
    "DeepCascade",
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
]
