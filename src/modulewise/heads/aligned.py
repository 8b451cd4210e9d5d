"""A linear layer that learns by feedback alignment: no error passes back through its weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layer_rules import feedback_linear

__all__ = ["AlignedLinear"]


class AlignedLinear(nn.Module):
    """y = W h + b, whose error reaches h by a fixed random B in place of W: delta_h = B^T delta_y.

    W and b start at zero and follow the chain rule; B is a buffer, drawn from U(-a, a), a = 1 / sqrt(inputs).

    Args:
        inputs: features of h.
        outputs: features of y.

    References:
        T. P. Lillicrap, D. Cownden, D. B. Tweed, C. J. Akerman, Random synaptic feedback weights support
        error backpropagation for deep learning, Nature Communications 2016,
        https://doi.org/10.1038/ncomms13276

    >>> layer, h = AlignedLinear(3, 2), torch.ones(1, 3, requires_grad=True)
    >>> layer(h).sum().backward()
    >>> torch.equal(h.grad, torch.ones(1, 2) @ layer.feedback)
    True
    """

    feedback: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("feedback", (torch.rand(outputs, inputs) * 2 - 1) / inputs**0.5)

    def forward(self, h: Tensor) -> Tensor:
        """(N, inputs) -> (N, outputs)."""
        return feedback_linear(h, self.weight, self.bias, self.feedback)
