"""Pairwise objectives against double loops, the authors' own figures, closed forms of their optima, bad input.

What does not hold, so that nobody looks for it: kernels of an activation see a rotation of the features (the
activation works element by element), tanh and sigmoid see their scale, and no objective but the alignments is
indifferent to the scale of the Gram matrix.
"""

import itertools
import math

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from literal_oracles import assert_same_value_and_gradient, draw
from torch._subclasses import FakeTensorMode

from modulewise import losses
from modulewise.errors import MethodError

KERNELS = [losses.TANH, losses.SIGMOID, losses.RELU, losses.gaussian(1.5)]
OBJECTIVES = list(losses.PAIRWISE_OBJECTIVES.values())
ALIGNMENTS = (losses.alignment, losses.upper_triangle_alignment)
Y = torch.tensor([0, 1, 0, 2, 1])
seeds = settings(max_examples=20, deadline=None, database=None)
every_objective = pytest.mark.parametrize("name", sorted(losses.PAIRWISE_OBJECTIVES))
only_negatives = pytest.mark.parametrize("negatives_only", [False, True], ids=["all", "negatives"])
numbers = st.integers(0, 10**6)


def cases(*kernels):
    """Objective, kernel and which pairs count, wherever that is defined."""
    return [
        pytest.param(name, kernel, only, id=f"{name}-{kernel.name}-{'negatives' if only else 'all'}")
        for name, kernel, only in itertools.product(losses.PAIRWISE_OBJECTIVES, kernels, (False, True))
        if not (only and "alignment" in name and kernel.minimum == 0)
    ]


def literal_gram(h, kernel):
    """k(u, v) pair by pair, in plain loops over features."""

    def sigma(v):
        if kernel.name == "tanh":
            return (torch.exp(v) - torch.exp(-v)) / (torch.exp(v) + torch.exp(-v))
        return 1 / (1 + torch.exp(-v)) if kernel.name == "sigmoid" else (v if v > 0 else 0 * v)

    def k(u, v):
        if kernel.name.startswith("gaussian"):
            return torch.exp(-sum((a - b) ** 2 for a, b in zip(u, v, strict=True)) / (2 * 1.5**2))
        u, v = [sigma(a) for a in u], [sigma(a) for a in v]
        lengths = [sum(a * a for a in w) ** 0.5 for w in (u, v)]
        return sum(a * b for a, b in zip(u, v, strict=True)) / (lengths[0] * lengths[1])

    rows = [list(sample) for sample in h]
    return [[k(u, v) for v in rows] for u in rows]


def literal_objective(name, gram, y, minimum, maximum, negatives_only):
    """A double loop over pairs, by the formula of each objective."""
    n = len(y)
    count = signed = positive = everything = cross = left = right = 0.0
    power = {"srs-1": 1, "srs-2": 2, "nmse": 2}.get(name)
    distance = 0.0
    for i in range(n):
        for j in range(n):
            same = bool(y[i] == y[j])
            if negatives_only and same:
                continue
            if name == "upper-triangle-alignment" and j <= i:
                continue
            if i == j and power is None and name != "alignment":
                continue
            ideal = maximum if same else minimum
            k = gram[i][j]
            count += 1
            signed = signed + (k if same else -k)
            positive = positive + (torch.exp(k) if same else 0)
            everything = everything + torch.exp(k)
            cross, left, right = cross + k * ideal, left + k**2, right + ideal**2
            gap = ideal - k
            distance = distance + (gap**2 if power == 2 else (gap if gap > 0 else -gap))
    if power is not None:
        return -distance / count
    if name == "raw":
        return signed / count
    if name == "contrastive":
        return -everything / count if negatives_only else positive / everything
    if name == "log-contrastive":
        return -torch.log(everything / count) if negatives_only else torch.log(positive / everything)
    return cross / (left**0.5 * right**0.5)


def value_of(name, gram, y, kernel, **options):
    return losses.PAIRWISE_OBJECTIVES[name](gram, y, minimum=kernel.minimum, maximum=kernel.maximum, **options)


@pytest.mark.parametrize(("name", "kernel", "negatives_only"), cases(*KERNELS))
def test_objective_equals_a_double_loop(name, kernel, negatives_only):
    assert_same_value_and_gradient(
        lambda h: value_of(name, kernel.gram(h), Y, kernel, negatives_only=negatives_only),
        lambda h: literal_objective(name, literal_gram(h, kernel), Y, kernel.minimum, kernel.maximum, negatives_only),
        draw(5, 4, seed=3),
    )


@only_negatives
@pytest.mark.parametrize("power", [1.0, 1.5, 2.0, 3.0])
def test_srs_loss_equals_a_double_loop_for_every_power(power, negatives_only):
    def literal(h):
        gram = literal_gram(h, losses.TANH)
        pairs = [(i, j) for i in range(5) for j in range(5) if not (negatives_only and Y[i] == Y[j])]
        gaps = [(1.0 if Y[i] == Y[j] else -1.0) - gram[i][j] for i, j in pairs if i != j]  # k(x, x) = 1 = G*
        return sum((gap if gap > 0 else -gap) ** power for gap in gaps) / len(pairs)

    options = {"minimum": -1.0, "maximum": 1.0, "power": power, "negatives_only": negatives_only}
    assert_same_value_and_gradient(lambda h: losses.srs_loss(losses.TANH.gram(h), Y, **options), literal, draw(5, 4))


@pytest.mark.parametrize(
    ("name", "negatives_only", "gaussian", "tanh"),
    [
        ("raw", False, -0.2889, 0.2654),
        ("raw", True, -0.7815, 0.0563),
        ("nmse", False, -0.2964, -0.4881),
        ("nmse", True, -0.6207, -1.0481),
        ("alignment", False, 0.7733, 0.7155),
        ("alignment", True, None, 0.1405),
        ("upper-triangle-alignment", False, 0.5299, 0.5176),
        ("upper-triangle-alignment", True, None, 0.1405),
        ("contrastive", False, 0.3136, 0.4925),
        ("contrastive", True, -2.1957, -1.0207),
        ("log-contrastive", False, -1.1597, -0.7083),
        ("log-contrastive", True, -0.7865, -0.0205),
    ],
)
def test_objectives_have_the_values_of_the_authors_code(name, negatives_only, gaussian, tanh):
    """The figures that kerNET's own tests expect, to their four digits; None where it refuses."""
    h, y = torch.tensor([[1.0, 3.0], [0.5, -2.0], [9.0, 0.1]]), torch.tensor([0, 1, 0])
    for kernel, expected in ((losses.gaussian(10.0), gaussian), (losses.TANH, tanh)):
        if expected is not None:
            value = value_of(name, kernel.gram(h), y, kernel, negatives_only=negatives_only)
            assert abs(float(value) - expected) <= 6e-5


def test_srs_2_and_nmse_are_one_function_with_two_names():
    assert losses.nmse is losses.srs_2


@pytest.mark.parametrize(("name", "kernel", "negatives_only"), cases(losses.TANH, losses.RELU))
def test_no_gram_matrix_in_the_kernels_range_beats_the_ideal_one(name, kernel, negatives_only):
    """Over matrices with entries in the range, G* is the maximum of every objective."""
    extremes = {"minimum": kernel.minimum, "maximum": kernel.maximum}
    best = value_of(
        name, losses.ideal_gram(Y, **extremes, dtype=torch.float64), Y, kernel, negatives_only=negatives_only
    )
    for seed in range(20):
        other = kernel.minimum + (kernel.maximum - kernel.minimum) * draw(5, 5, seed=seed).sigmoid()
        assert value_of(name, (other + other.T) / 2, Y, kernel, negatives_only=negatives_only) < best


# Optima that unit vectors reach: what "perfect clusters" can mean.


def balanced(classes, each):
    return torch.arange(classes).repeat_interleave(each)


def simplex_optimum(classes):
    """Largest alignment for a minimum of -1 and classes of equal size: 2 sqrt(C - 1) / C."""
    return 2 * math.sqrt(classes - 1) / classes


@pytest.mark.parametrize("objective", ALIGNMENTS, ids=lambda o: o.__name__)
@pytest.mark.parametrize(("kernel", "classes"), [(losses.RELU, 2), (losses.RELU, 4), (losses.TANH, 2)])
def test_alignment_of_perfect_clusters_is_one_where_the_ideal_can_be_reached(objective, kernel, classes):
    """Orthogonal directions for a minimum of 0 and C <= D, opposite ones for a minimum of -1 and two classes."""
    y = balanced(classes, 3)
    h = (
        torch.eye(classes, dtype=torch.float64)[y]
        if kernel is losses.RELU
        else (1.0 - 2.0 * y[:, None].double()).repeat(1, 2)
    )
    gram = kernel.gram(h * torch.rand(len(y), 1, dtype=torch.float64).add(0.5))
    assert abs(float(objective(gram, y, minimum=kernel.minimum, maximum=kernel.maximum)) - 1) <= 1e-12


@pytest.mark.parametrize("classes", [2, 3, 5, 10])
def test_best_alignment_of_more_than_two_classes_with_minimum_minus_one_is_the_simplex(classes):
    """The closed form is the value at the simplex, and the cosine of G* with its projection on the PSD cone."""
    y = balanced(classes, 3)
    corners = torch.eye(classes, dtype=torch.float64) - 1 / classes
    corners = corners / corners.norm(dim=1, keepdim=True)
    gram = (corners @ corners.T)[y][:, y]
    assert abs(float(gram[0, -1]) + 1 / (classes - 1)) <= 1e-12
    expected = simplex_optimum(classes)
    assert abs(float(losses.alignment(gram, y, minimum=-1.0, maximum=1.0)) - expected) <= 1e-12
    ideal = losses.ideal_gram(y, minimum=-1.0, maximum=1.0, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(ideal)
    nearest = (vectors * values.clamp_min(0)) @ vectors.T
    assert abs(float((nearest * ideal).sum() / (nearest.norm() * ideal.norm())) - expected) <= 1e-12


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_ascent_on_free_unit_vectors_reaches_the_simplex_optimum_and_does_not_pass_it(classes):
    y = balanced(classes, 3)
    reached = []
    for seed in range(3):
        z = draw(len(y), classes + 2, seed=seed).requires_grad_()
        for _ in range(150):
            unit = z / z.norm(dim=1, keepdim=True)
            value = losses.alignment(unit @ unit.T, y, minimum=-1.0, maximum=1.0)
            reached.append(value.item())
            (slope,) = torch.autograd.grad(value, z)
            z = (unit + 5 * slope).detach().requires_grad_()
    assert max(reached) <= simplex_optimum(classes) + 1e-12
    assert max(reached) >= simplex_optimum(classes) - 1e-4


@pytest.mark.parametrize("classes", [3, 4])
def test_without_the_diagonal_alignment_is_one_for_classes_that_hardly_hold_together(classes):
    """(1 - a) I + a G* with a = 1 / ((C - 2) n + 1) is a Gram matrix of unit vectors; `alignment` sees it is not G*."""
    each = 4
    y, a = balanced(classes, each), 1 / ((classes - 2) * each + 1)
    ideal = losses.ideal_gram(y, minimum=-1.0, maximum=1.0, dtype=torch.float64)
    gram = (1 - a) * torch.eye(len(y), dtype=torch.float64) + a * ideal
    assert torch.linalg.eigvalsh(gram).min() >= -1e-12
    extremes = {"minimum": -1.0, "maximum": 1.0}
    assert abs(float(losses.upper_triangle_alignment(gram, y, **extremes)) - 1) <= 1e-12
    assert losses.alignment(gram, y, **extremes) < simplex_optimum(classes) - 0.1


# Invariances.


@seeds
@given(numbers, st.permutations(range(5)), st.sampled_from(KERNELS), st.booleans())
def test_objectives_do_not_see_the_order_of_the_batch_or_the_names_of_classes(seed, order, kernel, negatives_only):
    h, order = draw(5, 4, seed=seed), list(order)
    renamed = torch.tensor([7, 3, 5])[Y]
    for name in losses.PAIRWISE_OBJECTIVES:
        if negatives_only and "alignment" in name and kernel.minimum == 0:
            continue
        a, b, c = (
            value_of(name, kernel.gram(h[rows]), labels[rows], kernel, negatives_only=negatives_only)
            for rows, labels in ((list(range(5)), Y), (order, Y), (order, renamed))
        )
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(c, a, rtol=1e-9, atol=1e-10)


@seeds
@given(numbers, st.floats(0.01, 100))
def test_alignments_do_not_see_the_scale_of_the_gram_and_stay_within_one(seed, scale):
    gram = losses.TANH.gram(draw(5, 4, seed=seed))
    for objective, negatives_only in itertools.product(ALIGNMENTS, (False, True)):
        options = {"minimum": -1.0, "maximum": 1.0, "negatives_only": negatives_only}
        a, b = objective(gram, Y, **options), objective(scale * gram, Y, **options)
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
        assert abs(a) <= 1 + 1e-12


@seeds
@given(numbers, st.floats(-50, 50))
def test_the_share_of_pairs_does_not_see_a_shift_of_the_gram(seed, shift):
    gram = losses.TANH.gram(draw(5, 4, seed=seed))
    for objective in (losses.contrastive, losses.log_contrastive):
        torch.testing.assert_close(objective(gram + shift, Y), objective(gram, Y), rtol=1e-9, atol=1e-10)
    assert 0 <= losses.contrastive(gram, Y) <= 1
    torch.testing.assert_close(losses.contrastive(gram, Y).log(), losses.log_contrastive(gram, Y))


@seeds
@given(numbers, st.sampled_from(sorted(losses.PAIRWISE_OBJECTIVES)))
@example(21371, "upper-triangle-alignment")
def test_rotations_are_seen_by_kernels_of_an_activation_and_not_by_the_gaussian(seed, name):
    h, rotation = draw(5, 4, seed=seed), torch.linalg.qr(draw(4, 4, seed=seed + 1)).Q
    for kernel in KERNELS:
        a, b = (value_of(name, kernel.gram(features), Y, kernel) for features in (h, h @ rotation))
        assume(a != 0 or b != 0)  # no feature of any pair is active before or after
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-10) == kernel.name.startswith("gaussian")


@seeds
@given(numbers, st.lists(st.floats(0.1, 10), min_size=5, max_size=5))
def test_the_relu_kernel_does_not_see_the_scale_of_a_sample(seed, scales):
    h = draw(5, 4, seed=seed)
    scaled = h * torch.tensor(scales, dtype=torch.float64)[:, None]
    torch.testing.assert_close(losses.RELU.gram(scaled), losses.RELU.gram(h), rtol=1e-9, atol=1e-10)


def test_upper_triangle_ignores_the_rest_of_the_gram():
    gram, extremes = losses.TANH.gram(draw(5, 4)), {"minimum": -1.0, "maximum": 1.0}
    for other in (gram.triu(1), gram + 5 * torch.eye(5)):
        torch.testing.assert_close(
            losses.upper_triangle_alignment(other, Y, **extremes), losses.upper_triangle_alignment(gram, Y, **extremes)
        )


# Bad input.


@only_negatives
@every_objective
@pytest.mark.parametrize("samples", [1, 3])
def test_one_class_in_a_batch_is_refused(name, negatives_only, samples):
    """A batch of one sample is one class as well."""
    gram, y = torch.ones(samples, samples), torch.ones(samples, dtype=torch.long)
    with pytest.raises(MethodError, match="one class"):
        value_of(name, gram, y, losses.TANH, negatives_only=negatives_only)


@pytest.mark.parametrize(("name", "kernel", "negatives_only"), cases(losses.TANH, losses.RELU))
def test_samples_of_zeros_have_finite_values_and_gradients(name, kernel, negatives_only):
    for h in (torch.cat([torch.zeros(2, 3), torch.randn(3, 3)]), torch.zeros(5, 3)):
        h.requires_grad_()
        value = value_of(name, kernel.gram(h), Y, kernel, negatives_only=negatives_only)
        value.backward()
        assert value.isfinite()
        assert h.grad.isfinite().all()


@pytest.mark.parametrize(("name", "kernel", "negatives_only"), cases(losses.TANH, losses.RELU, losses.gaussian(1.0)))
def test_one_nan_makes_the_value_nan(name, kernel, negatives_only):
    """So that the trainer refuses it, instead of learning from the other pairs."""
    h = torch.randn(5, 3)
    h[4, 1] = torch.nan
    assert value_of(name, kernel.gram(h), Y, kernel, negatives_only=negatives_only).isnan()


@pytest.mark.parametrize("objective", ALIGNMENTS, ids=lambda o: o.__name__)
def test_alignment_of_negative_pairs_needs_a_minimum_other_than_zero(objective):
    with pytest.raises(MethodError, match="minimum is 0"):
        objective(torch.eye(5), Y, minimum=0.0, maximum=1.0, negatives_only=True)


def test_alignment_without_a_pair_to_reach_is_zero_with_zero_gradient():
    """All labels different and a kernel with minimum 0: G* vanishes off the diagonal."""
    h = torch.randn(3, 4, requires_grad=True)
    value = losses.upper_triangle_alignment(losses.RELU.gram(h), torch.arange(3), minimum=0.0, maximum=1.0)
    value.backward()
    assert value == 0
    assert torch.equal(h.grad, torch.zeros_like(h))


def test_a_batch_without_two_samples_of_one_class_has_no_share_and_no_logarithm_of_it():
    gram = losses.RELU.gram(torch.randn(3, 4))
    assert losses.contrastive(gram, torch.arange(3)) == 0
    with pytest.raises(MethodError, match="two samples of one class"):
        losses.log_contrastive(gram, torch.arange(3))
    assert losses.log_contrastive(gram, torch.arange(3), negatives_only=True).isfinite()


@every_objective
def test_labels_that_do_not_fit_are_refused(name):
    with pytest.raises(MethodError, match=r"\(4, 4\).*5 labels"):
        value_of(name, torch.eye(4), Y, losses.TANH)
    with pytest.raises(MethodError, match=r"\(1, 1\).*5 labels"):
        value_of(name, torch.eye(1), Y, losses.TANH)
    with pytest.raises(MethodError, match=r"\(2, 3\)"):
        value_of(name, torch.eye(2), torch.zeros(2, 3, dtype=torch.long), losses.TANH)
    with pytest.raises(MethodError, match="float32"):
        value_of(name, torch.eye(2), torch.zeros(2), losses.TANH)


@pytest.mark.parametrize("power", [0.5, 0.0, math.nan])
def test_a_power_below_one_is_refused(power):
    with pytest.raises(MethodError, match=f"power={power}"):
        losses.srs_loss(torch.eye(5), Y, minimum=0.0, maximum=1.0, power=power)


@only_negatives
@every_objective
def test_labels_off_the_cpu_are_not_read(name, negatives_only):
    """Meta tensors have no values: reading one, as a check on a GPU would, raises."""
    gram, y = torch.ones(3, 3, device="meta"), torch.ones(3, dtype=torch.long, device="meta")
    assert value_of(name, gram, y, losses.TANH, negatives_only=negatives_only).shape == ()


@every_objective
def test_labels_without_values_are_not_read(name):
    """As where a step is measured under fake tensors."""
    with FakeTensorMode():
        assert value_of(name, torch.ones(3, 3), torch.ones(3, dtype=torch.long), losses.TANH).shape == ()


@only_negatives
@every_objective
def test_a_gram_in_half_precision_is_widened_under_autocast_too(name, negatives_only):
    gram = losses.TANH.gram(torch.randn(5, 4)).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        value = value_of(name, gram, Y, losses.TANH, negatives_only=negatives_only)
    assert value.dtype == torch.float32
    assert torch.equal(value, value_of(name, gram.float(), Y, losses.TANH, negatives_only=negatives_only))
