"""Similarity matching without labels, with projected labels, and in the degenerate cases."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from literal_oracles import assert_same_value_and_gradient, draw

from modulewise import losses

Y = torch.tensor([0, 1, 0, 2, 1])
seeds = settings(max_examples=20, deadline=None, database=None)


def literal_cosine(u, v):
    """Adjusted cosine of two samples, each (C, positions) or (C,), by loops."""
    rows = []
    for sample in (u, v):
        if sample.dim() > 1 and sample.shape[0] > 3 and sample[0].numel() > 1:
            features = []
            for channel in sample:
                values = list(channel.flatten())
                mean = sum(values) / len(values)
                features.append((sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5)
        else:
            features = list(sample.flatten())
        mean = sum(features) / len(features)
        centred = [f - mean for f in features]
        norm = sum(c * c for c in centred) ** 0.5
        rows.append([c / norm for c in centred])
    return sum(a * b for a, b in zip(*rows, strict=True))


@pytest.mark.parametrize("below", [(5, 3, 4, 4), (5, 6, 2, 2), (5, 7)], ids=str)
@pytest.mark.parametrize("above", [(5, 4, 3, 2), (5, 3, 2, 2), (5, 6)], ids=str)
def test_matching_the_similarity_of_another_tensor_equals_a_double_loop(below, above):
    """That is the unsupervised loss: no labels; the two tensors need have nothing but the batch in common."""
    x = draw(*below, seed=1)
    target = losses.similarity_matrix(x)

    def literal(h):
        total = 0.0
        for i in range(5):
            for j in range(5):
                total = total + (literal_cosine(h[i], h[j]) - literal_cosine(x[i], x[j])) ** 2
        return total / 25

    assert_same_value_and_gradient(lambda h: losses.similarity_matching(h, target), literal, draw(*above))


def test_matching_projected_labels_equals_a_double_loop():
    projection = draw(3, 8, seed=2)
    target = losses.similarity_matrix(losses.projected_labels(Y, projection))

    def literal(h):
        total = 0.0
        for i in range(5):
            for j in range(5):
                wanted = literal_cosine(projection[Y[i]], projection[Y[j]])
                total = total + (literal_cosine(h[i], h[j]) - wanted) ** 2
        return total / 25

    assert_same_value_and_gradient(lambda h: losses.similarity_matching(h, target), literal, draw(5, 6))


def test_projected_labels_are_fully_similar_within_a_class_and_less_across():
    similarity = losses.similarity_matrix(losses.projected_labels(Y, draw(3, 128)))
    same = Y[:, None] == Y[None, :]
    torch.testing.assert_close(similarity[same], torch.ones(int(same.sum()), dtype=torch.float64))
    assert (similarity[~same].abs() < 0.5).all()  # random directions of 128 dimensions are nearly orthogonal


@seeds
@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_vectors_may_be_scaled_shifted_and_their_features_permuted(seed, scale, shift):
    """A rotation of the features is not among the invariances: the mean over features changes with it."""
    h = draw(5, 6, seed=seed)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    similarity = losses.similarity_matrix(h)
    torch.testing.assert_close(losses.similarity_matrix(scale * h + shift), similarity, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(losses.similarity_matrix(h[:, order]), similarity, rtol=1e-10, atol=1e-12)


def test_a_rotation_of_features_changes_the_similarity():
    h = draw(5, 6)
    rotation, _ = torch.linalg.qr(draw(6, 6, seed=3))
    assert (losses.similarity_matrix(h @ rotation) - losses.similarity_matrix(h)).abs().max() > 0.01


@seeds
@given(seed=st.integers(0, 2**31))
def test_maps_of_more_than_three_channels_may_be_shifted_by_channel_and_reordered(seed):
    """Only the deviation of a channel counts. With three channels or fewer all elements do."""
    for channels, same in ((4, True), (3, False)):
        h = draw(5, channels, 16, seed=seed)
        moved = h + draw(5, channels, 1, seed=seed + 1)
        moved[0] = moved[0].flip(-1)  # of one sample: the same order for all is a permutation of features
        difference = (losses.similarity_matrix(moved) - losses.similarity_matrix(h)).abs().max()
        assert (difference < 1e-10) == same


def test_a_map_of_one_position_is_flattened():
    """Its deviation over positions does not exist."""
    h = draw(5, 6)
    assert torch.equal(losses.similarity_matrix(h[:, :, None, None]), losses.similarity_matrix(h))


@pytest.mark.parametrize("shape", [(5, 6), (5, 3, 4), (5, 6, 2, 2)], ids=str)
def test_samples_without_spread_have_finite_gradients_and_no_similarity(shape):
    h = draw(*shape)
    h[1], h[3] = 0.0, 2.5
    h = h.requires_grad_()
    losses.similarity_matching(h, losses.one_hot_similarity(Y, classes=3, dtype=torch.float64)).backward()
    assert h.grad.isfinite().all()
    assert h.grad[0].abs().sum() > 0
    similarity = losses.similarity_matrix(h.detach())
    assert torch.equal(similarity[1], torch.zeros(5, dtype=torch.float64))
    assert torch.equal(similarity[3], torch.zeros(5, dtype=torch.float64))


def test_one_sample_is_fully_similar_to_itself_and_teaches_nothing():
    h = draw(1, 6).requires_grad_()
    loss = losses.similarity_matching(h, losses.one_hot_similarity(torch.tensor([2]), classes=3, dtype=h.dtype))
    loss.backward()
    assert loss < 1e-25
    assert h.grad.abs().max() < 1e-12


def test_a_batch_of_one_class_draws_all_samples_together():
    h = draw(4, 6).requires_grad_()
    optimizer = torch.optim.SGD([h], lr=1.0)
    target = losses.one_hot_similarity(torch.zeros(4, dtype=torch.long), classes=3, dtype=h.dtype)
    for _ in range(300):
        optimizer.zero_grad()
        losses.similarity_matching(h, target).backward()
        optimizer.step()
    assert losses.similarity_matrix(h).min() > 0.95


def test_nan_features_give_a_nan_loss_that_the_trainer_refuses():
    h = draw(5, 6)
    h[2, 0] = float("nan")
    assert losses.similarity_matching(h, losses.one_hot_similarity(Y, classes=3, dtype=h.dtype)).isnan()
