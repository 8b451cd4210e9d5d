"""Feedback weights that come to mirror the weights by correlating noise with what a layer makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import final

import torch
from torch import Tensor, nn

from ..errors import MethodError
from .layerwise import WeightRule, layers_of
from .passing import ConvolutionGeometry, geometry_of
from .weights import DrawnWeights, weight_of

__all__ = ["MirroredWeights", "mirror_increment"]


def mirror_increment(weight: Tensor, noise: Tensor, geometry: ConvolutionGeometry | None = None) -> Tensor:
    """1/n sum_n y_n xi_n^T with y = W xi: for noise of variance sigma^2 its mean is sigma^2 W.

    A convolution sees noise of the size of one kernel, so that y has one position and the sum is the correlation
    that a weight gradient computes; a transposed one sees noise at one position.

    Args:
        weight: W (out, in, ...), or for a transposed convolution (in, out, ...).
        noise: xi (n, in), (n, in, *kernel), or (n, in, 1, ...) for a transposed convolution.
        geometry: of the convolution, of which groups and transposition count; None for a linear layer.

    >>> w = torch.tensor([[2.0, 0.0]])
    >>> mirror_increment(w, torch.tensor([[1.0, 3.0]]))
    tensor([[2., 6.]])
    """
    if geometry is None:
        return (noise @ weight.T).T @ noise / len(noise)
    axes = weight.dim() - 2
    one, none = [1] * axes, [0] * axes
    where = (one, none, one, geometry.transposed, none, geometry.groups)
    response = torch.ops.aten.convolution(noise, weight, None, *where)
    backward = torch.ops.aten.convolution_backward
    increment: Tensor = backward(response, noise, weight, None, *where, [False, True, False])[1]
    return increment / len(noise)


@final
class MirroredWeights(WeightRule):
    """Errors pass back by a B that learns W from noise: B <- (1 - decay) B + rate 1/n sum_n y_n xi_n^T, y = W xi.

    After every step each layer alone is fed with n samples of white Gaussian noise xi of standard deviation sigma,
    without bias or nonlinearity. The mean of B tends to (rate sigma^2 / decay) W. B starts as feedback alignment's.

    Args:
        seed: seed of B's first value, by layer name; noise comes from torch's default generator.
        rate: rate of the mirror, > 0.
        decay: of B, from 0 to 1 (excluded).
        samples: n, >= 1.
        sigma: standard deviation of the noise, > 0.
        scale: width of B's first distribution relative to torch's initial weights, > 0.

    Raises:
        MethodError: an argument is out of range.

    References:
        M. Akrout, C. Wilson, P. C. Humphreys, T. Lillicrap, D. Tweed, Deep learning without weight transport,
        NeurIPS 2019, https://arxiv.org/abs/1904.05391

    >>> rule = MirroredWeights(seed=0, rate=0.1, decay=0.1, samples=64)
    >>> list(rule.state_dict())
    []
    """

    def __init__(
        self, *, seed: int, rate: float, decay: float, samples: int, sigma: float = 1.0, scale: float = 1.0
    ) -> None:
        if not (rate > 0 and 0 <= decay < 1 and samples >= 1 and sigma > 0 and scale > 0):
            raise MethodError(
                f"rate={rate}, decay={decay}, samples={samples}, sigma={sigma}, scale={scale} were given for a weight "
                "mirror; give rate, sigma and scale above 0, decay from 0 to below 1, samples from 1"
            )
        self._rate, self._decay, self._samples, self._sigma = rate, decay, samples, sigma
        self._drawn = DrawnWeights(seed=seed, scale=scale)

    def weight(self, name: str, module: nn.Module) -> Tensor:
        """The layer's B as it is now."""
        return self._drawn.get(name, module)

    def learn(self, modules: Iterable[tuple[str, nn.Module]]) -> None:
        """The noise phase of every layer."""
        with torch.no_grad():
            for name, module in layers_of(modules).items():
                live = weight_of(module)
                geometry = geometry_of(module)
                noise = live.new_empty(self._noise_shape(live, geometry)).normal_(std=self._sigma)
                increment = mirror_increment(live, noise, geometry)
                before = self._drawn.get(name, module)
                self._drawn.set(name, (1 - self._decay) * before + self._rate * increment)

    def _noise_shape(self, weight: Tensor, geometry: ConvolutionGeometry | None) -> tuple[int, ...]:
        if geometry is None:
            return (self._samples, weight.shape[1])
        if geometry.transposed:
            return (self._samples, weight.shape[0], *[1] * (weight.dim() - 2))
        return (self._samples, weight.shape[1] * geometry.groups, *weight.shape[2:])

    def state_dict(self) -> dict[str, Tensor]:
        """B of the layers met so far, by layer name."""
        return self._drawn.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take B back; layers that the state does not name are drawn when first met."""
        self._drawn.load_state_dict(state)
