"""A convolution of a resized map: the taps may act before the resizing."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from modulewise.heads.resizing import ResizedConvolution, resized_convolution, resizing_matrices

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def literal(h: torch.Tensor, weight: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """Resize, then convolve, in plain torch."""
    resized = functional.interpolate(h, size=sizes, mode=MODES[len(sizes)], align_corners=True)
    return CONVOLUTIONS[len(sizes)](resized, weight, padding=weight.shape[-1] // 2)


@pytest.mark.parametrize(
    ("spatial", "sizes"), [((3,), (8,)), ((4, 3), (8, 9)), ((5, 2), (5, 7)), ((1, 1), (4, 4)), ((2, 3, 2), (4, 5, 6))]
)
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_taps_first_is_the_convolution_of_the_resized_map_and_so_are_its_gradients(spatial, sizes, kernel):
    h = torch.randn(2, 3, *spatial, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, *[kernel] * len(sizes), dtype=torch.float64, requires_grad=True)
    matrices = resizing_matrices(spatial, sizes, kernel=kernel)
    ours, theirs = resized_convolution(h, weight, matrices), literal(h, weight, sizes)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    upstream = torch.randn_like(theirs)
    gradients = [torch.autograd.grad(output, (h, weight), upstream) for output in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("spatial", [(4, 4), (8, 8), (6, 7), (10, 9)])
def test_the_module_gives_the_same_for_sizes_that_grow_stay_shrink_or_were_not_foreseen(spatial):
    module = ResizedConvolution((4, 4), (8, 8), channels=3, outputs=5, kernel=3).double()
    h = torch.randn(2, 3, *spatial, dtype=torch.float64)
    torch.testing.assert_close(module(h), literal(h, module.convolution.weight, (8, 8)), rtol=1e-5, atol=1e-5)


def test_what_is_saved_is_a_convolution():
    module = ResizedConvolution((4, 4), (8, 8), channels=3, outputs=5, kernel=3)
    assert {name: tuple(t.shape) for name, t in module.state_dict().items()} == {"convolution.weight": (5, 3, 3, 3)}
