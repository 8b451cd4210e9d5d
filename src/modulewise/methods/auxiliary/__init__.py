"""Auxiliary variables: activations become free variables, updated block by block."""

from .admm import ADMM
from .auxiliary_coordinates import MAC
from .bcd_updates import bcd_objective
from .block_coordinate_descent import BCD
from .dladmm import DlADMM
from .fenchel_lifted import FenchelLifted
from .lifted_network import LiftedNetwork
from .local_propagation import LocalPropagation
from .lpom import LPOM
from .online_alternating_minimisation import OnlineAlternatingMinimisation

__all__ = [
    "ADMM",
    "BCD",
    "LPOM",
    "MAC",
    "DlADMM",
    "FenchelLifted",
    "LiftedNetwork",
    "LocalPropagation",
    "OnlineAlternatingMinimisation",
    "bcd_objective",
]
