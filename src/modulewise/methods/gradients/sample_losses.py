"""The task loss of every sample by itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.func import vmap  # type: ignore[attr-defined,unused-ignore]

from ...errors import MethodError
from ...objective import Loss
from ...partition.tree import map_tensors

__all__ = ["sample_losses"]


def sample_losses(loss: Loss, output: Any, y: Any) -> Tensor:
    """The loss of every sample, (N,): loss(output_n, y_n) on batches of one.

    Their mean is the loss of the batch wherever that is a mean over samples of equal weight.

    Args:
        loss: loss(output, y) -> scalar, made of torch operations that do not look at values.
        output: raw output of the model, (N, ...), a tensor or containers of tensors.
        y: labels (N, ...).

    Raises:
        MethodError: the loss cannot be taken sample by sample.

    >>> import torch
    >>> sample_losses(torch.nn.functional.mse_loss, torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))
    tensor([1., 9.])
    """

    def one(output: Any, y: Any) -> Tensor:
        return loss(map_tensors(lambda t: t.unsqueeze(0), output), map_tensors(lambda t: t.unsqueeze(0), y))

    try:
        found: Tensor = vmap(one, randomness="different")(output, y)
    except (RuntimeError, ValueError, TypeError) as error:
        raise MethodError(
            f"the loss of single samples is needed, and taking it failed ({str(error).splitlines()[0][:120]}); give a "
            "loss of torch operations on (output, y) that neither reads values nor fixes the batch size"
        ) from error
    if found.dim() != 1:
        raise MethodError(
            f"loss= gave {tuple(found.shape[1:])} values for one sample; give a loss that returns a scalar"
        )
    return found
