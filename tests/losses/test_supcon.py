import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from literal_oracles import assert_same_value_and_gradient, dot, draw

from modulewise import losses
from modulewise.errors import MethodError
from modulewise.losses import supervised_contrastive

Y = torch.tensor([0, 1, 0, 2, 1, 0])  # class 2 has one sample: no positive
seeds = settings(max_examples=20, deadline=None, database=None)
some_seed = given(st.integers(0, 2**16))


def literal_contrast(z, y, temperature):
    """The formula, a loop over anchors, positives and all others."""
    rows = [list(row.flatten()) for row in z]
    unit = [[v / dot(row, row) ** 0.5 for v in row] for row in rows]
    total = 0.0
    for i in range(len(unit)):
        positives = [p for p in range(len(unit)) if p != i and y[p] == y[i]]
        others = sum(torch.exp(dot(unit[i], unit[a]) / temperature) for a in range(len(unit)) if a != i)
        for p in positives:
            total = total - torch.log(torch.exp(dot(unit[i], unit[p]) / temperature) / others) / len(positives)
    return total / len(unit)


@pytest.mark.parametrize("temperature", [0.07, 0.5, 3.0])
@pytest.mark.parametrize("shape", [(6, 4), (6, 2, 3)], ids=str)
def test_contrast_equals_a_double_loop(temperature, shape):
    assert_same_value_and_gradient(
        lambda z: supervised_contrastive(z, Y, temperature=temperature),
        lambda z: literal_contrast(z, Y, temperature),
        draw(*shape),
    )


def test_equal_features_give_the_logarithm_of_the_number_of_others():
    z = torch.ones(6, 3, dtype=torch.float64)
    assert abs(supervised_contrastive(z, Y % 2).item() - math.log(5)) < 1e-12


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_two_classes_at_opposite_poles_have_the_closed_form(temperature):
    z = torch.tensor([[1.0, 0.0]] * 3 + [[-1.0, 0.0]] * 3, dtype=torch.float64)
    loss = supervised_contrastive(z, torch.tensor([0, 0, 0, 1, 1, 1]), temperature=temperature)
    assert abs(loss.item() - math.log(2 + 3 * math.exp(-2 / temperature))) < 1e-12


def test_no_features_of_one_class_beat_the_logarithm_of_the_number_of_others():
    y = torch.zeros(5, dtype=torch.long)
    found = [supervised_contrastive(draw(5, 3, seed=seed), y).item() for seed in range(50)]
    assert min(found) > math.log(4)


@seeds
@some_seed
def test_the_order_of_the_batch_does_not_matter(seed):
    z, order = draw(6, 4, seed=seed), torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(supervised_contrastive(z[order], Y[order]), supervised_contrastive(z, Y))


@seeds
@some_seed
def test_the_length_of_every_row_does_not_matter(seed):
    z = draw(6, 4, seed=seed)
    factors = draw(6, 1, seed=seed + 1).exp()
    torch.testing.assert_close(supervised_contrastive(z * factors, Y), supervised_contrastive(z, Y))


@seeds
@some_seed
def test_rotating_all_features_does_not_matter(seed):
    z, rotation = draw(6, 4, seed=seed), torch.linalg.qr(draw(4, 4, seed=seed + 1))[0]
    torch.testing.assert_close(supervised_contrastive(z @ rotation, Y), supervised_contrastive(z, Y))


def test_the_names_of_classes_do_not_matter():
    z = draw(6, 4)
    assert torch.equal(supervised_contrastive(z, torch.tensor([7, 3, 9])[Y]), supervised_contrastive(z, Y))


def test_moving_all_features_does_matter():
    """Angles are seen from the origin, so that a shift is no invariance."""
    z = draw(6, 4)
    assert not torch.isclose(supervised_contrastive(z + 1, Y), supervised_contrastive(z, Y), rtol=1e-2)


def test_descent_brings_a_class_together_and_keeps_classes_apart():
    z, y = draw(6, 3).requires_grad_(), torch.tensor([0, 1, 0, 1, 0, 1])
    optimizer = torch.optim.SGD([z], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        supervised_contrastive(z, y, temperature=0.5).backward()
        optimizer.step()
    u = torch.nn.functional.normalize(z.detach(), dim=1)
    assert (u @ u.T)[y[:, None] == y[None, :]].min() > 0.95 > 0 > (u @ u.T)[y[:, None] != y[None, :]].max()


@pytest.mark.parametrize(
    "y", [torch.tensor([0, 1, 2]), torch.tensor([4])], ids=["no two samples of a class", "a batch of one"]
)
def test_without_a_positive_pair_value_and_gradient_are_zero(y):
    z = draw(len(y), 4).requires_grad_()
    loss = supervised_contrastive(z, y)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_a_row_of_norm_zero_is_orthogonal_to_all_others_and_gives_no_nan():
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], requires_grad=True)
    loss = supervised_contrastive(z, torch.tensor([0, 0, 1, 1]), temperature=1.0)
    loss.backward()
    a, b = math.exp(1 / 2**0.5), 1.0  # similarity to (1, 1), and to everything orthogonal
    terms = [math.log(3 * b), math.log((2 * b + a) / b), math.log((2 * b + a) / a), math.log((b + 2 * a) / a)]
    assert abs(loss.item() - sum(terms) / 4) < 1e-6
    assert torch.isfinite(z.grad).all()


def test_features_that_are_not_a_number_give_a_loss_that_is_none():
    assert supervised_contrastive(torch.full((4, 2), torch.nan), torch.tensor([0, 0, 1, 1])).isnan()


def test_under_autocast_the_loss_is_the_one_of_float32():
    z = draw(6, 4).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = supervised_contrastive(z, Y)
    assert torch.equal(inside, supervised_contrastive(z, Y))
    assert supervised_contrastive(z.bfloat16(), Y).dtype is torch.float32


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(MethodError, match="temperature"):
        supervised_contrastive(draw(6, 4), Y, temperature=temperature)


@pytest.mark.parametrize(("y", "says"), [(Y.float(), "float32"), (Y[:, None], "shape"), (Y[:5], "5 labels")])
def test_labels_that_are_not_one_class_per_row_are_refused(y, says):
    with pytest.raises(MethodError, match=says):
        losses.supervised_contrastive(draw(6, 4), y)
