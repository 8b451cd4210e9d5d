"""What all tests share: one thread, so that sums have one order everywhere; helpers beside this file importable."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
