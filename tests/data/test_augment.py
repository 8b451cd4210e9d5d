"""Batched augmentations against a literal loop over samples that makes the same draws."""

import pytest
import torch

from modulewise.data import Compose, Crop, Cutout, Flip, Jitter, Normalize, Split, normalization
from modulewise.errors import DataError


def generator():
    return torch.Generator().manual_seed(7)


def images(channels=3, count=16, height=6, width=5):
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(1))


def test_crop_equals_slicing_every_padded_sample():
    x, g = images(), generator()
    rows = torch.randint(5, (16, 1), generator=g).flatten()
    columns = torch.randint(5, (16, 1), generator=g).flatten()
    expected = []
    for sample, row, column in zip(x, rows, columns, strict=True):
        padded = torch.zeros(3, 6 + 4, 5 + 4)
        padded[:, 2:8, 2:7] = sample
        expected.append(padded[:, row : row + 6, column : column + 5])
    assert torch.equal(Crop(padding=2)(x, generator=generator()), torch.stack(expected))
    assert len(set(zip(rows.tolist(), columns.tolist(), strict=True))) > 5


def test_crop_without_padding_is_the_identity():
    assert torch.equal(Crop(padding=0)(images(), generator=generator()), images())


def test_flip_equals_mirroring_the_drawn_samples():
    x = images()
    mirrored = torch.rand(1, 16, generator=generator())[0] < 0.5
    expected = torch.stack([s.flip(2) if m else s for s, m in zip(x, mirrored, strict=True)])
    assert torch.equal(Flip(p=0.5)(x, generator=generator()), expected)
    assert 0 < mirrored.sum() < 16


def test_flip_never_and_always():
    assert torch.equal(Flip(p=0.0)(images(), generator=generator()), images())
    assert torch.equal(Flip(p=1.0)(images(), generator=generator()), images().flip(-1))


def test_cutout_equals_zeroing_pixel_by_pixel():
    x, g = images(), generator()
    rows = torch.randint(6, (16, 1), generator=g).flatten()
    columns = torch.randint(5, (16, 1), generator=g).flatten()
    expected = x.clone()
    for n in range(16):
        for i in range(6):
            for j in range(5):
                if -1 <= i - rows[n] < 2 and -1 <= j - columns[n] < 2:
                    expected[n, :, i, j] = 0
    assert torch.equal(Cutout(size=3)(x, generator=generator()), expected)


def luma(sample):
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64) if len(sample) == 3 else None
    return sample.mean(0) if weights is None else torch.einsum("c,chw->hw", weights, sample)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_jitter_equals_a_float64_loop_over_samples(channels):
    x = images(channels)
    draws = torch.rand(3, 16, generator=generator()).double()
    expected = []
    for n, sample in enumerate(x.double()):
        brightness, contrast, saturation = (
            0.6 + draws[0, n] * 0.8,
            draws[1, n] * 2.5,  # strength 1.5: from max(0, -0.5) to 2.5
            0.8 + draws[2, n] * 0.4,
        )
        sample = (sample * brightness).clamp(0, 1)
        sample = (contrast * sample + (1 - contrast) * luma(sample).mean()).clamp(0, 1)
        if channels > 1:
            sample = (saturation * sample + (1 - saturation) * luma(sample)).clamp(0, 1)
        expected.append(sample)
    out = Jitter(brightness=0.4, contrast=1.5, saturation=0.2)(x, generator=generator())
    torch.testing.assert_close(out.double(), torch.stack(expected), rtol=0, atol=1e-6)


def test_saturation_alone_uses_the_third_draw_whatever_the_other_strengths():
    x = images()
    factor = 0.7 + torch.rand(3, 16, generator=generator())[2].view(16, 1, 1, 1) * 0.6
    gray = torch.stack([luma(sample) for sample in x.double()])[:, None]
    expected = (factor * x + (1 - factor) * gray).clamp(0, 1)
    out = Jitter(saturation=0.3)(x, generator=generator())
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-6)


def test_normalize_is_the_formula_per_channel_in_any_number_of_dimensions():
    x = images(2)
    out = Normalize(mean=(0.25, 0.5), std=(0.5, 2.0))(x)
    assert torch.equal(out[:, 0], (x[:, 0] - 0.25) / 0.5)
    assert torch.equal(out[:, 1], (x[:, 1] - 0.5) / 2)
    assert torch.equal(Normalize(mean=(0.25, 0.5), std=(0.5, 2.0))(x[..., 0, 0]), out[..., 0, 0])


def test_compose_feeds_one_generator_through_all_steps_in_order():
    g = generator()
    by_hand = Flip()(Crop(padding=2)(images(), generator=g), generator=g)
    composed = Compose((Crop(padding=2), Flip()))
    assert torch.equal(composed(images(), generator=generator()), by_hand)


@pytest.mark.parametrize(
    "augment", [Crop(padding=2), Flip(), Jitter(0.4, 0.4, 0.4), Cutout(size=3)], ids=lambda a: type(a).__name__
)
def test_augmentations_leave_their_input_and_the_default_generator_alone_and_draw_anew(augment):
    x, state, g = images(), torch.get_rng_state(), generator()
    first, second = augment(x, generator=g), augment(x, generator=g)
    assert torch.equal(x, images())
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, second)
    assert first.shape == x.shape
    assert first.dtype == x.dtype


@pytest.mark.parametrize("count", [1, 1024, 1500])
def test_normalization_equals_mean_and_std_of_a_float64_copy(count):
    x = torch.randint(0, 256, (count, 3, 4, 5), dtype=torch.uint8, generator=generator())
    floats = x.double() / 255
    for split_x in (x, floats):
        found = normalization(Split(split_x, torch.zeros(count, dtype=torch.int64)))
        torch.testing.assert_close(torch.tensor(found.mean).double(), floats.mean((0, 2, 3)), rtol=0, atol=1e-7)
        std = floats.std((0, 2, 3), unbiased=False)
        torch.testing.assert_close(torch.tensor(found.std).double(), std, rtol=0, atol=1e-7)


def test_normalization_of_vectors_is_per_feature_and_survives_a_large_offset():
    x = torch.tensor([[1e6, 0.0], [1e6 + 2, 4.0]])
    assert normalization(Split(x, torch.tensor([0, 1]))) == Normalize(mean=(1e6 + 1, 2.0), std=(1.0, 2.0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_constant_channel_is_only_centred(dtype):
    x = torch.full((5, 1, 3, 3), 1 if dtype == torch.uint8 else 0.1, dtype=dtype)
    found = normalization(Split(x, torch.zeros(5, dtype=torch.int64)))
    assert found.std == (1.0,)
    assert found.mean == (1 / 255,) if dtype == torch.uint8 else (x[0, 0, 0, 0].item(),)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Crop(padding=-1),
        lambda: Flip(p=1.5),
        lambda: Jitter(contrast=-0.1),
        lambda: Cutout(size=0),
        lambda: Normalize(mean=(0.0,), std=(0.0,)),
        lambda: Normalize(mean=(0.0, 1.0), std=(1.0,)),
        lambda: Crop(padding=1)(torch.zeros(2, 3), generator=generator()),
        lambda: Flip()(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), generator=generator()),
        lambda: Normalize(mean=(0.0,), std=(1.0,))(torch.zeros(2, 3, 4, 4)),
        lambda: normalization(Split(torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64))),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(make):
    with pytest.raises(DataError, match=r"^[^\n]+$"):
        make()


def test_padding_is_zero_not_the_edge():
    out = Crop(padding=2)(torch.ones(64, 1, 1, 1), generator=generator())
    assert set(out.flatten().tolist()) == {0.0, 1.0}
