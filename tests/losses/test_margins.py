import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from literal_oracles import draw

from modulewise import losses
from modulewise.errors import DataError, MethodError

Y = torch.tensor([0, 3, 1, 1, 2])
seeds = settings(max_examples=20, deadline=None, database=None)


@pytest.mark.parametrize("margin", [1.0, 0.3])
def test_multi_margin_equals_a_loop(margin):
    def literal(s):
        total = 0.0
        for n in range(5):
            for c in range(4):
                gap = margin - s[n, Y[n]] + s[n, c]
                if c != Y[n] and gap > 0:
                    total = total + gap
        return total / (5 * 4)

    first, second = draw(5, 4).requires_grad_(), draw(5, 4).requires_grad_()
    a, b = losses.multi_margin(first, Y, margin=margin), literal(second)
    a.backward()
    b.backward()
    assert abs(a - b) <= 1e-10 * b
    assert (first.grad - second.grad).abs().max() <= 1e-10 * second.grad.abs().max()


@seeds
@given(st.integers(0, 10**6), st.permutations(range(4)), st.floats(-5, 5))
def test_multi_margin_is_torchs_and_sees_neither_class_order_nor_a_shift(seed, order, shift):
    s, order = draw(5, 4, seed=seed), torch.tensor(order)
    value = losses.multi_margin(s, Y)
    torch.testing.assert_close(value, F.multi_margin_loss(s, Y))
    torch.testing.assert_close(losses.multi_margin(s[:, order] + shift, order.argsort()[Y]), value)


@seeds
@given(st.integers(0, 10**6))
def test_two_classes_give_half_the_binary_hinge_of_the_difference(seed):
    s, y = draw(6, 2, seed=seed), torch.tensor([0, 1, 1, 0, 1, 0])
    margin = (2 * y - 1) * (s[:, 1] - s[:, 0])
    torch.testing.assert_close(losses.multi_margin(s, y), (1 - margin).clamp_min(0).mean() / 2)


def test_a_lead_of_the_margin_is_enough_for_exactly_zero_with_zero_gradient():
    s = F.one_hot(Y, 4).double().requires_grad_()
    loss = losses.multi_margin(s, Y)
    loss.backward()
    assert loss == 0
    assert losses.multi_margin(s.detach() * (1 - 1e-9), Y) > 0


@pytest.mark.parametrize(
    ("logits", "y", "says"),
    [
        (torch.zeros(2, 3), torch.zeros(2), "float32"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), r"\(3,\)"),
        (torch.zeros(2, 5, 3), torch.zeros(2, 5, dtype=torch.long), "losses.classification"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), "from 0 to 3 outside 0 to 2"),
        (torch.zeros(2, 3), torch.tensor([-100, 1]), "from -100"),
    ],
)
def test_labels_that_do_not_fit_are_refused(logits, y, says):
    with pytest.raises(DataError, match=says):
        losses.multi_margin(logits, y)


@pytest.mark.parametrize("margin", [0.0, -1.0, float("nan")])
def test_a_margin_that_is_not_positive_is_refused(margin):
    with pytest.raises(MethodError, match="margin="):
        losses.multi_margin(torch.zeros(2, 3), torch.tensor([0, 1]), margin=margin)


def test_labels_off_the_cpu_are_not_read_and_small_types_are_taken():
    assert losses.multi_margin(torch.ones(3, 2, device="meta"), torch.ones(3, dtype=torch.long, device="meta")).is_meta
    s = draw(5, 4)
    assert torch.equal(losses.multi_margin(s, Y.to(torch.uint8)), losses.multi_margin(s, Y))


def test_half_precision_logits_are_widened():
    s = draw(5, 4).to(torch.bfloat16)
    assert torch.equal(losses.multi_margin(s, Y), losses.multi_margin(s.float(), Y))
