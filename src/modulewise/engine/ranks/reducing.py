"""Adding up the gradients of ranks that hold the same parts: of whole parameters at once, of pieces as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...errors import RankError
from .settings import Seat

__all__ = ["Summed", "add_up"]


def add_up(parameters: Sequence[nn.Parameter], *, group: Any, seat: Seat) -> None:
    """Replace gradients by their sums over ranks; each has its slice's share of the mean.

    Args:
        parameters: whose gradients.
        group: the ranks that hold the same parts.
        seat: of this rank, for the error.

    Raises:
        RankError: another rank did not come in time.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    for dtype in sorted({g.dtype for g in gradients}, key=str):
        same = [g for g in gradients if g.dtype is dtype]
        flat = torch.cat([g.reshape(-1) for g in same])
        try:
            dist.all_reduce(flat, group=group)
        except RuntimeError as error:
            raise RankError(
                f"{seat} waited in vain for the gradients of the ranks with the same parts "
                f"({str(error).splitlines()[0][:160]}); read their own errors, or give Ranks a longer timeout"
            ) from error
        for g, total in zip(same, flat.split([g.numel() for g in same]), strict=True):
            g.copy_(total.view(g.shape))


class Summed:
    """How `fully_shard` brings gradients to their pieces: each rank's share of the mean, added up.

    Attributes:
        weight: the share of the batch's samples that this rank has.
    """

    weight = 1.0

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Room for the message."""
        return torch.empty(size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False
    ) -> dist.Work | None:
        """Add up over the group, and leave this rank its piece."""
        input_tensor.mul_(self.weight)
        return dist.reduce_scatter_tensor(output_tensor, input_tensor, op=op, group=group, async_op=async_op)
