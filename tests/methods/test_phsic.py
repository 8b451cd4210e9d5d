"""pHSIC: its objective against literal loops in every layout, grouping, and networks with divisive normalisation."""

import math

import pytest
import torch
import torch.nn.functional as F
from literal_oracles import dot, literal_kernel
from torch import nn

import modulewise as mw
from modulewise import losses, models
from modulewise.errors import DataError, MethodError, ModulewiseError, NonFiniteLossError
from modulewise.methods.objectives import TaskLoss
from modulewise.methods.proxy import PHSIC
from modulewise.objective import Context, Site
from modulewise.partition.boundary import Boundary

BOUNDARIES = [
    Boundary("layer1", (5, 4, 2, 2)),
    Boundary("stage1", (5, 2, 2, 4), channel_axis=-1),
    Boundary("encoder", (5, 3, 4), channel_axis=-1),
    Boundary("fc1", (5, 4)),
]
Y = torch.tensor([0, 1, 0, 2, 1])
KERNELS = {"linear": losses.LINEAR, "cosine": losses.COSINE, "gaussian": losses.gaussian(1.5)}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def site(boundary=BOUNDARIES[-1], *, part=0, parts=3):
    return Site(part, parts, None, None if part == parts - 1 else boundary, losses.classification)


def context(h, y=Y):
    return Context(h_in=None, h_out=h, x=None, y=y, views=1, part=0, step=0)


def literal_grouped(sample, channel_axis, groups, power, smoothing):
    """Groups of channels of one sample; with the channels last, an element's channel is its last index."""
    channels = sample.shape[0] if channel_axis == 1 else sample.shape[-1]
    size, powers = channels // groups, []
    for group in range(groups):
        values = []
        for c in range(group * size, (group + 1) * size):
            values += list((sample[c] if channel_axis == 1 else sample[..., c]).flatten())
        mean = sum(values) / len(values)
        powers.append(((sum((v - mean) ** 2 for v in values) + smoothing) / len(values)) ** power)
    mean = sum(powers) / groups
    return [p - mean for p in powers]


def literal_objective(rows, y, *, kernel, classes, gamma, plausible):
    m, span = len(rows), range(len(rows))
    z = [[literal_kernel(kernel, rows[i], rows[j]) for j in span] for i in span]
    centred = [[(1.0 if c == label else 0.0) - 1 / classes for c in range(classes)] for label in y.tolist()]
    t = [[dot(u, v) / (dot(u, u) * dot(v, v)) ** 0.5 for v in centred] for u in centred]

    def measure(a, b):
        mean_a, mean_b = (sum(map(sum, k)) / m**2 for k in (a, b))
        if plausible:
            return sum((a[i][j] - mean_a) * b[i][j] for i in span for j in span) / m**2
        product = sum(a[i][j] * b[i][j] for i in span for j in span) / m**2
        rows_a, rows_b = ([sum(row) / m for row in k] for k in (a, b))
        return product - 2 * dot(rows_a, rows_b) / m + mean_a * mean_b

    return measure(z, z) - gamma * measure(z, t)


@pytest.mark.parametrize("boundary", BOUNDARIES, ids=lambda b: b.name)
@pytest.mark.parametrize(
    ("groups", "kernel", "plausible"),
    [(None, "linear", True), (None, "cosine", False), (2, "gaussian", True), (2, "linear", False), (2, "cosine", True)],
)
def test_objective_equals_the_literal_formula_in_every_layout(boundary, groups, kernel, plausible):
    measure = losses.plausible_hsic if plausible else losses.biased_hsic
    method = PHSIC(3, kernel=KERNELS[kernel], dependence=measure, gamma=1.5, groups=groups, power=0.8, smoothing=0.5)
    objective = method.objective(site(boundary))
    first, second = (draw(*boundary.shape).requires_grad_() for _ in range(2))
    rows = [
        list(sample.flatten()) if groups is None else literal_grouped(sample, boundary.channel_axis, groups, 0.8, 0.5)
        for sample in second
    ]
    loss = objective(context(first)).loss
    literal = literal_objective(rows, Y, kernel=kernel, classes=3, gamma=1.5, plausible=plausible)
    loss.backward()
    literal.backward()
    assert abs(loss - literal) <= 1e-10 * abs(literal)
    # two groups are centred to (v, -v): their cosine is +-1, and rounding is all that its gradient holds
    if (groups, kernel) != (2, "cosine"):
        assert second.grad.abs().max() > 0
        assert (first.grad - second.grad).abs().max() <= 1e-10 * second.grad.abs().max()
    assert not list(objective.parameters())


def test_defaults_are_the_published_ones():
    method = PHSIC(3)
    assert (method.kernel, method.dependence) == (losses.COSINE, losses.plausible_hsic)
    assert (method.gamma, method.groups, method.power, method.smoothing) == (2.0, None, 0.5, 1.0)


def test_last_part_minimises_the_task_loss():
    objective = PHSIC(3, groups=2).objective(site(part=2))
    h = draw(5, 3)
    assert isinstance(objective, TaskLoss)
    assert objective(context(h)).loss == F.cross_entropy(h, Y)


def test_descent_brings_samples_of_a_class_together_and_classes_apart():
    """With gamma 2 and the label's kernel as range the optimum is that kernel: pHSIC(Y, Y) - 2 pHSIC(Y, Y)."""
    h = draw(6, 4).requires_grad_()
    y = torch.arange(6) % 3
    objective, optimizer = PHSIC(3).objective(site()), torch.optim.SGD([h], lr=5.0)
    for _ in range(200):
        optimizer.zero_grad()
        objective(context(h, y)).loss.backward()
        optimizer.step()
    labels = losses.one_hot_similarity(y, classes=3, dtype=torch.float64)
    found = losses.COSINE.gram(h.detach())
    assert abs(objective(context(h, y)).loss + losses.plausible_hsic(labels, labels)) < 1e-3
    assert ((found - found.mean()) - (labels - labels.mean())).abs().max() < 0.1


def trainer(method, *, groups=4):
    torch.manual_seed(0)
    model = models.phsic_mlp((1, 2, 3), 3, width=16, depth=2, groups=groups, dropout=0.0)
    partition = mw.Partition(model, cuts=["fc1", "fc2"], example=torch.randn(2, 1, 2, 3))
    return mw.Trainer(
        partition, method, loss=F.cross_entropy, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.2)
    )


@pytest.mark.parametrize(
    "method",
    [PHSIC(3), PHSIC(3, groups=4, power=0.8), PHSIC(3, kernel=losses.gaussian(0.5), groups=4, power=0.8)],
    ids=["cosine", "cosine-grouped", "gaussian-grouped"],
)
def test_a_network_with_divisive_normalisation_learns_blobs(method):
    y = torch.arange(30) % 3
    x = draw(3, 1, 2, 3, seed=2).float()[y] + 0.3 * draw(30, 1, 2, 3, seed=3).float()
    run = trainer(method)
    first = run.step(x, y)
    for _ in range(80):
        last = run.step(x, y)
    assert all(last[part] < first[part] - 0.02 for part in (0, 1))
    assert (run.partition.model(x).argmax(1) == y).float().mean() > 0.95


def test_the_boundary_of_a_block_carries_activations_before_they_are_normalised():
    """The loss must not see normalised activations, whose groups all have much the same variance."""
    model = models.phsic_mlp((1, 2, 3), 3, width=16, depth=1, groups=4, dropout=0.0)
    x = torch.randn(2, 1, 2, 3)
    partition = mw.Partition(model, cuts=["fc1"], example=x)
    expected = F.leaky_relu(x.flatten(1) @ model.fc1.linear.weight.T, 0.01)
    assert torch.equal(partition.part(0)(x), expected)
    assert isinstance(model.head.norm, models.DivisiveNormalization)


def test_trainer_refuses_nan_features_and_a_class_that_does_not_exist():
    x = torch.randn(5, 1, 2, 3)
    with pytest.raises(DataError, match="outside 0 to 2"):
        trainer(PHSIC(3)).step(x, Y + 1)
    x[0, 0, 0, 0] = math.nan
    with pytest.raises(NonFiniteLossError, match="part 0"):
        trainer(PHSIC(3)).step(x, Y)


@pytest.mark.parametrize("kernel", [losses.COSINE, losses.LINEAR, losses.gaussian(5.0)], ids=lambda k: k.name)
@pytest.mark.parametrize("groups", [None, 2])
def test_dead_units_and_single_samples_give_finite_gradients(kernel, groups):
    objective = PHSIC(3, kernel=kernel, groups=groups).objective(site())
    for h, y in [(torch.zeros(5, 4), Y), (torch.ones(5, 4), Y), (torch.randn(1, 4), Y[:1])]:
        h = h.requires_grad_()
        (gradient,) = torch.autograd.grad(objective(context(h, y)).loss, h)
        assert gradient.isfinite().all()


def test_one_class_leaves_the_term_of_the_representation_alone():
    h, y = draw(5, 4), torch.ones(5, dtype=torch.long)
    alone = PHSIC(3, gamma=0.0).objective(site())(context(h)).loss
    assert PHSIC(3).objective(site())(context(h, y)).loss == alone


@pytest.mark.parametrize(
    ("boundary", "groups"),
    [(BOUNDARIES[0], 3), (BOUNDARIES[-1], 4), (BOUNDARIES[2], 8), (Boundary("fc1", (5, 6)), 4)],
)
def test_groups_that_do_not_fit_are_refused_when_the_method_is_bound(boundary, groups):
    with pytest.raises(MethodError, match=f"groups={groups}"):
        PHSIC(3, groups=groups).objective(site(boundary))


def test_labels_per_position_are_refused():
    with pytest.raises(MethodError, match="one integer class per sample"):
        PHSIC(3).objective(site())(context(draw(5, 4), torch.zeros(5, 2, dtype=torch.long)))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PHSIC(1), "classes=1"),
        (lambda: PHSIC(3, gamma=-1.0), "gamma=-1.0"),
        (lambda: PHSIC(3, groups=1), "groups=1"),
        (lambda: PHSIC(3, power=0.0), "power=0.0"),
        (lambda: PHSIC(3, smoothing=0.0), "smoothing=0.0"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(make, says):
    with pytest.raises(MethodError, match=says):
        make()


def literal_normalization(z, groups, power, smoothing):
    out = torch.zeros_like(z)
    for n, sample in enumerate(z):
        size = sample.shape[0] // groups
        for group in range(groups):
            part = sample[group * size : (group + 1) * size]
            values = part.flatten().tolist()
            mean = sum(values) / len(values)
            variance = (sum((v - mean) ** 2 for v in values) + smoothing) / len(values)
            out[n, group * size : (group + 1) * size] = (part - mean) / variance**power
    return out


@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 3, 2)])
def test_divisive_normalisation_equals_a_loop_over_groups(shape):
    z = draw(*shape)
    actual = models.DivisiveNormalization(3, power=0.2, smoothing=0.7)(z)
    assert (actual - literal_normalization(z, 3, 0.2, 0.7)).abs().max() <= 1e-14
    assert models.DivisiveNormalization(3)(z.bfloat16()).dtype is torch.bfloat16
    dead = torch.zeros(shape, requires_grad=True)
    models.DivisiveNormalization(3)(dead).sum().backward()
    assert dead.grad.isfinite().all()


def test_published_networks_have_the_published_shapes():
    with torch.device("meta"):
        mlp, cnn = models.phsic_mlp((1, 28, 28), 10), models.phsic_cnn((3, 32, 32), 10, width=128)
    linear = [tuple(m.weight.shape) for m in mlp.modules() if isinstance(m, nn.Linear)]
    assert linear == [(1024, 784), (1024, 1024), (1024, 1024), (10, 1024)]
    convolutions = [m.out_channels for m in cnn.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions == [128, 256, 256, 512, 512, 512]
    assert cnn.fc1.linear.weight.shape == (1024, 512 * 2 * 2)
    assert [m.groups for m in mlp.modules() if isinstance(m, models.DivisiveNormalization)] == [32] * 3
    assert [m.groups for m in cnn.modules() if isinstance(m, models.DivisiveNormalization)] == [16] * 7
    assert [m.bias is None for m in mlp.modules() if isinstance(m, nn.Linear)] == [True, True, True, False]


def test_networks_without_groups_have_no_normalisation():
    for make in (models.phsic_mlp, models.phsic_cnn):
        model = make((1, 8, 8), 3, width=6, groups=None, dropout=0.0)
        assert not [m for m in model.modules() if isinstance(m, models.DivisiveNormalization | nn.Dropout)]
        assert model(torch.randn(2, 1, 8, 8)).shape == (2, 3)


def test_networks_by_name_are_cut_into_their_blocks():
    model = models.build("phsic-cnn", shape=(1, 8, 8), classes=3)
    partition = mw.Partition(model, cuts=["conv1", "conv2", "fc1"], example=torch.randn(2, 1, 8, 8))
    assert len(partition) == 4
    assert str(models.build("phsic-mlp", shape=(1, 2, 2), classes=3)) == str(models.phsic_mlp((1, 2, 2), 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: models.DivisiveNormalization(0),
        lambda: models.DivisiveNormalization(2, power=1.5),
        lambda: models.DivisiveNormalization(2, smoothing=0.0),
        lambda: models.DivisiveNormalization(4)(torch.zeros(2, 6)),
        lambda: models.phsic_mlp((1, 2, 2), 3, width=48),
        lambda: models.phsic_mlp((1, 2, 2), 3, width=32),
        lambda: models.phsic_cnn((1, 8, 8), 3, width=24),
    ],
)
def test_groups_that_a_network_cannot_have_are_refused(make):
    with pytest.raises(ModulewiseError, match="groups="):
        make()
