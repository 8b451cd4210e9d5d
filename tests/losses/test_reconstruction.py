import math

import pytest
import torch
from literal_oracles import assert_same_value_and_gradient, draw

from modulewise.errors import MethodError
from modulewise.losses import mean_squared_error, pixel_cross_entropy


def pixels(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def literal_cross_entropy(logits, image):
    total = 0.0
    for v, p in zip(logits.flatten(), image.flatten(), strict=True):
        share = 1 / (1 + torch.exp(-v))
        total = total - p * torch.log(share) - (1 - p) * torch.log(1 - share)
    return total / logits.numel()


def literal_square(decoded, target):
    return sum((a - b) ** 2 for a, b in zip(decoded.flatten(), target.flatten(), strict=True)) / decoded.numel()


def test_pixel_cross_entropy_equals_a_loop_over_pixels():
    image = pixels(2, 3, 4, 4)
    assert_same_value_and_gradient(
        lambda h: pixel_cross_entropy(h, image), lambda h: literal_cross_entropy(h, image), draw(2, 3, 4, 4)
    )


def test_squared_error_equals_a_loop_over_elements():
    target = draw(3, 5, seed=1)
    assert_same_value_and_gradient(
        lambda h: mean_squared_error(h, target), lambda h: literal_square(h, target), draw(3, 5)
    )


def test_pixel_cross_entropy_is_least_at_the_pixels_themselves_and_the_entropy_there():
    image = pixels(1, 1, 4, 4)
    least = pixel_cross_entropy(torch.logit(image), image)
    entropy = -(image * image.log() + (1 - image) * (1 - image).log()).mean()
    torch.testing.assert_close(least, entropy)
    assert all(
        pixel_cross_entropy(torch.logit(image) + 0.1 * draw(1, 1, 4, 4, seed=s), image) > least for s in range(9)
    )


def test_large_logits_do_not_overflow():
    loss = pixel_cross_entropy(torch.tensor([[1e4, -1e4]]), torch.tensor([[0.0, 1.0]]))
    assert loss.item() == 1e4


@pytest.mark.parametrize("pixel", [-0.1, 1.1, 255.0, math.inf])
def test_pixels_outside_zero_and_one_are_refused(pixel):
    image = torch.full((1, 1, 2, 2), 0.5)
    image[0, 0, 1, 1] = pixel
    with pytest.raises(MethodError, match=r"expected \[0, 1\]"):
        pixel_cross_entropy(torch.zeros(1, 1, 2, 2), image)


def test_pixels_off_by_rounding_are_taken():
    image = torch.tensor([[-1e-3, 1 + 1e-3]])
    torch.testing.assert_close(pixel_cross_entropy(torch.zeros(1, 2), image).item(), math.log(2))


def test_pixels_that_are_not_a_number_give_a_loss_that_is_none():
    assert pixel_cross_entropy(torch.zeros(1, 2), torch.tensor([[0.5, math.nan]])).isnan()


@pytest.mark.parametrize("loss", [pixel_cross_entropy, mean_squared_error])
def test_shapes_that_would_broadcast_are_refused(loss):
    with pytest.raises(MethodError, match=r"\(4, 1\)"):
        loss(torch.zeros(4, 3), torch.zeros(4, 1))


@pytest.mark.parametrize("loss", [pixel_cross_entropy, mean_squared_error])
def test_half_precision_is_widened_and_autocast_left_out(loss):
    decoded, target = draw(2, 3).bfloat16(), pixels(2, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(decoded, target)
    assert inside.dtype is torch.float32
    assert torch.equal(inside, loss(decoded.float(), target.float()))
