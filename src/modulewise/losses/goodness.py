"""The contrast of goodness: squared activity is high on positive samples and low on negative ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .rows import widened

__all__ = ["goodness", "goodness_contrast"]


def goodness(h: Tensor) -> Tensor:
    """Mean squared activity of every sample, (N, ...) -> (N,).

    >>> goodness(torch.tensor([[1.0, 3.0]]))
    tensor([5.])
    """
    return widened(h).flatten(1).square().mean(1)


def goodness_contrast(positive: Tensor, negative: Tensor, *, threshold: float = 1.0) -> Tensor:
    """Cross-entropy of telling positive samples from negative ones by their goodness g.

    mean over all samples of softplus(threshold - g) for positive and softplus(g - threshold) for negative ones: the
    negative log-likelihood of p(positive) = sigmoid(g - threshold).

    Args:
        positive: h of positive samples, (N, ...).
        negative: h of negative samples, (M, ...).
        threshold: goodness at which both are equally likely.

    References:
        G. Hinton, The Forward-Forward Algorithm: Some Preliminary Investigations, arXiv 2022,
        https://arxiv.org/abs/2212.13345

    >>> h = torch.ones(2, 3)
    >>> goodness_contrast(h, h).item() == torch.tensor(2.0).log().item()
    True
    """
    high, low = threshold - goodness(positive), goodness(negative) - threshold
    return F.softplus(torch.cat([high, low])).mean()
