"""InfoNCE and NT-Xent against loops over pairs, closed forms, and what leaves them as they are."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from literal_oracles import dot, draw

from modulewise.errors import MethodError
from modulewise.losses import info_nce, nt_xent

few = settings(max_examples=15, deadline=None, database=None)
seeds = st.integers(0, 10**6)
NEGATIVES = torch.tensor([[1, 2], [0, 0], [4, 3], [3, 1], [2, 0]])  # a repeated row, and row 3 among its own


def assert_same_value_and_gradients(actual, literal, *inputs):
    """Both functions agree, values and gradients to every input, to 1e-10 of the largest entry."""
    first, second = ([h.clone().requires_grad_() for h in inputs] for _ in range(2))
    a, b = actual(*first), literal(*second)
    gradients = zip(torch.autograd.grad(a, first), torch.autograd.grad(b, second), strict=True)
    for x, y in [(a.detach(), b.detach()), *gradients]:
        assert y.abs().max() > 0
        assert (x - y).abs().max() <= 1e-10 * y.abs().max()


def literal_info_nce(predicted, encoded, negatives):
    total = 0.0
    for m in range(len(predicted)):
        true = torch.exp(dot(predicted[m], encoded[m]))
        others = sum(torch.exp(dot(predicted[m], encoded[j])) for j in negatives[m].tolist())
        total = total - torch.log(true / (true + others))
    return total / len(predicted)


def literal_nt_xent(z, temperature):
    n = len(z) // 2

    def similarity(i, j):
        return dot(z[i], z[j]) / (dot(z[i], z[i]) * dot(z[j], z[j])) ** 0.5

    total = 0.0
    for i in range(2 * n):
        partner = i + n if i < n else i - n
        others = sum(torch.exp(similarity(i, j) / temperature) for j in range(2 * n) if j != i)
        total = total - torch.log(torch.exp(similarity(i, partner) / temperature) / others)
    return total / (2 * n)


def test_info_nce_equals_a_loop_over_positions_and_negatives():
    assert_same_value_and_gradients(
        lambda p, z: info_nce(p, z, negatives=NEGATIVES),
        lambda p, z: literal_info_nce(p, z, NEGATIVES),
        draw(5, 3),
        draw(5, 3, seed=1),
    )


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_nt_xent_equals_a_loop_over_pairs_of_rows(temperature):
    assert_same_value_and_gradients(
        lambda z: nt_xent(z, temperature=temperature), lambda z: literal_nt_xent(z, temperature), draw(6, 4)
    )


@pytest.mark.parametrize("negatives", [1, 4, 16])
def test_info_nce_of_equal_products_is_the_log_of_the_number_of_candidates(negatives):
    drawn = torch.randint(6, (6, negatives))
    assert info_nce(draw(6, 3), torch.ones(6, 3).double(), negatives=drawn).item() == pytest.approx(
        math.log(1 + negatives), rel=1e-12
    )


def test_info_nce_of_one_position_teaches_nothing():
    """The only candidate is the true one, again and again: log 3, whatever it is."""
    p, z = draw(1, 4).requires_grad_(), draw(1, 4, seed=1).requires_grad_()
    loss = info_nce(p, z, negatives=torch.zeros(1, 2, dtype=torch.long))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3))
    assert max(p.grad.abs().max(), z.grad.abs().max()) < 1e-15


@pytest.mark.parametrize("n", [2, 3, 8])
def test_nt_xent_of_equal_rows_is_the_log_of_the_number_of_other_rows(n):
    assert nt_xent(torch.ones(2 * n, 3).double()).item() == pytest.approx(math.log(2 * n - 1), rel=1e-12)


def test_nt_xent_of_orthogonal_samples_has_its_closed_form():
    """Equal views, samples at right angles: log(1 + (2N - 2) exp(-1 / t))."""
    z = torch.eye(4, dtype=torch.float64).repeat(2, 1)
    assert nt_xent(z, temperature=0.5).item() == pytest.approx(math.log1p(6 * math.exp(-2)), rel=1e-12)


@few
@given(seed=seeds)
def test_info_nce_does_not_depend_on_the_order_of_positions_or_of_negatives(seed):
    """Positions and the rows that negatives name move together; what was drawn for whom stays."""
    generator = torch.Generator().manual_seed(seed)
    p, z = draw(5, 3, seed=seed), draw(5, 3, seed=seed + 1)
    order = torch.randperm(5, generator=generator)
    renamed = order.argsort()[NEGATIVES[order]].flip(1)
    moved = info_nce(p[order], z[order], negatives=renamed)
    assert torch.allclose(moved, info_nce(p, z, negatives=NEGATIVES), rtol=1e-12)


@few
@given(seed=seeds, factor=st.floats(0.1, 10))
def test_info_nce_depends_on_products_alone(seed, factor):
    """Rotating both, moving all encodings alike (which softmax does not see), and k p with z / k change nothing."""
    p, z = draw(5, 3, seed=seed), draw(5, 3, seed=seed + 1)
    rotation = torch.linalg.qr(draw(3, 3, seed=seed + 2))[0]
    expected = info_nce(p, z, negatives=NEGATIVES)
    for a, b in ((p @ rotation, z @ rotation), (p, z + draw(3, seed=seed + 3)), (p * factor, z / factor)):
        assert torch.allclose(info_nce(a, b, negatives=NEGATIVES), expected, rtol=1e-10)


def test_info_nce_changes_with_scale_because_nothing_is_normalised():
    p, z = draw(5, 3), draw(5, 3, seed=1)
    assert not torch.allclose(info_nce(p, 2 * z, negatives=NEGATIVES), info_nce(p, z, negatives=NEGATIVES), rtol=1e-2)


@few
@given(seed=seeds, factor=st.floats(0.01, 100))
def test_nt_xent_does_not_depend_on_order_lengths_rotation_or_which_view_is_first(seed, factor):
    generator = torch.Generator().manual_seed(seed)
    z = draw(8, 3, seed=seed)
    order = torch.randperm(4, generator=generator)
    lengths = torch.rand(8, 1, generator=generator, dtype=torch.float64) * factor + 1e-3
    rotation = torch.linalg.qr(draw(3, 3, seed=seed + 1))[0]
    for moved in (z[torch.cat([order, order + 4])], z * lengths, z @ rotation, z.roll(4, 0)):
        assert torch.allclose(nt_xent(moved), nt_xent(z), rtol=1e-9)


def test_nt_xent_depends_on_who_is_whose_partner_and_on_where_the_origin_is():
    """Moving the rows of one view alone makes other pairs; a shift changes angles."""
    z = draw(8, 3)
    assert not torch.allclose(nt_xent(torch.cat([z[:4].roll(1, 0), z[4:]])), nt_xent(z), rtol=1e-2)
    assert not torch.allclose(nt_xent(z + 1), nt_xent(z), rtol=1e-2)


def test_a_projection_of_zeros_has_similarity_zero_and_finite_gradients():
    z = draw(6, 4)
    z[2] = 0
    z = z.requires_grad_()
    loss = nt_xent(z, temperature=0.5)
    loss.backward()
    similarity = torch.nn.functional.normalize(z.detach()) @ torch.nn.functional.normalize(z.detach()).T / 0.5
    similarity.fill_diagonal_(-math.inf)
    partner = [3, 4, 5, 0, 1, 2]
    expected = -sum(torch.log_softmax(similarity, 1)[i, j] for i, j in enumerate(partner)) / 6
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.isfinite(z.grad).all()
    assert z.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_losses_are_computed_in_float32_or_wider_under_autocast(dtype):
    z = draw(8, 64).to(dtype)
    drawn = torch.randint(8, (8, 4))
    wide = torch.promote_types(dtype, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = nt_xent(z), info_nce(z, z, negatives=drawn)
    outside = nt_xent(z.to(wide)), info_nce(z.to(wide), z.to(wide), negatives=drawn)
    assert all(a.dtype is wide and torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


def test_large_products_do_not_overflow():
    z = 1e3 * draw(6, 4).float()
    drawn = torch.tensor([[1], [2], [3], [4], [5], [0]])
    predicted = z.clone().requires_grad_()
    loss = info_nce(predicted, z, negatives=drawn)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(predicted.grad).all()
    assert torch.isfinite(nt_xent(z, temperature=1e-3))


@pytest.mark.parametrize("shape", [(2, 3), (1, 3), (0, 3), (5, 3), (4,), (4, 3, 2)])
def test_projections_that_are_not_two_views_of_two_samples_are_refused(shape):
    with pytest.raises(MethodError, match="two views of at least 2 samples"):
        nt_xent(torch.zeros(shape))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperatures_that_are_not_positive_are_refused(temperature):
    with pytest.raises(MethodError, match=f"temperature={temperature}"):
        nt_xent(torch.ones(4, 2), temperature=temperature)


@pytest.mark.parametrize(
    ("predicted", "encoded", "negatives"),
    [
        ((4, 3), (4, 2), (4, 1)),
        ((4, 3), (5, 3), (4, 1)),
        ((4, 3), (4, 3), (3, 1)),
        ((4, 3), (4, 3), (4, 0)),
        ((4, 3), (4, 3), (4,)),
        ((0, 3), (0, 3), (0, 1)),
        ((4, 3, 1), (4, 3, 1), (4, 1)),
    ],
)
def test_shapes_that_do_not_fit_together_are_refused(predicted, encoded, negatives):
    with pytest.raises(MethodError, match="expected predicted and encoded"):
        info_nce(torch.zeros(predicted), torch.zeros(encoded), negatives=torch.zeros(negatives, dtype=torch.long))
