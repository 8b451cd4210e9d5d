"""The forward-forward algorithm: goodness against literal loops, views, and the two ways to classify."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import modulewise as mw
from modulewise import losses, models
from modulewise.methods import ForwardForward
from modulewise.methods.proxy.forward_forward_labels import class_goodness, with_label

CLASSES = 3
quick = settings(max_examples=20, deadline=None, database=None)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def literal_contrast(positive: Tensor, negative: Tensor, threshold: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for rows, sign in ((positive, 1.0), (negative, -1.0)):
        for row in rows:
            values = list(row.flatten())
            g = sum(v * v for v in values) / len(values)
            total = total - torch.log(1 / (1 + torch.exp(-sign * (g - threshold))))
    return total / (len(positive) + len(negative))


def test_the_contrast_is_the_literal_log_likelihood_value_and_gradient():
    h = draw(5, 3, 2).requires_grad_()
    g = h.detach().clone().requires_grad_()
    actual = losses.goodness_contrast(h[:3], h[3:], threshold=0.8)
    literal = literal_contrast(g[:3], g[3:], 0.8)
    actual.backward()
    literal.backward()
    assert actual.item() == pytest.approx(literal.item(), rel=1e-12)
    torch.testing.assert_close(h.grad, g.grad, rtol=1e-10, atol=1e-14)


@quick
@given(seed=st.integers(0, 1000))
def test_the_order_of_samples_and_a_rotation_of_features_do_not_matter(seed):
    positive, negative = draw(4, 6, seed=seed), draw(4, 6, seed=seed + 1)
    rotation = torch.linalg.qr(draw(6, 6, seed=seed + 2)).Q
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    expected = losses.goodness_contrast(positive, negative)
    moved = losses.goodness_contrast((positive @ rotation)[order], negative[order] @ rotation)
    assert moved.item() == pytest.approx(expected.item(), rel=1e-10)


def test_at_the_threshold_both_are_equally_likely():
    h = torch.full((2, 4), 2.0, dtype=torch.float64)
    assert losses.goodness_contrast(h, h, threshold=4.0).item() == pytest.approx(math.log(2), rel=1e-14)


def test_extreme_goodness_gives_a_finite_gradient():
    h = (1e6 * draw(4, 3)).float().requires_grad_()
    losses.goodness_contrast(h[:2], h[2:]).backward()
    assert torch.isfinite(h.grad).all()


def test_views_carry_the_label_another_label_and_none():
    x, y = draw(50, 1, 2, 4), torch.arange(50) % CLASSES
    torch.manual_seed(0)
    views, count = ForwardForward(CLASSES).prepare(x, y)
    positive, negative, neutral = views.chunk(3)
    assert count == 3
    assert torch.equal(neutral, x)
    for marked in (positive, negative):
        assert torch.equal(marked.flatten(1)[:, CLASSES:], x.flatten(1)[:, CLASSES:])
        assert (marked.flatten(1)[:, :CLASSES] == x.max()).sum(1).eq(1).all()
    assert torch.equal(positive.flatten(1)[:, :CLASSES].argmax(1), y)
    others = negative.flatten(1)[:, :CLASSES].argmax(1)
    assert (others != y).all()
    assert len({(int(a), int(b)) for a, b in zip(y, others, strict=True)}) == CLASSES * (CLASSES - 1)
    assert torch.equal(x, draw(50, 1, 2, 4))


def network() -> torch.nn.Sequential:
    torch.manual_seed(5)
    return models.rms_mlp((1, 2, 4), CLASSES, width=6, depth=2).double()


def trainer_of() -> mw.Trainer:
    partition = mw.Partition(network(), cuts=["fc1", "fc2"], example=draw(4, 1, 2, 4))
    return mw.Trainer(
        partition, ForwardForward(CLASSES), loss=F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.5)
    )


def test_updates_are_those_of_plain_torch():
    """Parts below the last follow the contrast of the two labelled views, the last the task on the third."""
    from modulewise.seeding import seed_of, set_generators

    x, y = draw(6, 1, 2, 4, seed=2), torch.arange(6) % CLASSES
    trainer, model = trainer_of(), network()
    with torch.random.fork_rng(devices=[]):
        set_generators(seed_of(0, 0, "views"))
        views, _ = ForwardForward(CLASSES).prepare(x, y)
    expected, h = [], views
    for block in (torch.nn.Sequential(model.flatten, model.fc1), model.fc2, model.head):
        h = block(h.detach())
        last = block is model.head
        loss = F.cross_entropy(h[12:], y) if last else literal_contrast(h[:6], h[6:12], 1.0)
        gradients = torch.autograd.grad(loss, list(block.parameters()))
        expected += [p - 0.5 * g for p, g in zip(block.parameters(), gradients, strict=True)]
    trainer.step(x, y)
    for p, q in zip(trainer.partition.model.parameters(), expected, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_a_part_that_normalises_its_input_cannot_see_the_goodness_below():
    model = network()
    h = model.fc1(model.flatten(draw(4, 1, 2, 4)))
    torch.testing.assert_close(model.fc2(h), model.fc2(7 * h), rtol=1e-4, atol=1e-5)


def test_class_goodness_is_the_literal_sum_over_parts_but_the_first():
    trainer, x = trainer_of(), draw(4, 1, 2, 4, seed=8)
    found = class_goodness(trainer.partition, x, classes=CLASSES)
    model = trainer.partition.model
    for n in range(4):
        for label in range(CLASSES):
            marked = x[n : n + 1].clone().flatten(1)
            marked[0, :CLASSES] = x.min()
            marked[0, label] = x.max()
            h = model.fc2(model.fc1(marked))
            assert found[n, label].item() == pytest.approx(h.square().mean().item(), rel=1e-12)


def test_with_label_leaves_its_input_alone():
    x = draw(3, 5)
    with_label(x, torch.tensor([0, 1, 2]), classes=CLASSES)
    assert torch.equal(x, draw(3, 5))


def test_both_schedules_take_it():
    split = mw.data.Split(draw(16, 1, 2, 4).float(), torch.arange(16) % CLASSES)
    model = models.rms_mlp((1, 2, 4), CLASSES, width=6, depth=2)
    for schedule in (mw.schedules.simultaneous, mw.schedules.sequential):
        trainer = mw.Trainer(
            mw.Partition(model, cuts=["fc1", "fc2"], example=split.x),
            ForwardForward(CLASSES),
            loss=F.cross_entropy,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        )
        history = trainer.fit(mw.data.Loader(split, batch_size=8), epochs=1, schedule=schedule)
        assert all(math.isfinite(loss) for epoch in history for loss in epoch.losses.values())


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4, 2), "float32 .4, 2."),
        (torch.zeros(4, 5, dtype=torch.long), "int64"),
        ((torch.zeros(4, 5),), "tuple"),
    ],
)
def test_inputs_without_room_for_a_label_are_refused(x, message):
    with pytest.raises(mw.errors.MethodError, match=message):
        ForwardForward(CLASSES).prepare(x, torch.tensor([0, 1, 2, 0]))


@pytest.mark.parametrize(
    "y", [torch.tensor([0, 1, 2, -100]), torch.tensor([0, 1, 2, 3]), torch.zeros(4), torch.zeros(4, 2).long(), None]
)
def test_labels_that_cannot_be_written_are_refused(y):
    """-100 would be an index from the end."""
    with pytest.raises(mw.errors.MethodError, match="no class in 0 to 2"):
        ForwardForward(CLASSES).prepare(draw(4, 200), y)


def test_a_part_is_not_given_samples_without_labels_for_labelled_ones():
    """What `prepare` makes, and nothing else."""
    trainer = trainer_of()
    with pytest.raises(mw.errors.MethodError, match="views=1"):
        trainer.batch(draw(6, 1, 2, 4), torch.arange(6) % CLASSES).up(0)


@pytest.mark.parametrize("values", [{"classes": 1}, {"classes": 3, "threshold": 0.0}])
def test_hyper_parameters_out_of_range_are_refused(values):
    with pytest.raises(mw.errors.MethodError, match="expected classes >= 2"):
        ForwardForward(**values)
