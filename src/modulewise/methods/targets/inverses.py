"""Networks that map what left a part back to what entered it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...objective import Site
from ...partition.boundary import Boundary

__all__ = ["FixedFeedback", "Inverse", "TransposedFeedback", "flat_output", "inverse_at", "last_activation"]

_ACTIVATIONS = (
    nn.Tanh,
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Softplus,
    nn.Sigmoid,
    nn.Hardtanh,
)


class Inverse(nn.Module):
    """A perceptron with one tanh layer; for images two 3x3 convolutions with a tanh between, after resizing.

    Images (N, C, H, W) or (N, H, W, C): resize to the input's height and width (nearest), conv 3x3, tanh,
    conv 3x3. Positions that match one to one (tokens): linear, tanh, linear for every position. Anything
    else: the same on all elements of a sample.

    Args:
        input: what entered the part; the shape to give.
        output: what left the part; the shape that is given.
        width: channels of the hidden layer; None for as many as enter the part.

    >>> import torch
    >>> inverse = Inverse(Boundary("in", (2, 3, 8, 8)), Boundary("out", (2, 6, 4, 4)))
    >>> inverse(torch.ones(5, 6, 4, 4)).shape
    torch.Size([5, 3, 8, 8])
    """

    def __init__(self, input: Boundary, output: Boundary, *, width: int | None = None) -> None:
        super().__init__()
        self._input, self._output = input, output
        self._images = len(input.spatial) == len(output.spatial) == 2
        self._positions = not self._images and input.spatial == output.spatial
        local = self._images or self._positions
        below, above = (input.channels, output.channels) if local else (input.features, output.features)
        hidden = width or below
        if self._images:
            first: nn.Module = nn.Conv2d(above, hidden, 3, padding=1)
            second: nn.Module = nn.Conv2d(hidden, below, 3, padding=1)
        else:
            first, second = nn.Linear(above, hidden), nn.Linear(hidden, below)
        self.layers = nn.Sequential(first, nn.Tanh(), second).to(input.dtype)

    def forward(self, h: Tensor) -> Tensor:
        """What may have entered the part, (N, ...) like its input."""
        if self._images:
            h = self._output.channels_first(h)
            if self._input.spatial != self._output.spatial:
                h = F.interpolate(h, size=self._input.spatial, mode="nearest")
            back: Tensor = self.layers(h)
            return back.movedim(1, self._input.channel_axis)
        if self._positions:
            back = self.layers(h.movedim(self._output.channel_axis, -1))
            return back.movedim(-1, self._input.channel_axis)
        back = self.layers(h.flatten(1))
        return back.reshape(len(h), *self._input.shape[1:])


def flat_output(input: Boundary, outputs: int) -> Boundary:
    """The model's output as a boundary (N, E): what the inverse of the last part is given.

    >>> flat_output(Boundary("in", (2, 8)), 3).shape
    (2, 3)
    """
    return Boundary("", (input.shape[0], outputs), input.dtype)


def inverse_at(
    site: Site, made: Callable[[Site], nn.Module] | None, *, outputs: int, width: int | None
) -> nn.Module | None:
    """The inverse of a part: made by the caller, or an `Inverse`; None for the first part, which has nothing below it.

    Args:
        site: where the part sits.
        made: site -> module back to what entered the part; None for the default.
        outputs: elements of one sample of what the last part's inverse reads, >= 1.
        width: channels of the default's hidden layer; None for as many as enter the part.

    >>> site = Site(1, 2, Boundary("in", (2, 8)), None, loss=F.cross_entropy)
    >>> inverse_at(site, None, outputs=3, width=None)(torch.ones(5, 3)).shape
    torch.Size([5, 8])
    """
    if site.input is None:
        return None
    if made is not None:
        return made(site)
    return Inverse(site.input, flat_output(site.input, outputs) if site.last else site.boundary, width=width)


def last_activation(modules: Sequence[tuple[str, nn.Module]]) -> nn.Module:
    """A copy of the last activation among the (name, module) pairs of a part and what is inside them, or the identity.

    >>> last_activation([("fc", nn.Sequential(nn.Linear(2, 2), nn.ELU(0.5)))])
    ELU(alpha=0.5)
    """
    found = [inner for _, module in modules for inner in module.modules() if type(inner) in _ACTIVATIONS]
    if not found:
        return nn.Identity()
    made = copy.deepcopy(found[-1])
    if hasattr(made, "inplace"):
        setattr(made, "inplace", False)  # noqa: B010 - plain assignment is checked as one of a submodule
    return made


class TransposedFeedback(nn.Module):
    """g(h) = B act(h), without bias: its Jacobian B act'(h) can be the transpose of that of act(W x) where act' agrees.

    Images (N, C, H, W) or (N, H, W, C): act, resizing to the input's height and width (nearest), conv 3x3. Positions
    that match one to one: the same linear map for every position. Anything else: one on all elements of a sample.

    Args:
        input: what entered the part; the shape to give.
        output: what left the part; the shape that is given.
        modules: (name, module) pairs of the part, whose last activation is used; the identity where there is none.

    >>> feedback = TransposedFeedback(Boundary("in", (2, 3, 8, 8)), Boundary("out", (2, 6, 4, 4)))
    >>> feedback(torch.ones(5, 6, 4, 4)).shape
    torch.Size([5, 3, 8, 8])
    """

    def __init__(self, input: Boundary, output: Boundary, *, modules: Sequence[tuple[str, nn.Module]] = ()) -> None:
        super().__init__()
        self._input, self._output = input, output
        self._images = len(input.spatial) == len(output.spatial) == 2
        self._positions = not self._images and input.spatial == output.spatial
        self.activation = last_activation(modules)
        if self._images:
            self.linear: nn.Module = nn.Conv2d(output.channels, input.channels, 3, padding=1, bias=False)
        elif self._positions:
            self.linear = nn.Linear(output.channels, input.channels, bias=False)
        else:
            self.linear = nn.Linear(output.features, input.features, bias=False)
        self.linear.to(input.dtype)

    def forward(self, h: Tensor) -> Tensor:
        """What comes back, (N, ...) like the part's input."""
        h = self.activation(h)
        if self._images:
            h = self._output.channels_first(h)
            if self._input.spatial != self._output.spatial:
                h = F.interpolate(h, size=self._input.spatial, mode="nearest")
            back: Tensor = self.linear(h)
            return back.movedim(1, self._input.channel_axis)
        if self._positions:
            back = self.linear(h.movedim(self._output.channel_axis, -1))
            return back.movedim(-1, self._input.channel_axis)
        back = self.linear(h.flatten(1))
        return back.reshape(len(h), *self._input.shape[1:])


class FixedFeedback(nn.Module):
    """tanh(B h) on all elements of a sample, B drawn once from the uniform distribution on [-scale, scale].

    Args:
        input: what entered the part; the shape to give.
        output: what left the part; the shape that is given.
        scale: half the width of the distribution, > 0.

    >>> FixedFeedback(Boundary("in", (2, 3, 4, 4)), Boundary("out", (2, 6)), scale=0.1)(torch.ones(5, 6)).shape
    torch.Size([5, 3, 4, 4])
    """

    weight: Tensor

    def __init__(self, input: Boundary, output: Boundary, *, scale: float) -> None:
        super().__init__()
        self._shape = input.shape[1:]
        drawn = (torch.rand(input.features, output.features) * 2 - 1) * scale
        self.register_buffer("weight", drawn.to(input.dtype))

    def forward(self, h: Tensor) -> Tensor:
        """What comes back, (N, ...) like the part's input."""
        back = torch.tanh(h.flatten(1).to(self.weight.dtype) @ self.weight.T)
        return back.reshape(len(h), *self._shape).to(h.dtype)
