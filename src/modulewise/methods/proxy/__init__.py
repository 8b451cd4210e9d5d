"""Proxy objectives: every part minimises a loss of its own and sends no message."""

from .auglocal import AugLocal
from .dgl import DGL
from .greedy import Greedy
from .kernel_proxy import KernelProxy
from .predsim import PredSim

__all__ = ["DGL", "AugLocal", "Greedy", "KernelProxy", "PredSim"]
