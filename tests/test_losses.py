import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from literal_oracles import assert_same_value_and_gradient, dot, draw, matrix

from modulewise import losses
from modulewise.errors import DataError, MethodError

KERNELS = [losses.TANH, losses.SIGMOID, losses.RELU, losses.gaussian(1.5)]
Y = torch.tensor([0, 1, 0, 2, 1])
seeds = settings(max_examples=20, deadline=None, database=None)


def cross_entropy_of_rows(rows, labels):
    total = 0.0
    for row, label in zip(rows, labels, strict=True):
        total = total + torch.log(sum(torch.exp(value) for value in row)) - row[label]
    return total / len(labels)


def literal_similarity(h):
    """R by loops over samples, channels and positions."""
    rows = []
    for sample in h:
        if sample.dim() > 1 and sample.shape[0] > 3 and sample[0].numel() > 1:
            features = []
            for channel in sample:
                values = list(channel.flatten())
                mean = sum(values) / len(values)
                features.append((sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5)
        else:
            features = list(sample.flatten())
        mean = sum(features) / len(features)
        centred = [f - mean for f in features]
        norm = dot(centred, centred) ** 0.5
        rows.append([c / norm for c in centred])
    return matrix([[dot(u, v) for v in rows] for u in rows])


def literal_gram(h, kernel):
    rows = [list(sample.flatten()) for sample in h]
    if kernel.name.startswith("gaussian"):
        return matrix(
            [
                [torch.exp(-sum((a - b) ** 2 for a, b in zip(u, v, strict=True)) / (2 * 1.5**2)) for v in rows]
                for u in rows
            ]
        )
    sigma = {
        "tanh": lambda v: (torch.exp(v) - torch.exp(-v)) / (torch.exp(v) + torch.exp(-v)),
        "sigmoid": lambda v: 1 / (1 + torch.exp(-v)),
        "relu": lambda v: v if v > 0 else 0 * v,
    }[kernel.name]
    active = [[sigma(v) for v in row] for row in rows]
    unit = [[v / dot(row, row) ** 0.5 for v in row] for row in active]
    return matrix([[dot(u, v) for v in unit] for u in unit])


def test_classification_of_samples_equals_a_loop():
    assert_same_value_and_gradient(
        lambda h: losses.classification(h, Y), lambda h: cross_entropy_of_rows(h, Y), draw(5, 3)
    )


def test_classification_of_tokens_equals_a_loop():
    y = torch.tensor([[0, 1, 2], [3, 0, 1]])
    assert_same_value_and_gradient(
        lambda h: losses.classification(h, y),
        lambda h: cross_entropy_of_rows(h.reshape(6, 4), y.flatten()),
        draw(2, 3, 4),
    )


def test_classification_of_pixels_equals_a_loop():
    y = torch.tensor([[[0, 1], [2, 0]], [[1, 1], [0, 2]]])
    assert_same_value_and_gradient(
        lambda h: losses.classification(h, y),
        lambda h: cross_entropy_of_rows([h[n, :, i, j] for n in (0, 1) for i in (0, 1) for j in (0, 1)], y.flatten()),
        draw(2, 3, 2, 2),
    )


def test_classification_resizes_logits_of_pixels_bilinearly():
    """Doubling one axis: a pixel is 3/4 of its source pixel and 1/4 of the next nearest, the edge repeats."""
    logits, y = draw(1, 3, 1, 2), torch.tensor([[[0, 1, 2, 0]]])
    a, b = logits[0, :, 0, 0], logits[0, :, 0, 1]
    rows = [a, 0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b, b]
    assert math.isclose(losses.classification(logits, y), cross_entropy_of_rows(rows, y.flatten()), rel_tol=1e-10)


def test_classification_takes_every_integer_type_and_leaves_out_minus_100():
    logits = draw(4, 3)
    full = losses.classification(logits[:2], torch.tensor([2, 1]))
    assert torch.equal(losses.classification(logits[:2], torch.tensor([2, 1], dtype=torch.uint8)), full)
    assert torch.equal(losses.classification(logits, torch.tensor([2, 1, -100, -100])), full)


@pytest.mark.parametrize(
    ("logits", "y", "says"),
    [
        (torch.zeros(2, 3), torch.zeros(2), "float32"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), r"\(3,\)"),
        (torch.zeros(2, 3), torch.zeros(2, 1, dtype=torch.long), r"\(2, 1\)"),
        (torch.zeros(2, 5, 3), torch.zeros(2, dtype=torch.long), r"\(2, 5, 3\)"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.long), "dense"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.long), r"\(3,\)"),
        ({"logits": torch.zeros(2, 3)}, torch.zeros(2, dtype=torch.long), "dict"),
    ],
)
def test_classification_refuses_labels_that_do_not_fit(logits, y, says):
    with pytest.raises(DataError, match=says):
        losses.classification(logits, y)


@pytest.mark.parametrize("shape", [(5, 4), (5, 3, 2, 2), (5, 4, 1, 1), (5, 4, 3, 2), (5, 4, 3)])
def test_similarity_matrix_equals_a_loop(shape):
    """Vectors, few channels (flattened), 1x1 maps (flattened), images and sequences (deviation of channels)."""
    assert_same_value_and_gradient(losses.similarity_matrix, literal_similarity, draw(*shape))


def test_similarity_matching_equals_a_loop():
    target = losses.one_hot_similarity(Y, classes=4, dtype=torch.float64)

    def literal(h):
        similarity = literal_similarity(h)
        pairs = [(i, j) for i in range(5) for j in range(5)]
        return sum((similarity[i, j] - (1.0 if Y[i] == Y[j] else -1 / 3)) ** 2 for i, j in pairs) / 25

    assert_same_value_and_gradient(lambda h: losses.similarity_matching(h, target), literal, draw(5, 6))


def test_one_hot_similarity_is_the_similarity_matrix_of_one_hot_labels():
    expected = losses.similarity_matrix(F.one_hot(Y, 4).double())
    torch.testing.assert_close(
        losses.one_hot_similarity(Y, classes=4, dtype=torch.float64), expected, rtol=1e-12, atol=1e-12
    )


@seeds
@given(st.integers(0, 10**6), st.floats(0.1, 10), st.floats(-5, 5))
def test_similarity_does_not_see_scale_and_shift_of_a_sample(seed, scale, shift):
    h = draw(4, 6, seed=seed)
    moved = torch.cat([h[:1] * scale + shift, h[1:]])
    torch.testing.assert_close(losses.similarity_matrix(moved), losses.similarity_matrix(h), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("function", [losses.similarity_matrix, *(k.gram for k in KERNELS)])
def test_dead_samples_have_finite_gradients(function):
    """Samples of zeros (a dead layer) neither give NaN nor blow gradients up."""
    h = torch.cat([torch.zeros(2, 4, 2, 2), torch.randn(2, 4, 2, 2)]).requires_grad_()
    (function(h) * torch.randn(4, 4)).sum().backward()
    assert h.grad.isfinite().all()
    assert h.grad.abs().max() < 1e3


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_gram_equals_a_loop(kernel):
    assert_same_value_and_gradient(kernel.gram, lambda h: literal_gram(h, kernel), draw(5, 2, 3))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_gram_stays_in_the_range_of_the_kernel(kernel):
    gram = kernel.gram(5 * draw(20, 3))
    assert gram.min() >= kernel.minimum - 1e-12
    assert gram.max() <= kernel.maximum + 1e-12


@seeds
@given(st.integers(0, 10**6), st.permutations(range(5)))
def test_losses_do_not_see_the_order_of_the_batch(seed, order):
    h, order = draw(5, 4, seed=seed), list(order)
    target = losses.one_hot_similarity(Y, classes=3, dtype=torch.float64)
    permuted = losses.one_hot_similarity(Y[order], classes=3, dtype=torch.float64)
    pairs = [
        (losses.classification(h, Y), losses.classification(h[order], Y[order])),
        (losses.similarity_matching(h, target), losses.similarity_matching(h[order], permuted)),
        (losses.sum_squared_error(h, 2 * h.sin()), losses.sum_squared_error(h[order], 2 * h[order].sin())),
    ]
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@seeds
@given(st.integers(0, 10**6))
def test_gaussian_kernel_and_squared_error_do_not_see_rigid_motions(seed):
    h, target = draw(5, 4, seed=seed), draw(5, 4, seed=seed + 1)
    rotation = torch.linalg.qr(draw(4, 4, seed=seed + 2)).Q
    shift = draw(4, seed=seed + 3)
    gram = losses.gaussian(2.0).gram
    torch.testing.assert_close(gram(h @ rotation + shift), gram(h), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(
        losses.sum_squared_error(h @ rotation + shift, target @ rotation + shift),
        losses.sum_squared_error(h, target),
        rtol=1e-9,
        atol=1e-10,
    )


def test_labels_per_position_are_refused_by_pairwise_losses():
    with pytest.raises(MethodError, match=r"\(N,\)"):
        losses.ideal_gram(torch.zeros(2, 3, dtype=torch.long), minimum=0.0, maximum=1.0)
    with pytest.raises(MethodError, match="float32"):
        losses.one_hot_similarity(torch.zeros(2), classes=2)


def test_wrong_arguments_are_refused():
    with pytest.raises(MethodError, match="width=0"):
        losses.gaussian(0)
    with pytest.raises(MethodError, match="classes=1"):
        losses.one_hot_similarity(Y, classes=1)
    with pytest.raises(MethodError, match=r"\(5, 3\)"):
        losses.similarity_matching(torch.zeros(5, 2), torch.zeros(5, 3))
    with pytest.raises(MethodError, match=r"\(5, 1\)"):
        losses.sum_squared_error(torch.zeros(5, 2), torch.zeros(5, 1))


def test_sum_squared_error_equals_a_loop():
    target = draw(3, 2, 4, seed=1)

    def literal(h):
        rows = zip(h, target, strict=True)
        return 0.5 * sum(sum((a - b) ** 2 for a, b in zip(u.flatten(), v.flatten(), strict=True)) for u, v in rows) / 3

    assert_same_value_and_gradient(lambda h: losses.sum_squared_error(h, target, scale=0.5), literal, draw(3, 2, 4))


@pytest.mark.parametrize("function", [losses.similarity_matrix, *(k.gram for k in KERNELS)])
def test_autocast_does_not_lower_the_precision_of_similarities(function):
    h = torch.randn(6, 32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = function(h)
    assert torch.equal(inside, function(h))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_kernels_travel_between_processes(kernel):
    h = torch.randn(3, 4)
    assert torch.equal(pickle.loads(pickle.dumps(kernel)).gram(h), kernel.gram(h))
