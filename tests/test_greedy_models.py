"""The network of greedy layerwise learning: where it samples down, that nothing is lost, its head."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import modulewise as mw
from modulewise.errors import ModulewiseError
from modulewise.models import greedy_cnn


def children(model):
    return [name for name, _ in model.named_children()]


@given(seed=st.integers(0, 999), channels=st.integers(1, 3), half=st.integers(1, 4), side=st.integers(1, 4))
@settings(max_examples=20, deadline=None, database=None)
def test_downsampling_is_a_bijection_the_inverse_gives_the_input_back(seed, channels, half, side):
    x = torch.randn(2, channels, 2 * half, 2 * side, generator=torch.Generator().manual_seed(seed))
    down = greedy_cnn((channels, 2 * half, 2 * side), 3, width=2, blocks=1, down=(1,)).down1
    h = down(x)
    assert h.shape == (2, 4 * channels, half, side)
    assert torch.equal(nn.PixelShuffle(2)(h), x)
    assert torch.equal(down(nn.PixelShuffle(2)(h)), h)


def test_downsampling_puts_each_block_of_2x2_pixels_at_one_position():
    x = torch.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6)
    h = greedy_cnn((2, 4, 6), 3, width=2, blocks=1, down=(1,)).down1(x)
    for c in range(2):
        for i in range(2):
            for j in range(3):
                block = [float(x[0, c, 2 * i + a, 2 * j + b]) for a in range(2) for b in range(2)]
                assert h[0, 4 * c : 4 * c + 4, i, j].tolist() == block


def test_published_networks_for_cifar():
    with torch.device("meta"):
        deep = greedy_cnn((3, 32, 32), 10)
        shallow = greedy_cnn((3, 32, 32), 10, width=256, blocks=5, down=(3, 4), normed=False)
    assert children(deep) == ["conv1", "conv2", "down3", "conv3", "conv4", "pool", "flatten", "head"]
    shapes = [tuple(m.weight.shape[:2]) for m in deep.modules() if isinstance(m, nn.Conv2d)]
    assert shapes == [(128, 3), (128, 128), (256, 512), (256, 256)]
    assert deep.head.in_features == 4 * 256
    shapes = [tuple(m.weight.shape[:2]) for m in shallow.modules() if isinstance(m, nn.Conv2d)]
    assert shapes == [(256, 3), (256, 256), (512, 1024), (1024, 2048), (1024, 1024)]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in shallow.modules())
    assert all(m.bias is not None for m in shallow.modules() if isinstance(m, nn.Conv2d))


def test_max_pooling_in_its_place_keeps_channels():
    model = greedy_cnn((3, 8, 8), 10, width=4, invertible=False)
    assert isinstance(model.down3, nn.MaxPool2d)
    assert model.conv3.conv.weight.shape == (8, 4, 3, 3)
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("shape", [(1, 7, 8), (1, 8, 7), (1, 1, 1)])
def test_odd_sides_are_not_sampled_down(shape):
    model = greedy_cnn(shape, 10, width=4)
    assert "down3" not in children(model)
    assert model(torch.rand(2, *shape)).shape == (2, 10)


def test_the_head_is_linear_on_the_means_of_four_quarters():
    model = greedy_cnn((1, 8, 8), 5, width=3, blocks=1, down=()).eval()
    x = torch.rand(2, 1, 8, 8)
    h = model.conv1(x).detach()
    for n in range(2):
        quarters = [float(h[n, c, i : i + 4, j : j + 4].mean()) for c in range(3) for i in (0, 4) for j in (0, 4)]
        expected = model.head.weight @ torch.tensor(quarters) + model.head.bias
        assert torch.allclose(model(x)[n], expected, atol=1e-6)


def test_a_cut_above_each_block_leaves_downsampling_to_the_next_part():
    model = greedy_cnn((3, 8, 8), 10, width=4)
    x = torch.rand(4, 3, 8, 8)
    partition = mw.Partition(model, cuts=["conv1", "conv2", "conv3"], example=x)
    assert [part.output.shape for part in partition.parts[:3]] == [(4, 4, 8, 8), (4, 4, 8, 8), (4, 8, 4, 4)]
    assert next(name for name, _ in partition.part(2).modules()) == "down3"


@pytest.mark.parametrize("options", [{"width": 0}, {"blocks": 0}, {"down": (0,)}, {"blocks": 2, "down": (3,)}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ModulewiseError, match="expected"):
        greedy_cnn((3, 8, 8), 10, **options)


def test_greedy_cnn_is_a_model_by_name():
    with torch.device("meta"):
        assert str(mw.models.build("greedy-cnn", shape=(3, 8, 8), classes=4)) == str(greedy_cnn((3, 8, 8), 4))
