"""Auxiliary heads: small networks on a boundary, used only in training."""

from .classifying import HeadFactory, conv, linear, mlp, mlp_sr
from .copying import downstream
from .decoding import decoder
from .projecting import projection

__all__ = ["HeadFactory", "conv", "decoder", "downstream", "linear", "mlp", "mlp_sr", "projection"]
