"""What the tests of metering share: reading a split in elements, and a network small enough for arithmetic by hand."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from modulewise.metering import Category, MemoryReport


@pytest.fixture
def split() -> Callable[..., bool]:
    """Whether the peak splits as given, in elements of 4 bytes; categories left out hold nothing."""

    def check(report: MemoryReport, **expected: int) -> bool:
        wanted = {category: 4 * expected.get(category.value, 0) for category in Category}
        assert report.at_peak == wanted
        return report.peak_bytes == sum(wanted.values())

    return check


@pytest.fixture
def two_layers() -> tuple[nn.Sequential, Tensor]:
    """y = relu(W2 relu(W1 x)): x 15, W1 21, W2 14, hidden 35, output 10 elements."""
    model = nn.Sequential(nn.Linear(3, 7, bias=False), nn.ReLU(), nn.Linear(7, 2, bias=False), nn.ReLU())
    return model, torch.randn(5, 3)
