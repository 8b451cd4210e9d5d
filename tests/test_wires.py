"""Wire formats: the bytes to the byte, and round trips within the bound that each format states."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modulewise.errors import MethodError
from modulewise.wires import BFloat16, Exact, Float8, Int8, ProductQuantization, Wire

WIRES = [Exact(), BFloat16(), Float8(), Int8(), ProductQuantization(groups=2, codewords=16)]
SHAPES = [((6, 8), 1), ((3, 8, 5, 4), 1), ((3, 7, 8), -1), ((2, 5, 4, 8), -1)]


def normal(shape: tuple[int, ...], seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("wire", WIRES, ids=lambda wire: type(wire).__name__)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shape_type_and_bytes_are_as_stated(wire: Wire, shape, axis: int, dtype: torch.dtype) -> None:
    h = normal(shape).to(dtype)
    packet, _ = wire.encode(h, channel_axis=axis)
    back = wire.decode(packet)
    assert (back.shape, back.dtype) == (h.shape, h.dtype)
    n, channels = h.numel(), shape[axis]
    expected = {
        "Exact": n * h.element_size(),
        "BFloat16": 2 * n,
        "Float8": n + 4,
        "Int8": n + 8 * channels,
        "ProductQuantization": n // channels * 2 + 4 * 16 * channels + 1,
    }
    assert packet.bytes == expected[type(wire).__name__]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**20), st.sampled_from([1e-6, 1.0, 3.0, 1e4]))
def test_errors_stay_within_their_bounds(seed: int, scale: float) -> None:
    """Each format's stated bound, for every number."""
    h = normal((16, 6, 3, 3), seed, scale) * torch.logspace(-2, 2, 6).view(6, 1, 1)
    back = {type(wire): wire.decode(wire.encode(h)[0]) for wire in WIRES[:4]}
    assert torch.equal(back[Exact], h)
    assert torch.equal(back[BFloat16], h.to(torch.bfloat16).float())
    assert bool(((back[BFloat16] - h).abs() <= h.abs() * 2**-8).all())
    step = h.abs().max() / 448
    slack = 1 + 1e-5
    assert bool(((back[Float8] - h).abs() <= torch.maximum(h.abs() * 2**-4, step * 2**-10) * slack).all())
    half = (h.amax((0, 2, 3)) - h.amin((0, 2, 3))) / 510
    rounding = 1e-5 * h.abs().amax((0, 2, 3))
    assert bool(((back[Int8] - h).abs().amax((0, 2, 3)) <= half + rounding).all())


def test_constant_empty_and_integer_boundaries_come_through_whole() -> None:
    for h in (torch.zeros(4, 3), torch.full((4, 3), 7.5), torch.zeros(0, 3), torch.arange(12).view(4, 3)):
        for wire in WIRES:
            assert torch.equal(wire.decode(wire.encode(h)[0]), h)


def test_codes_are_the_nearest_codewords_by_brute_force() -> None:
    h = normal((40, 12))
    packet, _ = ProductQuantization(groups=3, codewords=8).encode(h)
    codes, words = packet.tensors["codes"], packet.tensors["words"]
    for group in range(3):
        distances = torch.cdist(h[:, 4 * group : 4 * group + 4], words[group])
        chosen = distances.gather(1, codes[group].long().unsqueeze(1)).squeeze(1)
        assert torch.allclose(chosen, distances.amin(1), atol=1e-5)


def test_few_distinct_vectors_come_through_whole_and_codewords_follow_the_batches() -> None:
    """Lossless where there are no more vectors than codewords; on another distribution the error falls in time."""
    rows = normal((5, 8)).repeat_interleave(4, 0)
    wire = ProductQuantization(groups=1, codewords=20)
    assert torch.allclose(wire.decode(wire.encode(rows)[0]), rows, atol=1e-6)
    wire, memory, errors = ProductQuantization(groups=2, codewords=16, decay=0.8), None, []
    for step in range(60):
        h = normal((200, 8), step) + (50.0 if step else 0.0)
        packet, memory = wire.encode(h, memory=memory)
        errors.append(float((wire.decode(packet) - h).square().mean()))
    assert errors[1] > 100 * errors[0]
    assert errors[-1] < 1.5 * errors[0]


def test_codewords_move_by_the_published_average() -> None:
    """N_i <- d N_i + (1 - d) n_i, S_i <- d S_i + (1 - d) s_i, on one batch, by a loop."""
    wire = ProductQuantization(groups=1, codewords=4, decay=0.7)
    _, memory = wire.encode(normal((30, 5)))
    h = normal((30, 5), 1)
    packet, after = wire.encode(h, memory=memory)
    for i in range(4):
        near = h[packet.tensors["codes"][0] == i]
        assert torch.allclose(after["counts"][0, i], 0.7 * memory["counts"][0, i] + 0.3 * len(near))
        assert torch.allclose(after["sums"][0, i], 0.7 * memory["sums"][0, i] + 0.3 * near.sum(0), atol=1e-5)


def test_groups_that_do_not_divide_the_channels_become_fewer() -> None:
    packet, _ = ProductQuantization(groups=4, codewords=4).encode(normal((10, 6)))
    assert packet.tensors["codes"].shape[0] == 2


def test_numbers_out_of_range_are_refused() -> None:
    for wrong in ({"groups": 0}, {"codewords": 1}, {"codewords": 257}, {"decay": 1.0}):
        with pytest.raises(MethodError, match="expected"):
            ProductQuantization(**wrong)
