"""Labels through a fixed projection: against literal loops, in closed form, and what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from literal_oracles import assert_same_value_and_gradient, draw

from modulewise import losses
from modulewise.errors import MethodError

Y = torch.tensor([0, 1, 0, 2, 1])
seeds = settings(max_examples=20, deadline=None, database=None)


def literal_sign_cross_entropy(logits, projected):
    total = 0.0
    for row, targets in zip(logits, projected, strict=True):
        for z, p in zip(row, targets, strict=True):
            likely = 1 / (1 + torch.exp(-z))
            total = total - torch.log(likely if p > 0 else 1 - likely)
    return total / logits.numel()


def test_projected_labels_are_one_hot_labels_times_the_matrix():
    projection = draw(4, 6)
    one_hot = torch.tensor([[float(c == label) for c in range(4)] for label in Y], dtype=torch.float64)
    assert torch.equal(losses.projected_labels(Y, projection), one_hot @ projection)
    assert torch.equal(losses.projected_labels(Y.to(torch.uint8), projection), one_hot @ projection)


def test_sign_cross_entropy_equals_a_loop():
    projected = losses.projected_labels(Y, draw(3, 4, seed=1))
    assert (projected > 0).any()
    assert (projected < 0).any()
    assert_same_value_and_gradient(
        lambda z: losses.sign_cross_entropy(z, projected),
        lambda z: literal_sign_cross_entropy(z, projected),
        draw(5, 4),
    )


def test_a_projection_of_exactly_zero_counts_as_no():
    z = torch.tensor([[3.0]])
    assert losses.sign_cross_entropy(z, torch.zeros(1, 1)) == losses.sign_cross_entropy(z, -torch.ones(1, 1))
    assert losses.sign_cross_entropy(z, torch.zeros(1, 1)) > losses.sign_cross_entropy(z, torch.ones(1, 1))


@seeds
@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 100))
def test_order_of_samples_and_scale_of_the_projection_do_not_matter(seed, scale):
    """The scale of the logits does: it is confidence."""
    z, projected = draw(5, 4, seed=seed), draw(5, 4, seed=seed + 1)
    value = losses.sign_cross_entropy(z, projected)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(losses.sign_cross_entropy(z[order], projected[order]), value, rtol=1e-12, atol=0)
    assert losses.sign_cross_entropy(z, scale * projected) == value


def test_large_logits_stay_finite_in_half_precision_and_under_autocast():
    z = torch.tensor([[200.0, -200.0]], dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = losses.sign_cross_entropy(z, torch.tensor([[-1.0, 1.0]]))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss == 200
    assert z.grad.isfinite().all()


def test_logits_of_zero_cost_log_two():
    loss = losses.sign_cross_entropy(torch.zeros(3, 7, dtype=torch.float64), draw(3, 7))
    assert abs(loss.item() - math.log(2)) < 1e-15


@pytest.mark.parametrize(
    ("y", "says"),
    [
        (torch.zeros(4), "one integer class"),
        (torch.zeros(4, 2, dtype=torch.long), "one integer class"),
        (torch.tensor([0, 3]), "0 to 3 .* 3 classes"),
        (torch.tensor([0, -100]), "expected 0 to 2"),
    ],
)
def test_labels_that_are_no_class_are_refused(y, says):
    with pytest.raises(MethodError, match=says):
        losses.projected_labels(y, torch.zeros(3, 2))


def test_logits_of_another_shape_than_the_targets_are_refused():
    with pytest.raises(MethodError, match="as many outputs"):
        losses.sign_cross_entropy(torch.zeros(4, 3), torch.zeros(4, 2))
