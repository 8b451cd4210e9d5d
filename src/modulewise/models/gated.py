"""Gated linear networks: every neuron predicts the target, with weights that the input picks by half-spaces."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModulewiseError
from .builtin import Shape

__all__ = ["GatedLinear", "GatedNetwork", "gln"]

_OFFSET = 0.05


class GatedLinear(nn.Module):
    """One layer, for every class a copy: log-odds w_c(z) . clip(h), one a neuron.

    Entry i of h is the log-odds of a probability p_i, which are clipped to [clip, 1 - clip]; a constant input 1
    is appended, the log-odds of e / (1 + e). c(z) is a number of `contexts` binary digits, digit k saying whether
    plane_k . z > offset_k; planes are unit vectors of random direction, offsets normal with deviation 0.05, never
    trained. Weights start at 1 / (inputs + 1), the geometric mean of what comes in.

    Args:
        inputs: entries of h, >= 1.
        units: neurons, >= 1.
        classes: copies, >= 1.
        side: entries of the side information z, >= 1.
        contexts: half-spaces a neuron, >= 0; there are 2^contexts weight vectors.
        clip: bound on the probabilities that come in, in (0, 0.5).

    >>> layer = GatedLinear(6, 5, classes=3, side=6, contexts=2, clip=0.01)
    >>> layer.weight.shape, layer(torch.zeros(4, 6), torch.zeros(4, 6)).shape
    (torch.Size([3, 5, 4, 7]), torch.Size([4, 3, 5]))
    """

    planes: Tensor
    offsets: Tensor

    def __init__(self, inputs: int, units: int, *, classes: int, side: int, contexts: int, clip: float) -> None:
        super().__init__()
        self.limit = math.log((1 - clip) / clip)
        start = torch.full((classes, units, 2**contexts, inputs + 1), 1 / (inputs + 1))
        self.weight = nn.Parameter(start)
        self.register_buffer("planes", F.normalize(torch.randn(classes, units, contexts, side), dim=-1))
        self.register_buffer("offsets", _OFFSET * torch.randn(classes, units, contexts))

    def features(self, h: Tensor) -> Tensor:
        """What the weights are multiplied with: h (..., inputs) clipped, and a constant 1."""
        return F.pad(h.clamp(-self.limit, self.limit), (0, 1), value=1.0)

    def context(self, z: Tensor) -> Tensor:
        """c(z), (N, classes, units), of side information (N, side)."""
        classes, units, contexts, side = self.planes.shape
        distances = (z @ self.planes.view(-1, side).T).view(len(z), classes, units, contexts)
        digits = 2 ** torch.arange(contexts, device=z.device)
        return ((distances > self.offsets) * digits).sum(-1)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """Log-odds (N, classes, units).

        Args:
            h: log-odds (N, inputs), the same for every class, or (N, classes, inputs).
            z: side information (N, side).
        """
        features = self.features(h)
        # All contexts at once: to gather each sample's weights would take inputs / 2^contexts times the memory.
        kind = "ni,cuki->ncuk" if features.dim() == 2 else "nci,cuki->ncuk"
        every = torch.einsum(kind, features, self.weight)
        return every.gather(-1, self.context(z).unsqueeze(-1)).squeeze(-1)

    def extra_repr(self) -> str:
        """Sizes, for print."""
        classes, units, contexts, inputs = self.weight.shape
        return f"inputs={inputs - 1}, units={units}, classes={classes}, weights per neuron={contexts}"


class GatedNetwork(nn.Module):
    """A chain of gated layers and a head of one neuron a class; the input is every layer's side information.

    Args:
        shape: (C, H, W) of one image.
        classes: number of classes.
        widths: neurons of the hidden layers.
        contexts: half-spaces a neuron.
        clip: bound on probabilities between layers.
    """

    def __init__(self, shape: Shape, classes: int, *, widths: tuple[int, ...], contexts: int, clip: float) -> None:
        super().__init__()
        side = math.prod(shape)
        names = (*(f"layer{index}" for index in range(1, len(widths) + 1)), "head")
        inputs = side
        for name, units in zip(names, (*widths, 1), strict=True):
            layer = GatedLinear(inputs, units, classes=classes, side=side, contexts=contexts, clip=clip)
            self.add_module(name, layer)
            inputs = units

    @property
    def layers(self) -> dict[str, GatedLinear]:
        """The gated layers by name, in order."""
        return {name: layer for name, layer in self.named_children() if isinstance(layer, GatedLinear)}

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to log-odds (N, classes)."""
        z = h = x.flatten(1)  # no module: its output would be a view of x that later parts read
        for layer in self.layers.values():
            h = layer(h, z)
        return h.squeeze(-1)


def gln(
    shape: Shape, classes: int, *, widths: tuple[int, ...] = (50, 25), contexts: int = 4, clip: float = 0.01
) -> GatedNetwork:
    """A gated linear network: layer1, layer2, ... and a head, every neuron a prediction of the class against the rest.

    The input x, flattened, is the side information of every layer and, read as log-odds, the first layer's input:
    the base predictions are sigmoid(x). Give standardised images. Softmax of the output is no probability; the
    sigmoid of each column is one.

    Args:
        shape: (C, H, W) of one image.
        classes: number of classes; a copy of the network for each.
        widths: neurons of the hidden layers, each >= 1, default (50, 25).
        contexts: half-spaces a neuron, >= 0, default 4; weights grow with 2^contexts.
        clip: probabilities between layers are kept in [clip, 1 - clip], in (0, 0.5), default 0.01.

    Raises:
        ModulewiseError: a number is out of range.

    References:
        J. Veness et al., Gated Linear Networks, AAAI 2021, https://arxiv.org/abs/1910.01526

    >>> [name for name, _ in gln((1, 8, 8), 10).named_children()]
    ['layer1', 'layer2', 'head']
    """
    if min(widths, default=1) < 1 or contexts < 0 or not 0 < clip < 0.5:
        raise ModulewiseError(
            f"widths={widths}, contexts={contexts}, clip={clip} were given; expected widths of at least 1, contexts "
            "of at least 0 and a clip between 0 and 0.5"
        )
    return GatedNetwork(shape, classes, widths=widths, contexts=contexts, clip=clip)
