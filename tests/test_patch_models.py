"""The network on overlapping patches: how images are cut, that patches do not mix, its parts and its sizes."""

import pytest
import torch
from torch import nn

from modulewise import Partition, models
from modulewise.errors import ModulewiseError
from modulewise.models.patching import Patches


def literal_patches(x, size, stride):
    """Window after window, from the upper left corner, along rows first."""
    found = []
    for top in range(0, x.shape[2] - size + 1, stride):
        for left in range(0, x.shape[3] - size + 1, stride):
            found.append(x[:, :, top : top + size, left : left + size])
    return torch.stack(found, 2)


@pytest.mark.parametrize(
    ("sizes", "size", "stride"), [((8, 8), 4, 2), ((8, 8), 3, 1), ((9, 6), 4, 2), ((7, 7), 7, 3), ((5, 8), 1, 1)]
)
def test_patches_are_windows_in_reading_order(sizes, size, stride):
    x = torch.arange(2.0 * 3 * sizes[0] * sizes[1]).view(2, 3, *sizes)
    assert torch.equal(Patches(size, stride=stride)(x), literal_patches(x, size, stride))


def test_a_published_image_of_64_gives_7_by_7_patches_of_16():
    model = models.patches((3, 64, 64), 10, width=2)
    assert model.patches(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 49, 16, 16)


@pytest.mark.parametrize(
    ("shape", "patch", "stride", "count"),
    [
        ((1, 8, 8), 4, 2, 9),
        ((1, 28, 28), 7, 3, 64),
        ((3, 32, 32), 8, 4, 49),
        ((1, 3, 9), 3, 1, 7),
        ((2, 1, 3), 1, 1, 3),
    ],
)
def test_patches_left_out_are_a_quarter_of_the_side_and_half_overlap(shape, patch, stride, count):
    model = models.patches(shape, 10, width=2)
    assert (model.patches.size, model.patches.stride) == (patch, stride)
    assert model.patches(torch.zeros(1, *shape)).shape[2] == count


def test_a_patch_is_encoded_without_a_look_at_the_others():
    """In evaluation, where batch norm is a fixed map: change one patch, and no other encoding moves."""
    model = models.patches((1, 8, 8), 3, patch=4, stride=4, width=4).eval()
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[:, :, :4, 4:] += 1
    before, after = (model[:5](image) for image in (x, other))
    same = (before == after).flatten(3).all(3).all(1)
    assert same.tolist() == [[True, False, True, True]] * 2


def test_convolutions_equal_those_of_single_patches():
    model = models.patches((1, 8, 8), 3, patch=4, stride=2, width=4).eval()
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    together = model[:5](x)
    for p in range(9):
        alone = model[:5][1:](model.patches(x)[:, :, p : p + 1])
        assert torch.allclose(together[:, :, p : p + 1], alone, atol=1e-6)


def test_every_block_can_be_a_cut_with_one_embedding_a_patch():
    model, x = models.patches((1, 8, 8), 3, patch=4, stride=2, width=4), torch.rand(2, 1, 8, 8)
    partition = Partition(model, cuts=["patches", "conv1", "conv2", "conv3", "conv4"], example=x)
    boundaries = [part.output for part in partition.parts[:-1]]
    shapes = [(1, 9, 4, 4), (4, 9, 4, 4), (8, 9, 2, 2), (16, 9, 1, 1), (16, 9, 1, 1)]
    assert [(b.shape[1:], b.channel_axis) for b in boundaries] == [(shape, 1) for shape in shapes]


def test_parameters_equal_the_sum_by_hand():
    model = models.patches((3, 32, 32), 10, width=8)
    convolutions = 9 * (3 * 8 + 8 * 16 + 16 * 32 + 32 * 32)
    assert sum(p.numel() for p in model.parameters()) == convolutions + 2 * (8 + 16 + 32 + 32) + 32 * 10 + 10
    assert all(m.kernel_size == (1, 3, 3) for m in model.modules() if isinstance(m, nn.Conv3d))


def test_the_model_has_a_name():
    assert "patches" in models.names()
    assert isinstance(models.build("patches", shape=(1, 8, 8), classes=3).patches, Patches)


@pytest.mark.parametrize("settings", [{"patch": 9}, {"patch": 0}, {"stride": 0}, {"width": 0}])
def test_sizes_out_of_range_are_refused(settings):
    with pytest.raises(ModulewiseError, match=r"patch=.*expected a patch of 1 to 8 pixels"):
        models.patches((1, 8, 12), 10, **settings)
