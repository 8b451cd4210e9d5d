"""PredSim with its unsupervised term and its variants free of backprop, against the formula written out in loops."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import modulewise as mw
from modulewise import checks, losses
from modulewise.errors import DataError, MethodError, NonFiniteLossError
from modulewise.heads.aligned import AlignedLinear
from modulewise.methods import DeeplySupervised, PredSim
from modulewise.methods.objectives import TaskLoss
from modulewise.objective import Context, Site
from modulewise.partition.boundary import Boundary

IMAGE = Boundary("layer1", (4, 5, 4, 4), torch.float64)
IMAGE_LAST = Boundary("stage1", (4, 4, 4, 5), torch.float64, channel_axis=-1)
TOKENS = Boundary("encoder", (4, 3, 5), torch.float64, channel_axis=-1)
VECTOR = Boundary("fc1", (4, 5), torch.float64)
THREE = Boundary("stem", (4, 3, 2, 2), torch.float64)
POINT = Boundary("mean", (4, 5, 1, 1), torch.float64)
ALL = [IMAGE, IMAGE_LAST, TOKENS, VECTOR, THREE, POINT]
LAYOUTS = pytest.mark.parametrize("boundary", ALL, ids=lambda b: b.name)
Y = torch.tensor([0, 1, 0, 2])
SETTINGS = [
    PredSim(3, beta=0.3, decoder_features=20),
    PredSim(3, beta=0.3, alpha=0.4, decoder_features=20),
    PredSim(3, beta=0.0, alpha=0.4, decoder_features=20),
    PredSim(3, alpha=1.0),
    PredSim(3, beta=0.3, backprop_free=True, target_features=7, decoder_features=20),
    PredSim(3, beta=0.3, alpha=0.4, backprop_free=True, target_features=7, decoder_features=20),
    PredSim(3, beta=0.0, backprop_free=True, target_features=7, decoder_features=20),
    PredSim(3, beta=1.0, backprop_free=True, target_features=7, decoder_features=20),
]


def setting(method):
    shown = [f"{n}={getattr(method, n)}" for n in ("beta", "alpha")]
    return "-".join(shown + ["bpf"] * method.backprop_free + ["recon"] * method.reconstruct)


def site(boundary=IMAGE, *, below=None, part=0, parts=3):
    return Site(part, parts, below, None if part == parts - 1 else boundary, losses.classification)


def context(h, y=Y, h_in=None, part=0):
    return Context(h_in=h_in, h_out=h, x=None, y=y, views=1, part=part, step=0)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def objective_of(method, boundary, **where):
    """With random weights instead of zeros in the prediction."""
    torch.manual_seed(0)
    objective = method.objective(site(boundary, **where))
    for parameter in objective.parameters():
        nn.init.normal_(parameter, std=0.5)
    return objective


def pooled(boundary, sample, limit):
    """A sample (C, *spatial): grids averaged in halves until `limit` features, tokens to one; as a list (C, *sizes)."""
    if boundary is TOKENS:
        return [sum(channel) / len(channel) for channel in sample]
    if sample.dim() == 1:
        return list(sample)
    sizes = list(sample.shape[1:])
    while sample.shape[0] * math.prod(sizes) > limit and max(sizes) > 1:
        longest = sizes.index(max(sizes))
        sizes[longest] //= 2
    rows = []
    for channel in sample:
        for place in itertools.product(*[range(size) for size in sizes]):
            block = channel
            for axis, (index, size) in enumerate(zip(place, sizes, strict=True)):
                step = sample.shape[1 + axis] // size
                block = block.narrow(axis, index * step, step)
            rows.append(sum(block.flatten()) / block.numel())
    return rows


def features_of(grid):
    """Channels (C, positions) or elements: deviations by channel where there are more than three and positions."""
    if grid[0].dim() == 0 or len(grid) <= 3 or grid[0].numel() == 1:
        return [value for channel in grid for value in channel.flatten()]
    found = []
    for channel in grid:
        values = list(channel.flatten())
        mean = sum(values) / len(values)
        found.append((sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5)
    return found


def cosine(u, v):
    rows = []
    for features in (u, v):
        centred = [f - sum(features) / len(features) for f in features]
        norm = sum(c * c for c in centred) ** 0.5
        rows.append([c / norm for c in centred])
    return sum(a * b for a, b in zip(*rows, strict=True))


def matching(rows, wanted):
    n = len(rows)
    return sum((cosine(rows[i], rows[j]) - wanted(i, j)) ** 2 for i in range(n) for j in range(n)) / n**2


def viewed(objective, method, boundary, h):
    """The features whose similarity counts, by loops; h is channels first."""
    if method.backprop_free:
        if boundary is TOKENS:
            return [features_of(sample) for sample in h]
        rows = [pooled(boundary, sample, method.decoder_features) for sample in h]
        channels = boundary.channels
        return [features_of(torch.stack(row).reshape(channels, -1)) for row in rows]
    kernel = next(p for p in objective.similarity.parameters())
    if kernel.dim() == 4:
        return [features_of(sample) for sample in F.conv2d(h, kernel, padding=1)]
    mapped = []
    for sample in h:
        columns = sample.reshape(boundary.channels, -1)
        rows = [sum(kernel[o, i] * columns[i] for i in range(len(columns))) for o in range(len(kernel))]
        mapped.append(features_of(rows))
    return mapped


def literal(objective, method, boundary, h, h_in):
    """(1 - alpha) ((1 - beta) pred + beta sim) + alpha unsup; with feedback alignment, a surrogate of its gradient."""
    n, y, total = len(h), Y.tolist(), 0.0
    if method.alpha < 1 and method.beta < 1:
        layer = objective.prediction[-1]
        outputs, pred = layer.weight.shape[0], 0.0
        for sample, label in zip(h, y, strict=True):
            row = pooled(boundary, sample, method.decoder_features)
            z = [sum(w * f for w, f in zip(layer.weight[o], row, strict=True)) + layer.bias[o] for o in range(outputs)]
            if not method.backprop_free:
                pred = pred + (torch.log(sum(torch.exp(v) for v in z)) - z[label]) / n
                continue
            for o in range(outputs):
                likely = 1 / (1 + torch.exp(-z[o]))
                on = objective.targets.projection[label, o] > 0
                value = -torch.log(likely if on else 1 - likely).detach()
                # The value is the cross-entropy's, the gradient (s(z) - t) B.
                back = sum(b * f for b, f in zip(layer.feedback[o], row, strict=True))
                pred = pred + (value + (likely - float(on)).detach() * (back - back.detach())) / (n * outputs)
        total = total + (1 - method.alpha) * (1 - method.beta) * pred
    if method.alpha < 1 and method.beta > 0:
        if method.backprop_free:
            rows = [list(objective.targets.projection[label].double()) for label in y]
            sim = matching(viewed(objective, method, boundary, h), lambda i, j: cosine(rows[i], rows[j]))
        else:
            sim = matching(viewed(objective, method, boundary, h), lambda i, j: 1.0 if y[i] == y[j] else -1 / 2)
        total = total + (1 - method.alpha) * method.beta * sim
    if method.alpha > 0:
        below = [features_of(sample) for sample in h_in]
        unsup = matching(viewed(objective, method, boundary, h), lambda i, j: cosine(below[i], below[j]))
        total = total + method.alpha * unsup
    return total


@LAYOUTS
@pytest.mark.parametrize("method", SETTINGS, ids=setting)
def test_value_and_gradient_equal_the_literal_formula(method, boundary):
    below = Boundary("below", (4, 3, 3, 5), torch.float64, channel_axis=-1)
    objective = objective_of(method, boundary, below=below, part=1)
    h, h_in = draw(*boundary.shape), draw(*below.shape, seed=1)
    first, second = h.clone().requires_grad_(), h.clone().requires_grad_()
    loss = objective(context(first, h_in=h_in, part=1)).loss
    loss.backward()
    expected = literal(objective, method, boundary, boundary.channels_first(second), h_in.movedim(-1, 1))
    expected.backward()
    assert second.grad.abs().max() > 0
    assert abs(loss - expected) <= 1e-10 * abs(expected)
    assert (first.grad - second.grad).abs().max() <= 1e-10 * second.grad.abs().max()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())


def test_the_head_itself_learns_by_the_chain_rule_when_errors_pass_by_feedback():
    """d(loss)/dW = (s(z) - t)^T h / (N M), by loops."""
    objective = objective_of(PredSim(3, beta=0.0, backprop_free=True, target_features=6), VECTOR)
    layer, h = objective.prediction[-1], draw(4, 5)
    objective(context(h)).loss.backward()
    for o in range(6):
        error = []
        for sample, label in zip(h, Y.tolist(), strict=True):
            z = sum(w * f for w, f in zip(layer.weight[o], sample, strict=True)) + layer.bias[o]
            error.append(1 / (1 + math.exp(-z.item())) - float(objective.targets.projection[label, o] > 0))
        expected = [sum(e * s for e, s in zip(error, column, strict=True)) / 24 for column in h.T]
        torch.testing.assert_close(layer.weight.grad[o], torch.stack(expected), rtol=1e-10, atol=1e-14)
        assert abs(layer.bias.grad[o].item() - sum(error) / 24) < 1e-14


def test_no_weight_is_transported():
    """While W is zero its transpose would pass no error at all; the fixed matrix does."""
    objective = PredSim(3, beta=0.0, backprop_free=True).objective(site(VECTOR))
    layer, h = objective.prediction[-1], draw(4, 5).requires_grad_()
    loss = objective(context(h)).loss
    loss.backward()
    assert isinstance(layer, AlignedLinear)
    assert torch.equal(layer.weight, torch.zeros(128, 5, dtype=torch.float64))
    assert abs(loss.item() - math.log(2)) < 1e-15
    signs = torch.where(objective.targets.projection[Y] > 0, -0.5, 0.5).double()
    torch.testing.assert_close(h.grad, signs @ layer.feedback / (4 * 128), rtol=1e-12, atol=0)
    assert [name for name, _ in objective.named_buffers()] == ["targets.projection", "prediction.0.feedback"]
    trained = dict(PredSim(3, backprop_free=True).objective(site(IMAGE)).named_parameters())
    assert {name.rsplit(".")[-1] for name in trained} == {"weight", "bias"}
    assert not any(name.startswith("similarity") for name in trained)


def test_feedback_and_projection_are_drawn_on_the_scale_of_linear_layers_for_every_part():
    """U(-a, a) with a = 1 / sqrt(inputs), whose deviation is a / sqrt(3)."""
    objectives = [PredSim(100, backprop_free=True).objective(site(IMAGE)) for _ in range(2)]
    for tensors in zip(*[(o.prediction[-1].feedback, o.targets.projection) for o in objectives], strict=True):
        bound = 1 / (IMAGE.features if tensors[0].shape[1] == IMAGE.features else 100) ** 0.5
        assert not torch.equal(*tensors)
        assert all(t.abs().max() <= bound and abs(t.std().item() * 3**0.5 / bound - 1) < 0.03 for t in tensors)
    assert objectives[0].targets.projection.shape == (100, 128)


def test_only_the_modules_of_terms_that_count_are_made():
    def made(**settings):
        torch.manual_seed(0)
        objective = PredSim(3, **settings).objective(site(IMAGE, below=VECTOR, part=1))
        return {name for name, module in objective.named_children() if any(True for _ in module.parameters())}

    assert made() == {"prediction", "similarity"}
    assert made(beta=0.0) == {"prediction"}
    assert made(beta=1.0) == {"similarity"}
    assert made(beta=0.0, alpha=0.5) == {"prediction", "similarity"}
    assert made(beta=0.0, alpha=0.5, reconstruct=True) == {"prediction", "decoder"}
    assert made(alpha=1.0) == {"similarity"}
    assert made(beta=1.0, backprop_free=True) == set()


@pytest.mark.parametrize("below", [IMAGE, IMAGE_LAST, TOKENS, VECTOR], ids=lambda b: b.name)
def test_reconstruction_is_the_squared_error_of_the_decoder_by_loops(below):
    objective = objective_of(PredSim(3, beta=0.0, alpha=0.25, reconstruct=True), IMAGE, below=below, part=1)
    h, h_in = draw(*IMAGE.shape).requires_grad_(), draw(*below.shape, seed=1)
    signal = objective(context(h, h_in=h_in, part=1))
    signal.loss.backward()
    guess = objective.decoder(h).flatten().tolist()
    truth = below.channels_first(h_in).flatten().tolist()
    error = sum((a - b) ** 2 for a, b in zip(guess, truth, strict=True)) / len(truth)
    pred = F.cross_entropy(objective.prediction(h), Y).item()
    assert abs(signal.loss.item() - (0.75 * pred + 0.25 * error)) <= 1e-10 * signal.loss.item()
    # (a bias before BatchNorm would have no gradient: the decoder has none there)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())
    assert h.grad.abs().sum() > 0


def test_the_first_part_reconstructs_nothing():
    """As in the authors' code: the supervised term alone, still weighted by 1 - alpha."""
    first = objective_of(PredSim(3, beta=0.0, alpha=0.25, reconstruct=True), VECTOR)
    without = objective_of(PredSim(3, beta=0.0), VECTOR)
    h = draw(4, 5)
    assert first.decoder is None
    assert first(context(h, h_in=draw(4, 3))).loss == 0.75 * without(context(h)).loss


def test_labels_are_not_looked_at_where_alpha_is_one():
    objective = objective_of(PredSim(3, alpha=1.0), IMAGE)
    assert objective(context(draw(*IMAGE.shape), y=None, h_in=draw(4, 3, 8, 8))).loss > 0


def test_a_part_that_keeps_the_geometry_of_its_input_has_nothing_left_to_match():
    objective = PredSim(3, alpha=1.0, backprop_free=True).objective(site(VECTOR))
    h_in = draw(4, 5)
    assert objective(context(2.0 * h_in + 1.0, h_in=h_in)).loss < 1e-25
    assert objective(context(h_in**3, h_in=h_in)).loss > 1e-3


@pytest.mark.parametrize(
    "method", [PredSim(3, alpha=0.5), PredSim(3, alpha=0.5, reconstruct=True)], ids=["match", "reconstruct"]
)
def test_the_input_is_a_target_and_gets_no_gradient(method):
    """Even where nothing else detaches it, as under DeeplySupervised."""
    objective = objective_of(method, IMAGE, below=VECTOR, part=1)
    h_in = draw(4, 5).requires_grad_()
    objective(context(draw(*IMAGE.shape), h_in=h_in, part=1)).loss.backward()
    assert h_in.grad is None


@pytest.mark.parametrize("boundary", [POINT, THREE], ids=["one position", "three channels"])
@pytest.mark.parametrize("free", [False, True], ids=["chain rule", "backprop free"])
def test_similarity_of_small_maps_is_that_of_flattened_features(boundary, free):
    """Deviations over one position do not exist, those of three channels say little."""
    objective = objective_of(PredSim(3, beta=1.0, backprop_free=free), boundary)
    h = draw(*boundary.shape)
    target = objective.targets.similarity(Y, dtype=torch.float64)
    expected = losses.similarity_matching(objective.similarity(h).flatten(1), target)
    assert torch.equal(objective(context(h)).loss, expected)


def test_pooling_to_one_position_is_flattened_as_well():
    objective = PredSim(3, beta=1.0, backprop_free=True, decoder_features=5).objective(site(IMAGE))
    h = draw(*IMAGE.shape)
    target = objective.targets.similarity(Y, dtype=torch.float64)
    expected = losses.similarity_matching(h.mean((2, 3)), target)
    torch.testing.assert_close(objective(context(h)).loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", SETTINGS, ids=setting)
@pytest.mark.parametrize(
    "y", [torch.tensor([1, 1, 1, 1]), torch.tensor([2]), torch.tensor([0, 1])], ids=["one class", "one sample", "two"]
)
def test_one_class_or_one_sample_gives_a_finite_loss_and_gradient(method, y):
    objective = objective_of(method, IMAGE)
    h = draw(len(y), *IMAGE.shape[1:]).requires_grad_()
    loss = objective(context(h, y, h_in=draw(len(y), 3, 6, 6))).loss
    loss.backward()
    assert loss.isfinite()
    assert h.grad.isfinite().all()


@pytest.mark.parametrize("method", SETTINGS, ids=setting)
@LAYOUTS
def test_features_that_are_all_zero_give_no_nan(method, boundary):
    """A dead part: no deviation, no norm."""
    objective = objective_of(method, boundary)
    h = torch.zeros(boundary.shape, dtype=torch.float64, requires_grad=True)
    loss = objective(context(h, h_in=torch.zeros(4, 3, 2, 2))).loss
    loss.backward()
    assert loss.isfinite()
    assert h.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in objective.parameters())


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.zeros(4, 7, dtype=torch.long), r"torch.int64 of shape \(4, 7\)"),
        ({"ids": torch.zeros(4, 7)}, "dict"),
        (torch.zeros(4), r"shape \(4,\)"),
    ],
    ids=["token ids", "a mapping", "no features"],
)
def test_an_input_without_geometry_is_refused(x, says):
    with pytest.raises(MethodError, match=says + ".*alpha=0"):
        objective_of(PredSim(3, alpha=0.5), VECTOR)(context(draw(4, 5), h_in=x))


def test_a_reconstruction_of_another_size_is_refused():
    objective = objective_of(PredSim(3, alpha=0.5, reconstruct=True), VECTOR, below=TOKENS, part=1)
    with pytest.raises(MethodError, match="reconstruct=False"):
        objective(context(draw(4, 5), h_in=draw(4, 9, 5), part=1))


@pytest.mark.parametrize("free", [False, True], ids=["chain rule", "backprop free"])
def test_labels_per_position_are_refused(free):
    objective = objective_of(PredSim(3, beta=1.0, backprop_free=free), TOKENS)
    with pytest.raises(MethodError, match="one integer class per sample"):
        objective(context(draw(*TOKENS.shape), torch.zeros(4, 3, dtype=torch.long)))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PredSim(3, alpha=-0.1), "alpha=-0.1"),
        (lambda: PredSim(3, alpha=1.1), "alpha=1.1"),
        (lambda: PredSim(3, target_features=0), "target_features=0"),
        (lambda: PredSim(3, reconstruct=True), "alpha=0.0"),
        (lambda: PredSim(3, alpha=1.0, reconstruct=True), "alpha=1.0"),
        (lambda: PredSim(3, alpha=0.5, reconstruct=True, backprop_free=True), "neither reconstruct nor a criterion"),
        (lambda: PredSim(3, backprop_free=True, criterion=F.cross_entropy), "neither reconstruct nor a criterion"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make, says):
    with pytest.raises(MethodError, match=says):
        make()


@pytest.mark.parametrize("method", SETTINGS, ids=setting)
def test_the_last_part_minimises_the_task_loss(method):
    assert isinstance(method.objective(site(part=2)), TaskLoss)


CONTRACT = [
    PredSim(3, alpha=0.3),
    PredSim(3, alpha=0.3, reconstruct=True),
    PredSim(3, beta=0.5, alpha=0.3, backprop_free=True),
]


@pytest.mark.parametrize("method", CONTRACT, ids=setting)
def test_settings_meet_the_contract(method):
    assert [check for check in checks.conformance(method) if not check.passed] == []


def trainer_of(method):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    partition = mw.Partition(model, cuts=["1", "3"], example=torch.zeros(6, 5))
    return mw.Trainer(
        partition, method, loss=F.cross_entropy, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5)
    )


X, LABELS = draw(6, 5, seed=4).float(), torch.arange(6) % 3


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_every_part_learns_free_of_backprop(beta):
    trainer = trainer_of(PredSim(3, beta=beta, backprop_free=True, target_features=8))
    first = trainer.step(X, LABELS)
    for _ in range(150):
        last = trainer.step(X, LABELS)
    assert all(last[k] < 0.8 * first[k] for k in first)


def test_no_two_variants_make_the_same_update_and_they_run_deeply_supervised():
    weights = []
    for method in (PredSim(3), PredSim(3, alpha=1.0), PredSim(3, backprop_free=True), *CONTRACT):
        trainer = trainer_of(method)
        trainer.step(X, LABELS)
        weights.append(trainer.partition.model[2].weight.detach().clone())
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(weights, 2))
    trainer_of(DeeplySupervised(PredSim(3, alpha=0.3, reconstruct=True))).step(X, LABELS)


@pytest.mark.parametrize("method", [PredSim(3), PredSim(3, backprop_free=True)], ids=setting)
def test_the_trainer_refuses_a_class_too_many_and_features_that_are_not_finite(method):
    trainer = trainer_of(method)
    with pytest.raises(DataError, match="classes=3"):
        trainer.step(X, LABELS + 1)
    with pytest.raises(NonFiniteLossError):
        trainer.step(torch.full_like(X, float("nan")), LABELS)
