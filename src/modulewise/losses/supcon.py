"""The supervised contrastive loss: samples of one class attract each other, all others repel."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import MethodError
from .rows import same_class, unit_rows, widened, without_autocast

__all__ = ["supervised_contrastive"]


def supervised_contrastive(z: Tensor, y: Tensor, *, temperature: float = 0.07) -> Tensor:
    """Supervised contrastive loss of a batch, every sample against all others.

    With u_i = z_i / ||z_i||, t the temperature and P(i) the other samples of i's class:

        L = -1/N sum_i 1/|P(i)| sum_{p in P(i)} log(exp(u_i . u_p / t) / sum_{a != i} exp(u_i . u_a / t)).

    A sample alone in its class has no positive: its term is 0, and it still counts in N. So the loss and its gradient
    are 0 where no two samples share a class, as in a batch of one. Equal features give (M / N) log(N - 1), M the
    samples with a positive, and so does a batch of one class at best, in which similarities are only made equal.

    Args:
        z: (N, D); axes after the first are flattened. A sample of norm zero has similarity 0 to all others.
        y: class indices (N,).
        temperature: t > 0, default 0.07.

    Raises:
        MethodError: the temperature is not positive, or y is not one integer class per sample.

    References:
        Khosla, Teterwak, Wang, Sarna, Tian, Isola, Maschinot, Liu and Krishnan, Supervised Contrastive
        Learning, NeurIPS 2020, https://arxiv.org/abs/2004.11362

    >>> z = torch.tensor([[1.0, 0.0], [5.0, 0.0], [-1.0, 0.0], [-2.0, 0.0]])
    >>> supervised_contrastive(z, torch.tensor([0, 0, 1, 1])).item() < 1e-5
    True
    >>> round(supervised_contrastive(z, torch.tensor([0, 1, 0, 1]), temperature=1.0).item(), 4)  # log(e + 2/e) + 1
    2.2395
    """
    if not temperature > 0:
        raise MethodError(f"temperature={temperature} was given, contrast needs a positive one; the paper's is 0.07")
    same = same_class(y)
    if len(y) != len(z):
        raise MethodError(
            f"{len(z)} rows and {len(y)} labels were given, contrast needs one label per row; repeat the labels "
            "where several views of a sample are stacked"
        )
    with without_autocast(z):
        u = unit_rows(widened(z).flatten(1))
        itself = torch.eye(len(u), dtype=torch.bool, device=u.device)
        log_share = (u @ u.T / temperature).masked_fill(itself, -torch.inf).log_softmax(1)
        positive = same & ~itself
        attraction = torch.where(positive, log_share, 0.0).sum(1) / positive.sum(1).clamp_min(1)
        return -attraction.mean()
