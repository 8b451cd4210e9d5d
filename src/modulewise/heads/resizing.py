"""A convolution of a resized map, without the resized map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import map_layer

__all__ = ["ResizedConvolution", "resized_convolution", "resizing_matrices"]

_MODE = {1: "linear", 2: "bilinear", 3: "trilinear"}


def resizing_matrices(spatial: Sequence[int], sizes: Sequence[int], *, kernel: int) -> list[Tensor]:
    """For every axis, what stands between a position and a resized position under every tap of a kernel.

    M_a[j, s, p] = U_a[p + j - kernel // 2, s], 0 outside the map, with U_a the interpolation of axis a, corners
    aligned; shape (kernel * spatial[a], sizes[a]), float64.
    """
    found = []
    for source, target in zip(spatial, sizes, strict=True):
        resize = F.interpolate(
            torch.eye(source, dtype=torch.float64)[:, None], size=target, mode="linear", align_corners=True
        )[:, 0]
        margin = kernel // 2
        padded = F.pad(resize, (margin, margin))
        found.append(torch.stack([padded[:, j : j + target] for j in range(kernel)]).flatten(0, 1))
    return found


def resized_convolution(h: Tensor, weight: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """conv(resize(h)) with the taps applied first: sum_j shift_j U (W_j h), where U and the shifts act on axes alone.

    Args:
        h: (N, C, *spatial).
        weight: (outputs, C, *kernel), of a convolution that keeps sizes.
        matrices: of `resizing_matrices`.

    Returns:
        (N, outputs, *sizes), without bias.
    """
    spatial, kernel = h.shape[2:], weight.shape[2:]
    taps = weight.movedim(1, -1).flatten(0, -2) @ h.flatten(2)  # (N, outputs * kernel, positions)
    t = taps.view(len(h), weight.shape[0], *kernel, *spatial)
    axes = len(spatial)
    order = [2 + offset for axis in range(axes) for offset in (axis, axes + axis)]
    t = t.permute(0, 1, *order)  # (N, outputs, kernel of axis 1, positions of axis 1, kernel of axis 2, ...)
    for matrix in reversed(matrices):
        t = (t.flatten(-2) @ matrix).movedim(-1, 2)
    return t


class ResizedConvolution(nn.Module):
    """Multilinear resizing of (N, C, *spatial) to fixed sizes, corners aligned, and a convolution that keeps sizes.

    Args:
        spatial: sizes that come in; others are resized first and convolved then.
        sizes: sizes that go out.
        channels: that come in.
        outputs: channels that go out.
        kernel: odd size of the convolution.
    """

    def __init__(
        self, spatial: Sequence[int], sizes: Sequence[int], *, channels: int, outputs: int, kernel: int
    ) -> None:
        super().__init__()
        self.spatial, self.sizes = tuple(spatial), tuple(sizes)
        self.convolution = map_layer(len(sizes), channels, outputs, kernel=kernel, bias=False)
        for axis, matrix in enumerate(resizing_matrices(spatial, sizes, kernel=kernel)):
            self.register_buffer(f"axis{axis}", matrix.to(torch.get_default_dtype()), persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        """(N, C, *spatial) -> (N, outputs, *sizes)."""
        if tuple(h.shape[2:]) == self.sizes:
            return self.convolution(h)
        if tuple(h.shape[2:]) == self.spatial and self._grows():
            matrices = [self.get_buffer(f"axis{axis}") for axis in range(len(self.sizes))]
            return resized_convolution(h, self.convolution.get_parameter("weight"), matrices)
        mode = _MODE[len(self.sizes)]
        return self.convolution(F.interpolate(h, size=self.sizes, mode=mode, align_corners=True))

    def _grows(self) -> bool:
        """Whether there are so many more positions afterwards that it pays to apply the taps before."""
        return torch.Size(self.sizes).numel() >= 2 * torch.Size(self.spatial).numel()
