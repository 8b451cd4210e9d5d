import pytest
import torch

from modulewise.data import Normalize
from modulewise.errors import DataError

NORMALIZE = Normalize(mean=(0.25, 0.5), std=(0.5, 2.0))


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 5), (3, 2, 4, 4)], ids=str)
def test_undone_is_the_formula_per_channel_in_any_number_of_dimensions(shape):
    x = torch.randn(shape, dtype=torch.float64)
    out = NORMALIZE.undone(x)
    assert torch.equal(out[:, 0], x[:, 0] * 0.5 + 0.25)
    assert torch.equal(out[:, 1], x[:, 1] * 2 + 0.5)


def test_undone_takes_back_what_normalize_did():
    x = torch.rand(3, 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(NORMALIZE.undone(NORMALIZE(x)), x)
    torch.testing.assert_close(NORMALIZE(NORMALIZE.undone(x)), x)


@pytest.mark.parametrize("shape", [(3, 1, 4, 4), (2,)], ids=str)
def test_undone_refuses_another_number_of_channels(shape):
    with pytest.raises(DataError, match="2 channels"):
        NORMALIZE.undone(torch.zeros(shape))
