"""The HSIC bottleneck: its objective against literal loops, formatted and not, and the map from units to classes."""

import math
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import modulewise as mw
from modulewise import losses
from modulewise.errors import DataError, MethodError, NonFiniteLossError
from modulewise.methods.objectives import TaskLoss
from modulewise.methods.proxy import HSICBottleneck
from modulewise.methods.proxy.hsic_remapping import class_map, remapped
from modulewise.objective import Context, Site
from modulewise.partition.boundary import Boundary

BOUNDARIES = [
    Boundary("layer1", (5, 3, 2, 2)),
    Boundary("stage1", (5, 2, 2, 3), channel_axis=-1),
    Boundary("encoder", (5, 2, 3), channel_axis=-1),
    Boundary("fc1", (5, 4)),
]
Y = torch.tensor([0, 1, 0, 2, 1])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def site(boundary=None, *, part=0, parts=3):
    return Site(part, parts, None, None if part == parts - 1 else boundary, losses.classification)


def context(h, *, x, y=Y):
    return Context(h_in=None, h_out=h, x=x, y=y, views=1, part=0, step=0)


def literal_gaussian(rows, sigma):
    m, d = len(rows), len(rows[0])
    return [
        [
            torch.exp(-sum((a - b) ** 2 for a, b in zip(rows[i], rows[j], strict=True)) / (2 * sigma**2 * d))
            for j in range(m)
        ]
        for i in range(m)
    ]


def literal_hsic(a, b):
    """tr(A H B H) / (m - 1)^2 from means of rows, columns and all."""
    m = len(a)

    def centred(k):
        rows = [sum(row) / m for row in k]
        mean = sum(rows) / m
        return [[k[i][j] - rows[i] - rows[j] + mean for j in range(m)] for i in range(m)]

    p, q = centred(a), centred(b)
    return sum(p[i][j] * q[j][i] for i in range(m) for j in range(m)) / (m - 1) ** 2


def literal_objective(h, x, y, *, classes, sigma, weight, normalized):
    z = literal_gaussian([list(sample.flatten()) for sample in h], sigma)
    k = literal_gaussian([list(sample.flatten()) for sample in x], sigma)
    one_hot = [torch.tensor([1.0 if c == label else 0.0 for c in range(classes)]).double() for label in y]
    t = literal_gaussian([list(row) for row in one_hot], sigma)

    def measure(a, b):
        plain = literal_hsic(a, b)
        return plain / (literal_hsic(a, a) * literal_hsic(b, b)) ** 0.5 if normalized else plain

    return measure(z, k) - weight * measure(z, t)


@pytest.mark.parametrize("boundary", BOUNDARIES, ids=lambda b: b.name)
@pytest.mark.parametrize("normalized", [True, False])
def test_objective_equals_the_literal_formula_in_every_layout(boundary, normalized):
    measure = losses.normalized_hsic if normalized else losses.hsic
    objective = HSICBottleneck(4, sigma=0.8, lambda_y=3.0, dependence=measure).objective(site(boundary))
    first, second = (draw(*boundary.shape).requires_grad_() for _ in range(2))
    x = draw(5, 2, 3, seed=1)
    loss = objective(context(first, x=x)).loss
    literal = literal_objective(second, x, Y, classes=4, sigma=0.8, weight=3.0, normalized=normalized)
    loss.backward()
    literal.backward()
    assert abs(loss - literal) <= 1e-10 * abs(literal)
    assert second.grad.abs().max() > 0
    assert (first.grad - second.grad).abs().max() <= 1e-10 * second.grad.abs().max()
    assert not list(objective.parameters())


def test_defaults_are_the_published_ones():
    method, h, x = HSICBottleneck(3), draw(5, 4), draw(5, 6, seed=1)
    assert (method.sigma, method.lambda_y, method.formatted) == (5.0, 50.0, True)
    z, k = losses.scaled_gaussian(h, sigma=5.0), losses.scaled_gaussian(x, sigma=5.0)
    t = losses.scaled_gaussian(F.one_hot(Y, 3).double(), sigma=5.0)
    expected = losses.cca_hsic(z, k) - 50 * losses.cca_hsic(z, t)
    assert abs(method.objective(site())(context(h, x=x)).loss - expected) <= 1e-12 * abs(expected)


def test_kernels_of_input_and_labels_have_no_graph():
    x = draw(5, 3, seed=1).requires_grad_()
    loss = HSICBottleneck(3).objective(site())(context(draw(5, 4).requires_grad_(), x=x)).loss
    loss.backward()
    assert x.grad is None


def test_last_part_minimises_the_task_loss_if_formatted_and_the_objective_if_not():
    formatted = HSICBottleneck(3).objective(site(part=2))
    unformatted = HSICBottleneck(3, formatted=False).objective(site(part=2))
    h, x = draw(5, 3), draw(5, 6, seed=1)
    assert isinstance(formatted, TaskLoss)
    assert formatted(context(h, x=x)).loss == F.cross_entropy(h, Y)
    assert unformatted(context(h, x=x)).loss == HSICBottleneck(3).objective(site())(context(h, x=x)).loss


def trainer(method=None, *, lr=0.1, end=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.LeakyReLU(), nn.Linear(16, 3), *([end] if end else []))
    partition = mw.Partition(model, cuts=["1"], example=torch.randn(2, 6))
    return mw.Trainer(
        partition,
        method or HSICBottleneck(3),
        loss=F.cross_entropy,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=lr),
    )


def blobs():
    y = torch.arange(30) % 3
    return draw(3, 6, seed=2).float()[y] + 0.3 * draw(30, 6, seed=3).float(), y


def test_a_part_learns_to_depend_on_the_labels_and_the_next_part_to_read_them():
    x, y = blobs()
    run = trainer(lr=0.02)
    first = run.step(x, y)
    for _ in range(40):
        last = run.step(x, y)
    assert last[0] < first[0] - 1
    assert (run.partition.model(x).argmax(1) == y).float().mean() > 0.95


def test_unformatted_outputs_classify_after_they_are_remapped():
    """Nothing names the units: the map is found on labelled samples, and scored on others."""
    x, y = blobs()
    run = trainer(HSICBottleneck(3, formatted=False), lr=0.02, end=nn.Softmax(1))
    for _ in range(40):
        run.step(x[:18], y[:18])
    outputs = run.partition.model(x).detach()
    units = class_map(outputs[:18], y[:18], classes=3)
    assert sorted(units.tolist()) == [0, 1, 2]
    assert (remapped(outputs[18:], units).argmax(1) == y[18:]).float().mean() > 0.9


def test_one_class_leaves_the_term_of_the_input_alone():
    h, x, y = draw(5, 4), draw(5, 6, seed=1), torch.zeros(5, dtype=torch.long)
    alone = HSICBottleneck(3, lambda_y=0.0).objective(site())(context(h, x=x)).loss
    assert HSICBottleneck(3).objective(site())(context(h, x=x, y=y)).loss == alone
    assert alone > 0


def test_a_single_sample_gives_zero_and_moves_nothing():
    h = draw(1, 4).requires_grad_()
    loss = HSICBottleneck(3).objective(site())(context(h, x=draw(1, 6), y=torch.tensor([2]))).loss
    loss.backward()
    assert loss == 0
    assert not h.grad.any()


@pytest.mark.parametrize(
    ("x", "h", "says"),
    [
        ({"image": draw(5, 3)}, draw(5, 4), "the input is dict"),
        (torch.zeros(5, 7, dtype=torch.long), draw(5, 4), "int64"),
        (draw(5), draw(5, 4), r"the input is \(5,\)"),
        (draw(5, 3), {"logits": draw(5, 4)}, "the output is dict"),
    ],
)
def test_what_a_gaussian_kernel_cannot_compare_is_refused(x, h, says):
    with pytest.raises(MethodError, match=says):
        HSICBottleneck(3).objective(site())(context(h, x=x))


def test_labels_per_position_are_refused():
    with pytest.raises(MethodError, match="one integer class per sample"):
        HSICBottleneck(3).objective(site())(context(draw(5, 4), x=draw(5, 3), y=torch.zeros(5, 2, dtype=torch.long)))


def test_trainer_refuses_nan_features_and_a_class_that_does_not_exist():
    x, y = torch.randn(5, 6), Y.clone()
    with pytest.raises(DataError, match="outside 0 to 2"):
        trainer().step(x, y + 1)
    x[0, 0] = math.nan
    with pytest.raises(NonFiniteLossError, match="part 0"):
        trainer().step(x, y)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: HSICBottleneck(1), "classes=1"),
        (lambda: HSICBottleneck(3, sigma=0.0), "sigma=0.0"),
        (lambda: HSICBottleneck(3, sigma=math.nan), "sigma=nan"),
        (lambda: HSICBottleneck(3, lambda_y=-1.0), "lambda_y=-1.0"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(make, says):
    with pytest.raises(MethodError, match=says):
        make()


@settings(max_examples=20, deadline=None, database=None)
@given(seed=st.integers(0, 10**6), units=st.integers(3, 4))
def test_class_map_is_the_best_of_all_one_to_one_maps(seed, units):
    outputs = draw(12, units, seed=seed)
    y = torch.randint(3, (12,), generator=torch.Generator().manual_seed(seed))
    scores = [
        sum(int(row.argmax()) == chosen[label] for row, label in zip(outputs, y.tolist(), strict=True))
        for chosen in permutations(range(units), 3)
    ]
    found = class_map(outputs, y, classes=3).tolist()
    assert len(set(found)) == 3
    hits = sum(int(row.argmax()) == found[label] for row, label in zip(outputs, y.tolist(), strict=True))
    assert hits == max(scores)


def test_remapped_puts_the_unit_of_every_class_in_its_column():
    y = torch.tensor([2, 0, 1, 1])
    shuffled = F.one_hot(y, 3).float()[:, [1, 2, 0]]
    units = class_map(shuffled, y, classes=3)
    assert torch.equal(remapped(shuffled, units), F.one_hot(y, 3).float())


@pytest.mark.parametrize(
    ("outputs", "y"),
    [
        (torch.zeros(4, 2), torch.zeros(4, dtype=torch.long)),
        (torch.zeros(4), torch.zeros(4, dtype=torch.long)),
        (torch.zeros(4, 3), torch.tensor([0, 1, 2, 3])),
        (torch.zeros(4, 3), torch.tensor([0, 1, 2])),
        (torch.zeros(4, 3), torch.zeros(4)),
    ],
)
def test_class_map_refuses_too_few_units_and_labels_that_do_not_fit(outputs, y):
    with pytest.raises(MethodError, match="expected"):
        class_map(outputs, y, classes=3)
