"""Boosting by telescoping sums: against loops over samples and classes, and the identities the theory rests on."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from literal_oracles import assert_same_value_and_gradient, draw

from modulewise import losses
from modulewise.errors import MethodError

Y = torch.tensor([0, 2, 1, 0, 2])
seeds = settings(max_examples=20, deadline=None, database=None)


def softmax(logits):
    return [[math.exp(v) / sum(math.exp(u) for u in row) for v in row] for row in logits.tolist()]


def literal_loss(s, y):
    total = 0.0
    for n in range(len(s)):
        for c in range(s.shape[1]):
            if c != y[n]:
                total = total + torch.exp(s[n, c] - s[n, y[n]])
    return total / len(s)


def literal_edge(o, y, previous):
    above = below = 0.0
    for n in range(len(o)):
        for c in range(o.shape[1]):
            if c != y[n]:
                cost = torch.exp(previous[n, c] - previous[n, y[n]])
                above = above + cost * (o[n, y[n]] - o[n, c])
                below = below + cost
    return above / below


def test_exponential_loss_equals_a_double_loop():
    assert_same_value_and_gradient(lambda s: losses.exponential_loss(s, Y), lambda s: literal_loss(s, Y), draw(5, 3))


def test_pair_costs_equal_a_double_loop():
    def literal(s):
        rows = [[torch.exp(s[n, c] - s[n, Y[n]]) if c != Y[n] else 0 * s[n, c] for c in range(3)] for n in range(5)]
        return torch.stack([torch.stack(row) for row in rows])

    assert_same_value_and_gradient(lambda s: losses.pair_costs(s, Y), literal, draw(5, 3))


def test_edge_equals_a_double_loop_in_the_hypothesis_and_in_the_weights():
    previous, o = draw(5, 3, seed=1), draw(5, 3, seed=2).softmax(1)
    assert_same_value_and_gradient(
        lambda h: losses.edge(h, Y, previous=previous), lambda h: literal_edge(h, Y, previous), o
    )
    assert_same_value_and_gradient(lambda p: losses.edge(o, Y, previous=p), lambda p: literal_edge(o, Y, p), previous)


def test_weak_learning_edge_equals_its_definition_with_the_sign_of_the_gain():
    for after, before in ((0.5, 0.3), (0.3, 0.5), (-0.6, 0.1), (0.4, 0.4)):
        inside = (after**2 - before**2) / (1 - before**2)
        expected = math.copysign(math.sqrt(abs(inside)), inside) if inside else 0.0
        given_ = [torch.tensor(v, dtype=torch.float64) for v in (after, before)]
        assert losses.weak_learning_edge(*given_).item() == pytest.approx(expected, abs=1e-12)


def test_two_classes_are_the_binary_exponential_loss_and_the_binary_edge():
    s, previous, o = draw(6, 2), draw(6, 2, seed=1), draw(6, 2, seed=2).softmax(1)
    y = torch.tensor([0, 1, 1, 0, 1, 0])
    signs = [-1.0 if label == 0 else 1.0 for label in y.tolist()]
    loss = sum(math.exp(-sign * (row[1] - row[0])) for sign, row in zip(signs, s.tolist(), strict=True)) / 6
    assert losses.exponential_loss(s, y).item() == pytest.approx(loss, rel=1e-12)
    weights = [math.exp(-sign * (row[1] - row[0])) for sign, row in zip(signs, previous.tolist(), strict=True)]
    edge = sum(w * sign * (row[1] - row[0]) for w, sign, row in zip(weights, signs, o.tolist(), strict=True))
    assert losses.edge(o, y, previous=previous).item() == pytest.approx(edge / sum(weights), rel=1e-12)


def test_boosting_the_weights_module_by_module_gives_the_telescoped_loss():
    """D_{t+1} = D_t exp(h_t(c) - h_t(y)) / Z_t, h_t = a_{t+1} o_{t+1} - a_t o_t: the sum of the h is the last a o."""
    n, classes, modules = 5, 3, 4
    alphas = [0.0, 0.7, 1.3, 0.4, 2.1]
    outputs = [[[0.0] * classes] * n, *(softmax(draw(n, classes, seed=t)) for t in range(modules))]
    weights = {(i, c): 1.0 / (n * (classes - 1)) for i in range(n) for c in range(classes) if c != Y[i]}
    product = 1.0
    for t in range(modules):
        h = [
            [alphas[t + 1] * outputs[t + 1][i][c] - alphas[t] * outputs[t][i][c] for c in range(classes)]
            for i in range(n)
        ]
        grown = {(i, c): w * math.exp(h[i][c] - h[i][Y[i]]) for (i, c), w in weights.items()}
        norm = sum(grown.values())
        product *= norm
        weights = {pair: w / norm for pair, w in grown.items()}
    scores = alphas[-1] * torch.tensor(outputs[-1], dtype=torch.float64)
    assert losses.exponential_loss(scores, Y).item() == pytest.approx((classes - 1) * product, rel=1e-12)
    costs = losses.pair_costs(scores, Y)
    for (i, c), w in weights.items():
        assert (costs[i, c] / costs.sum()).item() == pytest.approx(w, rel=1e-12)


def test_the_reweighted_objective_of_a_module_is_its_own_exponential_loss_up_to_a_constant():
    """Algorithm 2 and equation 6 of the paper: the ratio is the same for every candidate module."""
    previous = 0.8 * draw(5, 3, seed=1).softmax(1)
    weights = losses.pair_costs(previous, Y)
    ratios = []
    for seed in range(3):
        candidate = (1 + seed) * draw(5, 3, seed=seed + 5).softmax(1)
        reweighted = 0.0
        for i in range(5):
            for c in range(3):
                h = candidate[i] - previous[i]
                reweighted += (weights[i, c] * torch.exp(h[c] - h[Y[i]])).item()
        ratios.append(reweighted / losses.exponential_loss(candidate, Y).item())
    assert ratios == pytest.approx([5.0] * 3, rel=1e-12)


@seeds
@given(st.integers(0, 10**6))
def test_permuting_the_batch_or_shifting_all_scores_of_a_sample_changes_nothing(seed):
    s, o, shift = draw(5, 3, seed=seed), draw(5, 3, seed=seed + 1).softmax(1), draw(5, 1, seed=seed + 2)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    loss, edge = losses.exponential_loss(s, Y), losses.edge(o, Y, previous=s)
    torch.testing.assert_close(losses.exponential_loss(s[order], Y[order]), loss)
    torch.testing.assert_close(losses.exponential_loss(s + shift, Y), loss)
    torch.testing.assert_close(losses.edge(o[order], Y[order], previous=s[order]), edge)
    torch.testing.assert_close(losses.edge(o + shift, Y, previous=s + shift), edge)


@seeds
@given(st.integers(0, 10**6), st.floats(0.01, 20.0))
def test_the_loss_bounds_the_share_of_errors_and_the_edge_is_at_most_one(seed, scale):
    s, o = scale * draw(5, 3, seed=seed), draw(5, 3, seed=seed + 1).softmax(1)
    assert losses.exponential_loss(s, Y) >= (s.argmax(1) != Y).double().mean()
    assert losses.edge(o, Y, previous=s).abs() <= 1


def test_the_loss_is_not_invariant_under_scale():
    """On purpose: alpha is a scale, and what the module is trusted with."""
    s = draw(5, 3)
    assert (losses.exponential_loss(2 * s, Y) - losses.exponential_loss(s, Y)).abs() > 0.1


def test_guessing_has_no_edge_and_certainty_has_all_of_it():
    uniform, certain = torch.full((5, 3), 1 / 3), torch.nn.functional.one_hot(Y, 3).float()
    assert losses.edge(uniform, Y, previous=draw(5, 3)).item() == pytest.approx(0, abs=1e-7)
    assert losses.edge(certain, Y, previous=draw(5, 3)).item() == pytest.approx(1)
    assert losses.exponential_loss(uniform, Y).item() == pytest.approx(2)


def test_half_precision_is_computed_in_single_also_under_autocast():
    s = draw(5, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        values = [losses.exponential_loss(s, Y), losses.edge(s.softmax(1), Y, previous=s)]
    assert [v.dtype for v in values] == [torch.float32] * 2
    torch.testing.assert_close(values[0], losses.exponential_loss(s.float(), Y))


def test_scores_that_are_not_finite_are_seen_in_the_loss():
    s = draw(5, 3)
    s[1, 0] = torch.nan
    assert losses.exponential_loss(s, Y).isnan()


@pytest.mark.parametrize(
    ("scores", "y", "said"),
    [
        (torch.zeros(5, 1), Y, "two classes or more"),
        (torch.zeros(5, 3, 2), Y, "two classes or more"),
        (torch.zeros(4, 3), Y, "one integer class per sample"),
        (torch.zeros(5, 3), Y.float(), "one integer class per sample"),
        (torch.zeros(5, 2), Y, "labels from 0 to 2 were given for 2 classes"),
        (torch.zeros(5, 3), Y - 1, "labels from -1 to 1"),
    ],
)
def test_scores_and_labels_that_do_not_fit_are_refused(scores, y, said):
    for function in (losses.exponential_loss, losses.pair_costs):
        with pytest.raises(MethodError, match=said):
            function(scores, y)
    with pytest.raises(MethodError, match=said):
        losses.edge(scores, y, previous=scores)
