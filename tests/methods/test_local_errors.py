"""LocalErrors: the update against the paper's formula by loops, nothing but the part learns, and what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import modulewise as mw
from modulewise import losses
from modulewise.errors import DataError, MethodError, NonFiniteLossError
from modulewise.methods import LocalErrors
from modulewise.methods.objectives import TaskLoss
from modulewise.objective import Context, Site
from modulewise.partition.boundary import Boundary

IMAGE = Boundary("layer1", (4, 3, 4, 4), torch.float64)
IMAGE_LAST = Boundary("stage1", (4, 4, 4, 3), torch.float64, channel_axis=-1)
TOKENS = Boundary("encoder", (4, 5, 6), torch.float64, channel_axis=-1)
VECTOR = Boundary("fc1", (4, 6), torch.float64)
LAYOUTS = pytest.mark.parametrize("boundary", [IMAGE, IMAGE_LAST, TOKENS, VECTOR], ids=lambda b: b.name)
Y = torch.tensor([0, 1, 0, 2])


def site(boundary=VECTOR, *, part=0, parts=3):
    return Site(part, parts, None, None if part == parts - 1 else boundary, losses.classification)


def context(h, y=Y):
    return Context(h_in=None, h_out=h, x=None, y=y, views=1, part=0, step=0)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pooled_by_loops(boundary, h, pool):
    """Features of every sample, averaged over blocks of a grid or over all tokens, in the order of (C, *sizes)."""
    if pool is None:
        return [list(sample.flatten()) for sample in h]
    if boundary is TOKENS:
        return [[sum(sample[t, d] for t in range(5)) / 5 for d in range(6)] for sample in h]
    if boundary is VECTOR:
        return [list(sample) for sample in h]
    rows, step = [], 4 // pool
    for sample in boundary.channels_first(h):
        row = []
        for channel in sample:
            for i in range(pool):
                for j in range(pool):
                    block = channel[i * step : (i + 1) * step, j * step : (j + 1) * step]
                    row.append(sum(block.flatten()) / step**2)
        rows.append(row)
    return rows


@LAYOUTS
@pytest.mark.parametrize("pool", [None, 2])
def test_value_and_gradient_equal_the_formula_by_loops(boundary, pool):
    """CE(M h, y) and, for the gradient, M^T (softmax(M h) - onehot(y)) / N, written out."""
    torch.manual_seed(0)
    objective = LocalErrors(3, pool=pool).objective(site(boundary))
    first, second = draw(*boundary.shape).requires_grad_(), draw(*boundary.shape).requires_grad_()
    loss = objective(context(first)).loss
    loss.backward()
    features = pooled_by_loops(boundary, second, pool)
    literal, surrogate = 0.0, 0.0
    for row, label in zip(features, Y.tolist(), strict=True):
        assert len(row) == objective.tuning.shape[1]
        logits = [sum(m * f for m, f in zip(objective.tuning[c], row, strict=True)) for c in range(3)]
        total = sum(math.exp(z.item()) for z in logits)
        literal += (math.log(total) - logits[label].item()) / len(Y)
        for c in range(3):
            error = (math.exp(logits[c].item()) / total - (c == label)) / len(Y)
            surrogate = surrogate + error * logits[c]
    surrogate.backward()
    assert abs(loss.item() - literal) <= 1e-10 * literal
    assert second.grad.abs().max() > 0
    assert (first.grad - second.grad).abs().max() <= 1e-10 * second.grad.abs().max()


def test_the_hinge_is_a_criterion():
    """mean_n sum_(c != y) max(0, 1 - z_y + z_c) / classes, by loops."""
    objective = LocalErrors(3, criterion=F.multi_margin_loss).objective(site())
    h = draw(4, 6)
    literal = 0.0
    for sample, label in zip(h, Y.tolist(), strict=True):
        logits = [sum(m * f for m, f in zip(row, sample, strict=True)).item() for row in objective.tuning]
        literal += sum(max(0.0, 1 - logits[label] + logits[c]) for c in range(3) if c != label) / 3 / 4
    assert abs(objective(context(h)).loss.item() - literal) <= 1e-10 * literal


def test_the_classifier_is_a_buffer_of_the_given_scale_and_no_parameter():
    objective = LocalErrors(10).objective(site(Boundary("fc", (4, 400))))
    assert list(objective.parameters()) == []
    assert list(objective.state_dict()) == ["tuning"]
    assert not objective.tuning.requires_grad
    assert objective.tuning.abs().max() <= 1 / 20
    assert abs(objective.tuning.std().item() - 1 / 20 / 3**0.5) < 0.001


def test_every_part_has_a_classifier_of_its_own_drawn_from_its_seed():
    def made(seed):
        torch.manual_seed(seed)
        return LocalErrors(3).objective(site()).tuning

    assert torch.equal(made(1), made(1))
    assert not torch.equal(made(1), made(2))


def test_the_last_part_minimises_the_task_loss():
    assert isinstance(LocalErrors(3).objective(site(part=2)), TaskLoss)


def trainer_of(method, **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    partition = mw.Partition(model, cuts=["1", "3"], example=torch.zeros(6, 5))
    return mw.Trainer(
        partition,
        method,
        loss=F.cross_entropy,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
        **settings,
    )


X, LABELS = draw(6, 5, seed=4).float(), torch.arange(6) % 3


def test_training_moves_the_parts_lowers_their_losses_and_leaves_the_classifiers(tmp_path):
    trainer = trainer_of(LocalErrors(3))
    before = [objective.tuning.clone() for objective in trainer.objectives[:-1]]
    first = trainer.step(X, LABELS)
    for _ in range(150):
        last = trainer.step(X, LABELS)
    for tuning, objective in zip(before, trainer.objectives[:-1], strict=True):
        assert torch.equal(tuning, objective.tuning)
    assert all(last[k] < 0.5 * first[k] for k in first)

    trainer.save(tmp_path / "saved")
    other = trainer_of(LocalErrors(3))
    other.objectives[0].tuning.zero_()
    other.load(tmp_path / "saved")
    assert torch.equal(other.objectives[0].tuning, before[0])


@pytest.mark.parametrize("y", [torch.tensor([1, 1, 1, 1]), torch.tensor([2])], ids=["one class", "one sample"])
def test_one_class_or_one_sample_is_a_loss_like_any_other(y):
    h = draw(len(y), 6).requires_grad_()
    objective = LocalErrors(3).objective(site())
    objective(context(h, y)).loss.backward()
    assert h.grad.isfinite().all()
    assert (h.grad.abs().sum(1) > 0).all()


def test_a_boundary_of_another_size_than_the_example_needs_pooling():
    other = draw(4, 3, 8, 8)
    with pytest.raises(MethodError, match=r"192 features .* takes 48; .*set pool"):
        LocalErrors(3).objective(site(IMAGE))(context(other))
    assert LocalErrors(3, pool=1).objective(site(IMAGE))(context(other)).loss.isfinite()


@pytest.mark.parametrize(
    ("make", "says"), [(lambda: LocalErrors(1), "classes=1"), (lambda: LocalErrors(3, pool=0), "pool=0")]
)
def test_hyperparameters_out_of_range_are_refused(make, says):
    with pytest.raises(MethodError, match=says):
        make()


def test_the_trainer_refuses_a_class_too_many_and_features_that_are_not_finite():
    trainer = trainer_of(LocalErrors(3))
    with pytest.raises(DataError, match="classes=3"):
        trainer.step(X, LABELS + 1)
    with pytest.raises(NonFiniteLossError):
        trainer.step(torch.full_like(X, float("nan")), LABELS)
