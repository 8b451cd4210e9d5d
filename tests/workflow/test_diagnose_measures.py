"""What is said of a representation, against formulas written literally in float64, and its invariances."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import modulewise as mw
from modulewise.errors import DataError, MethodError
from modulewise.partition import Boundary
from modulewise.workflow.inspection.boundaries import pooled
from modulewise.workflow.inspection.information import (
    entropy,
    gaussian_information,
    input_information,
    label_information,
)
from modulewise.workflow.inspection.measures import (
    dead_units,
    effective_rank,
    linear_cka,
    linear_probe,
    neighbour_accuracy,
    proxy_value,
)
from modulewise.workflow.inspection.stepping import Cost, shares


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def rotation(size, seed=7):
    return torch.linalg.qr(draws(size, size, seed=seed)).Q


def literal_cka(a, b):
    """Every entry by itself: features against features, as in the paper's third equation."""
    a, b = a.numpy() - a.numpy().mean(0), b.numpy() - b.numpy().mean(0)

    def squares(left, right):
        return sum(
            sum(left[n, i] * right[n, j] for n in range(len(left))) ** 2
            for i in range(left.shape[1])
            for j in range(right.shape[1])
        )

    return squares(b, a) / math.sqrt(squares(a, a) * squares(b, b))


@pytest.mark.parametrize(("d", "e"), [(3, 4), (14, 5)])
def test_cka_is_the_formula_over_features(d, e):
    """With fewer and with more features than samples."""
    a, b = draws(9, d), draws(9, e, seed=1) + draws(9, d)[:, :1]
    assert linear_cka(a, b) == pytest.approx(literal_cka(a, b), abs=1e-12)


def test_cka_does_not_change_with_rotation_scale_shift_or_order_but_with_other_maps():
    """The invariances that the paper asks for, and one that it must not have."""
    a, b = draws(12, 5), draws(12, 6, seed=1)
    value, order = linear_cka(a, b), torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert linear_cka(3 * a @ rotation(5) + 2, b) == pytest.approx(value, abs=1e-12)
    assert linear_cka(a[order], b[order]) == pytest.approx(value, abs=1e-12)
    assert linear_cka(b, a) == pytest.approx(value, abs=1e-12)
    assert linear_cka(a, 7 * a @ rotation(5)) == pytest.approx(1)
    assert abs(linear_cka(a * torch.tensor([9.0, 1, 1, 1, 1]), b) - value) > 1e-3
    assert linear_cka(torch.ones(12, 3), b) == 0
    with pytest.raises(DataError, match="3 and 4 samples"):
        linear_cka(a[:3], b[:4])


@pytest.mark.parametrize(("rows", "columns"), [(8, 20), (20, 8)])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_of_equal_singular_values_is_their_number(rows, columns, rank):
    """Whatever the scale; of unequal ones it is the exponential of their entropy."""
    u, v = rotation(rows)[:, :rank], rotation(columns, seed=3)[:, :rank]
    assert effective_rank(5e-3 * u @ v.T) == pytest.approx(rank, rel=1e-6)
    values = torch.arange(1.0, rank + 1, dtype=torch.double)
    p = values.numpy() / values.numpy().sum()
    assert effective_rank((u * values) @ v.T) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)
    assert effective_rank(torch.zeros(4, 5)) == 0


def test_dead_units_are_those_that_were_planted():
    """Zero or any other constant; in maps over all positions, channels first and last; a quiet unit is not dead."""
    h = draws(6, 4, 5, 5)
    assert dead_units(h) == 0
    h[:, 1], h[:, 2] = 0.0, -3.0
    assert dead_units(h) == 0.5
    assert dead_units(h.movedim(1, -1), channel_axis=-1) == 0.5
    h[3, 2, 4, 4] = -2.9
    assert dead_units(h) == dead_units(1000 * h) == 0.25
    assert dead_units(torch.zeros(6, 3)) == 1


def test_the_probe_is_logistic_regression_at_its_minimum():
    """The gradient of the penalised mean cross-entropy, written out, is 0 at its weights: so says its probability."""
    y = torch.arange(60) % 3
    x = draws(60, 4) + torch.nn.functional.one_hot(y, 4).double()
    x[:, 3] = 5.0  # a feature that never varies
    held, y_held = draws(30, 4, seed=2) + torch.nn.functional.one_hot(y[:30], 4), y[:30]
    z, z_held = ((t - x.mean(0)) / torch.where(x.std(0) > 0, x.std(0, correction=0), torch.inf) for t in (x, held))
    weight, bias = torch.zeros(4, 3, dtype=torch.double, requires_grad=True), torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(z @ weight + bias, y) + 0.05 / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    logits = (z_held @ weight + bias).detach()
    probe = linear_probe((x, y), (held, y_held), penalty=0.05)
    assert probe.cross_entropy == pytest.approx(float(nn.functional.cross_entropy(logits, y_held)), abs=1e-3)
    assert probe.accuracy == pytest.approx(float((logits.argmax(1) == y_held).double().mean()))
    with pytest.raises(DataError, match="one class"):
        linear_probe((x, torch.zeros(60).long()), (held, y_held))


def test_a_class_that_was_never_fitted_has_no_probability():
    """It costs -log 1e-12, and nothing is out of range."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([0, 2])
    assert linear_probe((x, y), (x, torch.tensor([1, 3]))).cross_entropy == pytest.approx(-math.log(1e-12))


def test_neighbours_agree_with_scikit_learn():
    """Cosine, 5 neighbours, the lowest class of equally frequent ones."""
    from sklearn.neighbors import KNeighborsClassifier

    y = torch.arange(80) % 4
    x, held, y_held = draws(80, 6) + y[:, None] / 3, draws(40, 6, seed=1) + y[:40, None] / 3, y[:40]
    theirs = KNeighborsClassifier(5, metric="cosine", algorithm="brute").fit(x.numpy(), y.numpy())
    assert neighbour_accuracy((x, y), (held, y_held), neighbours=5) == theirs.score(held.numpy(), y_held.numpy())
    assert neighbour_accuracy((x[:3], y[:3]), (held, y_held), neighbours=99) == float((y_held == 0).double().mean())


def test_the_proxy_value_is_the_cosine_of_two_gram_matrices():
    """Alignment with the ReLU kernel, the diagonal included as published, written out."""
    h, y = draws(7, 5), torch.tensor([0, 1, 0, 1, 1, 2, 2])
    phi = h.clamp_min(0).numpy()
    phi = phi / np.linalg.norm(phi, axis=1, keepdims=True)
    g, ideal = phi @ phi.T, (y[:, None] == y[None]).double().numpy()
    expected = (g * ideal).sum() / math.sqrt((g**2).sum() * (ideal**2).sum())
    assert proxy_value(h, y) == pytest.approx(expected)


def test_label_information_of_a_perfect_and_of_an_uninformative_representation():
    """H(y) = log 4 for the one, nothing for the other, and never less than nothing."""
    y = torch.arange(200) % 4
    perfect, noise = 50 * nn.functional.one_hot(y, 4).double(), draws(200, 4)
    probe = linear_probe((perfect, y), (perfect, y), penalty=1e-6)
    assert label_information(y, probe.cross_entropy) == pytest.approx(math.log(4), abs=0.01)
    bad = linear_probe((noise, y), (draws(200, 4, seed=5), y))
    assert label_information(y, bad.cross_entropy) == 0
    counts = np.array([3, 1]) / 4
    assert entropy(torch.tensor([5, 5, 5, 9])) == pytest.approx(-(counts * np.log(counts)).sum())


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_input_information_of_a_gaussian_channel_is_below_its_closed_form_and_near_it(noise):
    """x standard normal, h = (x + noise) W: I(h; x) / D = 1/2 log(1 + 1 / noise^2)."""
    x = draws(4000, 3).float()
    h = (x.double() + noise * draws(4000, 3, seed=1)).float() @ rotation(3).float()
    found = input_information((h[:3000], x[:3000]), (h[3000:], x[3000:]), boundary=None, steps=600)
    truth = 0.5 * math.log(1 + 1 / noise**2)
    assert 0.9 * truth < found < 1.05 * truth  # the upper side: 1000 samples


def test_input_information_of_nothing_is_nothing_and_of_the_input_itself_is_much():
    """A representation that does not depend on x, in a grid with the decoder of InfoPro; deterministic."""
    x = draws(256, 1, 6, 6).float()
    fit, held = slice(0, 192), slice(192, None)
    layout = Boundary("a", (2, 1, 6, 6))
    before = torch.get_rng_state()
    nothing = input_information((x[fit] * 0, x[fit]), (x[held] * 0, x[held]), boundary=layout, steps=50)
    all_of_it = [input_information((x[fit], x[fit]), (x[held], x[held]), boundary=layout, steps=200) for _ in "ab"]
    assert nothing < 0.05
    assert all_of_it[0] == all_of_it[1] > 1.0
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(MethodError, match="steps=0"):
        input_information((x, x), (x, x), boundary=layout, steps=0)


def test_a_value_that_is_decoded_worse_than_by_its_mean_counts_as_nothing():
    """And one that never varies does not count."""
    found = gaussian_information(torch.tensor([4.0, 1.0, 0.0]), torch.tensor([1.0, 9.0, 0.5]))
    assert found == pytest.approx((0.5 * math.log(4) + 0) / 2)
    assert gaussian_information(torch.zeros(2), torch.ones(2)) == 0


def test_features_for_probes_are_averages_over_quarters_and_over_tokens():
    """As many positions as the budget allows, against sums over slices; channels last go first."""
    h = draws(3, 2, 4, 4)
    quarters = torch.stack([h[:, :, i : i + 2, j : j + 2].mean((2, 3)) for i in (0, 2) for j in (0, 2)], 2).flatten(1)
    assert torch.allclose(pooled(h, Boundary("a", (3, 2, 4, 4)), most=17), quarters)
    assert torch.allclose(pooled(h.movedim(1, -1), Boundary("a", (3, 4, 4, 2), channel_axis=-1), most=8), quarters)
    assert torch.equal(pooled(h, None), h.flatten(1))
    assert torch.allclose(pooled(h, None, most=1), h.mean((2, 3)))
    tokens = draws(3, 7, 5)
    assert torch.allclose(pooled(tokens, Boundary("a", (3, 7, 5), channel_axis=-1)), tokens.mean(1))


def test_shares_add_up_to_one():
    """Of time and of memory, each by itself."""
    found = shares([Cost(seconds=0.5, bytes=10), Cost(seconds=1.5, bytes=30), Cost(seconds=2.0, bytes=60)])
    assert found == [(0.125, 0.1), (0.375, 0.3), (0.5, 0.6)]


def test_all_words_are_there():
    """What the page says can be imported from one place."""
    assert {"diagnose", "Diagnosis", "find", "grow", "recalibrate", "swapped"} <= set(mw.workflow.__all__)
