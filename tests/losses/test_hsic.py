"""HSIC in its forms: values and gradients against literal loops, closed forms, and what does not change them."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from literal_oracles import assert_same_value_and_gradient, dot, draw, literal_kernel, matrix
from torch import nn

from modulewise import losses, models
from modulewise.errors import MethodError

MEASURES = list(losses.DEPENDENCE_MEASURES.values())
# Well conditioned: at the published 1e-5 rounding alone is 1e-9 of the gradient, whoever computes it.
CCA = partial(losses.cca_hsic, epsilon=1e-2)
EXACT = [m for m in MEASURES if m is not losses.cca_hsic] + [CCA]
KERNELS = [losses.LINEAR, losses.COSINE, losses.gaussian(1.5)]
every_measure = pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.__name__)
seeds = settings(max_examples=20, deadline=None, database=None)


def literal_gram(h, name):
    rows = [list(sample.flatten()) for sample in h]
    return matrix([[literal_kernel(name, u, v) for v in rows] for u in rows])


def literal_trace(a, b):
    """tr(A H B H) with H_ij = [i = j] - 1/m, every index a loop."""
    m = len(a)

    def h(i, j):
        return (1.0 if i == j else 0.0) - 1 / m

    span = range(m)
    return sum(a[i, j] * h(j, k) * b[k, n] * h(n, i) for i in span for j in span for k in span for n in span)


def inverse(matrix_rows):
    """Gauss-Jordan elimination on lists, without pivoting: the matrices here are positive definite."""
    m = len(matrix_rows)
    rows = [list(row) + [1.0 if i == j else 0.0 for j in range(m)] for i, row in enumerate(matrix_rows)]
    for i in range(m):
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for j in range(m):
            if j != i:
                rows[j] = [x - rows[j][i] * y for x, y in zip(rows[j], rows[i], strict=True)]
    return [row[m:] for row in rows]


def literal_cca(a, b, epsilon):
    """tr(KH (KH + eps m)^-1 LH (LH + eps m)^-1), centred from one side as the authors' program does, by loops."""
    m, span = len(a), range(len(a))

    def ratio(k):
        column = [[k[i, j] - sum(k[i, n] for n in span) / m for j in span] for i in span]
        inverted = inverse([[column[i][j] + (epsilon * m if i == j else 0.0) for j in span] for i in span])
        return [[sum(column[i][n] * inverted[n][j] for n in span) for j in span] for i in span]

    r, s = ratio(a), ratio(b)
    return sum(r[i][j] * s[j][i] for i in span for j in span)


def literal_measure(measure, a, b):
    m, span = len(a), range(len(a))
    if measure is CCA:
        return literal_cca(a, b, 1e-2)
    if measure is losses.normalized_hsic:
        return literal_trace(a, b) / (literal_trace(a, a) ** 0.5 * literal_trace(b, b) ** 0.5)
    if measure is losses.hsic:
        return literal_trace(a, b) / (m - 1) ** 2
    product = sum(a[i, j] * b[i, j] for i in span for j in span) / m**2
    mean_a = sum(a[i, j] for i in span for j in span) / m**2
    mean_b = sum(b[i, j] for i in span for j in span) / m**2
    if measure is losses.plausible_hsic:
        return sum((a[i, j] - mean_a) * b[i, j] for i in span for j in span) / m**2
    row_a = [sum(a[i, j] for j in span) / m for i in span]
    row_b = [sum(b[i, j] for j in span) / m for i in span]
    return product - 2 * sum(x * y for x, y in zip(row_a, row_b, strict=True)) / m + mean_a * mean_b


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_kernels_equal_a_loop_over_pairs(kernel):
    h = draw(4, 3, 2)
    assert_same_value_and_gradient(kernel.gram, partial(literal_gram, name=kernel.name), h)


@pytest.mark.parametrize("measure", EXACT, ids=lambda m: getattr(m, "__name__", "cca_hsic"))
@pytest.mark.parametrize("kernel", [losses.COSINE, losses.gaussian(1.5)], ids=lambda k: k.name)
def test_measures_equal_literal_loops_over_indices(measure, kernel):
    other = literal_gram(draw(5, 2, seed=1), "gaussian")
    assert_same_value_and_gradient(
        lambda h: measure(kernel.gram(h), other),
        lambda h: literal_measure(measure, literal_gram(h, kernel.name), other),
        draw(5, 3),
    )


@pytest.mark.parametrize("measure", EXACT, ids=lambda m: getattr(m, "__name__", "cca_hsic"))
def test_gradients_reach_both_sides_where_a_variable_is_compared_with_itself(measure):
    kernel = losses.gaussian(1.5)

    def literal(h):
        gram = literal_gram(h, "gaussian")
        return literal_measure(measure, gram, gram)

    def actual(h):
        gram = kernel.gram(h)
        return measure(gram, gram)

    if measure is losses.normalized_hsic:  # constantly 1, so without a gradient
        assert abs(actual(draw(4, 3)) - 1) <= 1e-12
    else:
        assert_same_value_and_gradient(actual, literal, draw(4, 3))


def test_cca_hsic_has_the_published_regularisation_of_1e_5():
    a, b = (literal_gram(draw(5, 3, seed=s), "gaussian") for s in (0, 1))
    literal = literal_cca(a, b, 1e-5)
    assert abs(losses.cca_hsic(a, b) - literal) <= 1e-10 * literal
    assert abs(losses.cca_hsic(a, b) - literal_cca(a, b, 1.1e-5)) > 1e-6 * literal


def test_hsic_is_zero_on_a_complete_grid_of_two_independent_variables():
    """Every value of X with every value of Y: the empirical distribution is a product, so HSIC = 0 for any kernel."""
    u, v = draw(3, 2, seed=1), draw(4, 5, seed=2)
    x, y = u.repeat_interleave(4, 0), v.repeat(3, 1)
    for kernel in KERNELS:
        a, b = kernel.gram(x), kernel.gram(y)
        for measure in (losses.hsic, losses.biased_hsic, losses.normalized_hsic):
            assert abs(measure(a, b)) <= 1e-14 * measure(a, a).clamp_min(1)
    # and not when one cell is missing
    assert losses.hsic(losses.COSINE.gram(x[1:]), losses.COSINE.gram(y[1:])) > 1e-4


def test_hsic_of_linear_kernels_is_the_squared_cross_covariance():
    x, y = draw(7, 3), draw(7, 2, seed=1)
    covariance = (x - x.mean(0)).T @ (y - y.mean(0)) / 6
    value = losses.hsic(losses.LINEAR.gram(x), losses.LINEAR.gram(y))
    assert abs(value - covariance.square().sum()) <= 1e-12 * value


def test_biased_hsic_is_hsic_with_another_denominator():
    a, b = (losses.COSINE.gram(draw(6, 3, seed=s)) for s in (0, 1))
    assert abs(losses.biased_hsic(a, b) - (5 / 6) ** 2 * losses.hsic(a, b)) <= 1e-14


def test_plausible_hsic_is_hsic_where_the_row_means_of_one_kernel_are_equal():
    """Balanced classes: every sample has the same mean similarity to the others."""
    y = losses.one_hot_similarity(torch.arange(6) % 3, classes=3, dtype=torch.float64)
    balanced = losses.COSINE.gram(draw(6, 4))
    assert abs(losses.plausible_hsic(balanced, y) - losses.biased_hsic(balanced, y)) <= 1e-14
    unbalanced = losses.one_hot_similarity(torch.tensor([0, 0, 0, 0, 1, 2]), classes=3, dtype=torch.float64)
    assert abs(losses.plausible_hsic(balanced, unbalanced) - losses.biased_hsic(balanced, unbalanced)) > 1e-4


def test_cca_hsic_of_a_variable_with_itself_is_a_sum_over_eigenvalues():
    gram = losses.gaussian(1.0).gram(draw(8, 3))
    m = len(gram)
    centring = torch.eye(m, dtype=torch.float64) - 1 / m
    values = torch.linalg.eigvalsh(centring @ gram @ centring)
    for epsilon in (1e-5, 1e-2):
        expected = ((values / (values + epsilon * m)) ** 2).sum()
        assert abs(losses.cca_hsic(gram, gram, epsilon=epsilon) - expected) <= 1e-10 * expected
    # every direction counts as one where the regularisation vanishes
    assert abs(losses.cca_hsic(gram, gram, epsilon=1e-12) - (m - 1)) < 1e-6


def test_cca_hsic_with_large_regularisation_is_plain_hsic():
    a, b = (losses.COSINE.gram(draw(6, 3, seed=s)) for s in (0, 1))
    epsilon = 1e8
    scaled = losses.cca_hsic(a, b, epsilon=epsilon) * (epsilon * 6) ** 2 / 25
    assert abs(scaled - losses.hsic(a, b)) <= 1e-6 * losses.hsic(a, b)


@seeds
@given(seed=st.integers(0, 10**6))
@every_measure
def test_order_of_the_samples_and_of_the_two_variables_does_not_count(measure, seed):
    h, u = draw(6, 3, seed=seed), draw(6, 2, seed=seed + 1)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    a, b = losses.gaussian(1.5).gram(h), losses.COSINE.gram(u)
    value = measure(a, b)
    assert abs(measure(a[order][:, order], b[order][:, order]) - value) <= 1e-10
    assert abs(measure(b, a) - value) <= 1e-10
    if value.abs() > 1e-3:  # moving one variable alone is another joint distribution
        moved = measure(a[order][:, order], b)
        assert torch.equal(order, torch.arange(6)) or moved != value


@seeds
@given(seed=st.integers(0, 10**6), shift=st.floats(-3, 3), scale=st.floats(0.1, 5))
@every_measure
def test_a_constant_added_to_a_kernel_never_counts_and_its_scale_only_without_a_norm(measure, seed, shift, scale):
    a, b = losses.gaussian(1.5).gram(draw(6, 3, seed=seed)), losses.COSINE.gram(draw(6, 2, seed=seed + 1))
    value = measure(a, b)
    assert abs(measure(a + shift, b) - value) <= 1e-9
    if measure is losses.normalized_hsic:
        assert abs(measure(scale * a, b) - value) <= 1e-10
    elif measure is losses.cca_hsic:  # the scale counts, but only against epsilon m: at equal ratio it does not
        assert abs(losses.cca_hsic(scale * a, b, epsilon=1.0) - losses.cca_hsic(a, b, epsilon=1.0)) > 0 or scale == 1
    else:
        assert abs(measure(scale * a, b) - scale * value) <= 1e-10


@seeds
@given(seed=st.integers(0, 10**6))
def test_kernels_see_angles_and_lengths_but_no_directions(seed):
    """Rotations change nothing; scale changes all but the cosine, and a shift all but the Gaussian kernel."""
    h = draw(5, 4, seed=seed)
    rotation = torch.linalg.qr(draw(4, 4, seed=seed + 1)).Q
    for kernel in KERNELS:
        gram = kernel.gram(h)
        assert (kernel.gram(h @ rotation) - gram).abs().max() <= 1e-12
        scaled = (kernel.gram(2 * h) - gram).abs().max()
        assert scaled <= 1e-12 if kernel is losses.COSINE else scaled > 1e-6
        shifted = (kernel.gram(h + 1) - gram).abs().max()
        assert shifted <= 1e-12 if kernel.name.startswith("gaussian") else shifted > 1e-6


def test_scaled_gaussian_has_the_variance_2_sigma_squared_d():
    def literal(h):
        rows = [list(sample.flatten()) for sample in h]
        return matrix(
            [
                [torch.exp(-sum((a - b) ** 2 for a, b in zip(u, v, strict=True)) / (2 * 0.7**2 * 6)) for v in rows]
                for u in rows
            ]
        )

    assert_same_value_and_gradient(partial(losses.scaled_gaussian, sigma=0.7), literal, draw(4, 3, 2))


def test_one_hot_gaussian_is_the_scaled_gaussian_of_one_hot_labels():
    y = torch.tensor([0, 2, 1, 0, 3])
    expected = losses.scaled_gaussian(nn.functional.one_hot(y, 7).double(), sigma=0.4)
    actual = losses.one_hot_gaussian(y, classes=7, sigma=0.4, dtype=torch.float64)
    assert (actual - expected).abs().max() <= 1e-15
    assert expected.min() < 0.5


def test_labels_of_phsic_have_the_cosine_kernel_of_centred_one_hot_vectors():
    y = torch.tensor([0, 2, 1, 0])
    one_hot = nn.functional.one_hot(y, 5).double()
    expected = losses.COSINE.gram(one_hot - one_hot.mean(1, keepdim=True))
    assert (losses.one_hot_similarity(y, classes=5, dtype=torch.float64) - expected).abs().max() <= 1e-15


def literal_groups(z, groups, power, smoothing):
    """Consecutive channels, all positions of each, by loops."""
    rows = []
    for sample in z:
        size = sample.shape[0] // groups
        powers = []
        for group in range(groups):
            values = [v for channel in sample[group * size : (group + 1) * size] for v in channel.flatten()]
            mean = sum(values) / len(values)
            powers.append(((sum((v - mean) ** 2 for v in values) + smoothing) / len(values)) ** power)
        mean = sum(powers) / groups
        rows.append([p - mean for p in powers])
    return matrix(rows)


@pytest.mark.parametrize("shape", [(3, 8), (3, 4, 3), (3, 4, 2, 2)])
@pytest.mark.parametrize(("power", "smoothing"), [(0.5, 1.0), (0.8, 0.1)])
def test_group_deviations_equal_a_loop_over_groups(shape, power, smoothing):
    assert_same_value_and_gradient(
        partial(losses.group_deviations, groups=4 if len(shape) == 2 else 2, power=power, smoothing=smoothing),
        lambda z: literal_groups(z, 4 if len(shape) == 2 else 2, power, smoothing),
        draw(*shape),
    )


def test_group_deviations_change_along_the_output_of_divisive_normalisation():
    """d u_a^(1 - p) / d z_i = 2 (1 - p) / n r_i: why an exponent of 0.8 goes with a normalisation of power 0.2."""
    z = draw(1, 12).requires_grad_()
    (deviations,) = losses.group_deviations(z, groups=3, power=0.8)
    r = models.DivisiveNormalization(3, power=0.2)(z).detach()
    (gradient,) = torch.autograd.grad(deviations[0] - deviations[1], z)
    expected = 2 * 0.8 / 4 * torch.cat([r[0, :4], -r[0, 4:8], torch.zeros(4)])
    assert (gradient[0] - expected).abs().max() <= 1e-14


@seeds
@given(seed=st.integers(0, 10**6), shift=st.floats(-5, 5))
def test_group_deviations_ignore_order_and_mean_within_a_group_but_not_which_group(seed, shift):
    z = draw(2, 8, seed=seed)
    deviations = losses.group_deviations(z, groups=2)
    within = torch.cat([z[:, [2, 0, 3, 1]] + shift, z[:, 4:]], 1)
    assert (losses.group_deviations(within, groups=2) - deviations).abs().max() <= 1e-10
    assert (losses.group_deviations(z[:, [0, 4, 1, 5, 2, 6, 3, 7]], groups=2) - deviations).abs().max() > 1e-9


def test_gradient_of_a_linear_layer_is_a_third_factor_times_post_times_pre():
    """dL/dW = 1/m^2 sum_ij M_ij (z_i f'(a_j) x_j^T + z_j f'(a_i) x_i^T), M = 2 (K - mean K) - gamma (L - mean L)."""
    x, weight = draw(5, 4), draw(3, 4, seed=1).requires_grad_()
    y = losses.one_hot_similarity(torch.tensor([0, 1, 0, 2, 1]), classes=3, dtype=torch.float64)
    gamma, m = 2.0, 5
    z = nn.functional.leaky_relu(x @ weight.T, 0.1)
    gram = losses.LINEAR.gram(z)
    loss = losses.plausible_hsic(gram, gram) - gamma * losses.plausible_hsic(gram, y)
    (gradient,) = torch.autograd.grad(loss, weight)
    a = (x @ weight.T).detach()
    slope = torch.where(a > 0, torch.ones_like(a), torch.full_like(a, 0.1))
    kernel = [[dot(z[i].detach(), z[j].detach()) for j in range(m)] for i in range(m)]
    mean_k = sum(map(sum, kernel)) / m**2
    mean_y = sum(y[i, j] for i in range(m) for j in range(m)) / m**2
    update = torch.zeros(3, 4, dtype=torch.float64)
    for i in range(m):
        for j in range(m):
            third = 2 * (kernel[i][j] - mean_k) - gamma * (y[i, j] - mean_y)
            for post in range(3):
                for pre in range(4):
                    hebb = z[i, post] * slope[j, post] * x[j, pre] + z[j, post] * slope[i, post] * x[i, pre]
                    update[post, pre] += (third * hebb).detach() / m**2
    assert (gradient - update).abs().max() <= 1e-10 * update.abs().max()


@every_measure
def test_one_sample_one_class_and_dead_features_give_zero_and_no_gradient(measure):
    labels = losses.one_hot_gaussian(torch.zeros(4, dtype=torch.long), classes=3, sigma=1.0)
    cases = [(draw(1, 3).float(), torch.ones(1, 1)), (draw(4, 3).float(), labels)]
    for kernel in (losses.COSINE, losses.gaussian(1.5)):
        for h, other in [*cases, (torch.zeros(4, 3), losses.COSINE.gram(draw(4, 2).float()))]:
            h = h.requires_grad_()
            value = measure(kernel.gram(h), other)
            (gradient,) = torch.autograd.grad(value, h)
            assert value == 0
            assert not gradient.abs().any()


@every_measure
def test_nan_features_give_a_nan_value_and_not_an_error_of_the_solver(measure):
    h = draw(4, 3)
    h[1, 2] = math.nan
    assert measure(losses.gaussian(1.0).gram(h), losses.COSINE.gram(draw(4, 2))).isnan()


def test_half_precision_is_widened_also_under_autocast():
    h = draw(16, 8).float()
    with torch.autocast("cpu", torch.bfloat16):
        for kernel in KERNELS:
            gram = kernel.gram(h.bfloat16())
            assert gram.dtype is torch.float32
            for measure in MEASURES:
                value = measure(gram, gram)
                exact = measure(*[kernel.gram(h.bfloat16().double())] * 2)
                assert value.dtype is torch.float32
                assert abs(value - exact) <= 1e-3 * exact


@every_measure
@pytest.mark.parametrize("shapes", [((3, 3), (4, 4)), ((3, 2), (3, 2)), ((3,), (3,))])
def test_gram_matrices_that_do_not_fit_are_refused(measure, shapes):
    with pytest.raises(MethodError, match="two square ones"):
        measure(*map(torch.zeros, shapes))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: losses.cca_hsic(torch.eye(2), torch.eye(2), epsilon=0.0), "epsilon=0.0"),
        (lambda: losses.group_deviations(torch.zeros(2, 6), groups=1), "groups=1"),
        (lambda: losses.group_deviations(torch.zeros(2, 6), groups=4), "6 channels of 1 positions"),
        (lambda: losses.group_deviations(torch.zeros(2, 6), groups=6), "two elements"),
        (lambda: losses.one_hot_gaussian(torch.zeros(2), classes=2, sigma=1.0), "one integer class"),
        (lambda: losses.scaled_gaussian(torch.zeros(2, 2), sigma=0.0), "width=0"),
    ],
)
def test_numbers_and_labels_out_of_range_are_refused(make, says):
    with pytest.raises(MethodError, match=says):
        make()
