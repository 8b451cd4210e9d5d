"""KernelProxy: the objective on every layout, its options, its errors, and the theorems it rests on."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import modulewise as mw
from modulewise import heads, losses, options, registry
from modulewise.errors import MethodError, NonFiniteLossError
from modulewise.methods.proxy import KernelProxy
from modulewise.objective import Context, Site
from modulewise.partition.boundary import Boundary

IMAGE = Boundary("layer1", (4, 6, 8, 8))
IMAGE_LAST = Boundary("stage1", (4, 8, 8, 6), channel_axis=-1)
TOKENS = Boundary("encoder", (4, 5, 6), channel_axis=-1)
VECTOR = Boundary("fc1", (4, 6))
Y = torch.tensor([0, 1, 0, 2])
every_layout = pytest.mark.parametrize("boundary", [IMAGE, IMAGE_LAST, TOKENS, VECTOR], ids=lambda b: b.name)
seeds = settings(max_examples=20, deadline=None, database=None)


def site(boundary):
    return Site(0, 3, None, boundary, losses.classification)


def context(h, y=Y):
    return Context(h_in=None, h_out=h, x=None, y=y, views=1, part=0, step=0)


def double(boundary):
    return Boundary(boundary.name, boundary.shape, torch.float64, boundary.channel_axis)


def draw(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def literal_loss(rows, y):
    """Minus the alignment of the ReLU kernel, pair by pair."""
    active = [[max(v, 0 * v) for v in row] for row in rows]
    lengths = [sum(v * v for v in row) ** 0.5 for row in active]
    cross = left = right = 0.0
    for n, u in enumerate(active):
        for m, v in enumerate(active):
            k = sum(a * b for a, b in zip(u, v, strict=True)) / (lengths[n] * lengths[m])
            ideal = 1.0 if y[n] == y[m] else 0.0
            cross, left, right = cross + k * ideal, left + k * k, right + ideal**2
    return -cross / (left**0.5 * right**0.5)


def pooled_by_hand(sample, boundary, pool):
    """Mean over windows of an image, (H, W) -> (pool, pool), element by element; sample is (C, H, W) or (H, W, C)."""
    if boundary.channel_axis == -1:
        sample = sample.permute(2, 0, 1)
    window = 8 // pool
    return [
        sum(channel[i * window + a, j * window + b] for a in range(window) for b in range(window)) / window**2
        for channel in sample
        for i in range(pool)
        for j in range(pool)
    ]


def assert_same(objective, literal, h):
    """Value and gradient of the objective and of the literal formula agree to 1e-10."""
    first, second = h.clone().requires_grad_(), h.clone().requires_grad_()
    a, b = objective(context(first)).loss, literal(second)
    a.backward()
    b.backward()
    assert abs(a - b) <= 1e-10 * abs(b)
    assert (first.grad - second.grad).abs().max() <= 1e-10 * second.grad.abs().max()


@every_layout
def test_loss_is_minus_the_alignment_of_all_elements_in_every_layout(boundary):
    objective = KernelProxy().objective(site(double(boundary)))
    h = draw(boundary.shape)
    assert not list(objective.parameters())
    if boundary in (TOKENS, VECTOR):  # by a loop; images have too many elements for one
        assert_same(objective, lambda h: literal_loss([list(row.flatten()) for row in h], Y), h)
    flat = Boundary("flat", (4, boundary.features), torch.float64)
    expected = KernelProxy().objective(site(flat))(context(h.flatten(1))).loss
    torch.testing.assert_close(objective(context(h)).loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("boundary", [IMAGE, IMAGE_LAST], ids=lambda b: b.name)
def test_positions_are_averaged_where_asked(boundary):
    objective = KernelProxy(pool=2).objective(site(double(boundary)))
    assert_same(objective, lambda h: literal_loss([pooled_by_hand(s, boundary, 2) for s in h], Y), draw(boundary.shape))


def test_tokens_are_averaged_where_asked():
    objective = KernelProxy(pool=1).objective(site(double(TOKENS)))
    assert_same(objective, lambda h: literal_loss([[sum(f) / 5 for f in s.T] for s in h], Y), draw(TOKENS.shape))


def test_a_projection_is_two_layers_between_the_boundary_and_the_kernel():
    """W2 relu(W1 h + b1) + b2 by loops; the hidden layer has (6 + 4) / 2 units."""
    torch.manual_seed(1)  # no projection of a sample may be negative throughout: that one would have length 0
    objective = KernelProxy(projection=4).objective(site(double(VECTOR)))
    w1, b1, w2, b2 = objective.parameters()
    assert w1.shape == (5, 6)
    assert w2.shape == (4, 5)

    def affine(v, weight, bias):
        return [sum(w * a for w, a in zip(row, v, strict=True)) + b for row, b in zip(weight, bias, strict=True)]

    def literal(h):
        return literal_loss([affine([max(v, 0 * v) for v in affine(row, w1, b1)], w2, b2) for row in h], Y)

    assert_same(objective, literal, 3 * draw(VECTOR.shape, seed=2))


@every_layout
@pytest.mark.parametrize("pool", [None, 2])
def test_a_projection_learns_with_the_part_in_every_layout(boundary, pool):
    torch.manual_seed(0)
    objective = KernelProxy(kernel=losses.TANH, projection=3, pool=pool).objective(site(boundary))
    h = torch.randn(boundary.shape, requires_grad=True)
    objective(context(h)).loss.backward()
    assert h.grad.abs().sum() > 0
    assert all(p.grad.abs().sum() > 0 for p in objective.parameters())
    positions = 1 if boundary in (TOKENS, VECTOR) else (pool or 8) ** 2
    assert next(objective.parameters()).shape == ((6 * positions + 3) // 2, 6 * positions)


@pytest.mark.parametrize("name", sorted(losses.PAIRWISE_OBJECTIVES))
@pytest.mark.parametrize("negatives_only", [False, True])
def test_every_objective_is_maximised_and_takes_negative_pairs_alone(name, negatives_only):
    maximise, h = losses.PAIRWISE_OBJECTIVES[name], torch.randn(VECTOR.shape)
    method = KernelProxy(kernel=losses.TANH, maximise=maximise, negatives_only=negatives_only)
    value = maximise(losses.TANH.gram(h), Y, minimum=-1.0, maximum=1.0, negatives_only=negatives_only)
    assert torch.equal(method.objective(site(VECTOR))(context(h)).loss, -value)


@pytest.mark.parametrize("name", sorted(losses.PAIRWISE_OBJECTIVES))
@pytest.mark.parametrize("kernel", [losses.TANH, losses.RELU], ids=lambda k: k.name)
def test_descent_separates_two_classes_with_every_objective(name, kernel):
    """Negative pairs come down to the kernel's minimum, positive ones go up: one class above the other by far."""
    h = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.tensor([0, 1, 0, 1])
    objective = KernelProxy(kernel=kernel, maximise=losses.PAIRWISE_OBJECTIVES[name]).objective(site(VECTOR))
    optimizer = torch.optim.Adam([h], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        objective(context(h, y)).loss.backward()
        optimizer.step()
    gram = kernel.gram(h.detach())
    same = y[:, None] == y[None, :]
    assert gram[~same].max() < kernel.minimum + 0.05
    assert gram[same].min() > (0.05 if name == "upper-triangle-alignment" else 0.9)


# The theorems.


class Phi(nn.Module):
    """What the next part begins with: tanh(u) / ||tanh(u)||."""

    def forward(self, u):
        return F.normalize(torch.tanh(u), dim=1)


def test_a_part_at_its_optimum_lets_a_linear_output_part_reach_a_hinge_loss_of_exactly_zero():
    """XOR is not linearly separable; the first part never sees the hinge loss, only pairs."""
    torch.manual_seed(0)
    corner = torch.randint(2, (32, 2))
    x, y = 2.0 * corner - 1 + 0.1 * torch.randn(32, 2), corner.sum(1) % 2
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 8), nn.Sequential(Phi(), nn.Linear(8, 2)))
    trainer = mw.Trainer(
        mw.Partition(model, cuts=["2"], example=x),
        KernelProxy(kernel=losses.TANH),
        loss=losses.multi_margin,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.02),
    )
    first = trainer.step(x, y)
    for _ in range(199):
        last = trainer.step(x, y)
    assert first[0] > -0.5
    assert last[0] < -0.999
    assert first[1] > 0
    with torch.no_grad():
        assert losses.multi_margin(model(x), y) == 0


@pytest.mark.parametrize(("minimum", "classes"), [(0.0, 2), (0.0, 5), (-1.0, 2)])
def test_where_the_kernel_is_extreme_the_hinge_output_is_known_in_closed_form(minimum, classes):
    """w_c = phi_c / (max - min) leads every other class by exactly the margin: zero loss, and less is not enough."""
    y = torch.arange(classes).repeat(3)
    corners = torch.eye(classes).double() if minimum == 0 else torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double()
    phi = corners[y]
    logits = phi @ corners.T / (1 - minimum)
    assert losses.multi_margin(logits, y) == 0
    assert losses.multi_margin(0.999 * logits, y) > 0


def least_regularised_hinge(distance, share, tau):
    """min over w, b of mean hinge + tau ||w|| where the two classes are two points `distance` apart.

    With r = ||w|| along the difference, the classes lie r * distance apart in f, and what is missing to 2 is best paid
    by the smaller class: m (2 - r distance) + tau r on [0, 2 / distance], linear in r.
    """
    m = min(share, 1 - share)
    return min(2 * m, 2 * tau / distance)


@pytest.mark.parametrize("positives", [1, 3, 4])
@pytest.mark.parametrize("minimum", [0.0, -1.0])
@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_hinge_is_zero_at_the_optimum_if_and_only_if_tau_is_below_the_bound(positives, minimum, factor):
    """tau < sqrt(2 (max - min)) min(share, 1 - share), the bound of the first paper's theorem 1, on a fine grid."""
    y = torch.tensor([1.0] * positives + [-1.0] * (8 - positives), dtype=torch.float64)
    angle = math.acos(minimum)
    points = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    phi = points[(y < 0).long()]
    distance, share = math.sqrt(2 * (1 - minimum)), positives / 8
    tau = factor * distance * min(share, 1 - share)
    direction = (points[0] - points[1]) / distance
    best, hinge = math.inf, None
    for i, j in itertools.product(range(17), range(-20, 21)):  # holds the optimum, r = 2 / distance or 0 and b = +-1
        w, b = i / 4 / distance * direction, j / 20
        value = float((1 - y * (phi @ w + b)).clamp_min(0).mean())
        if value + tau * i / 4 / distance < best:
            best, hinge = value + tau * i / 4 / distance, value
    assert abs(best - least_regularised_hinge(distance, share, tau)) <= 1e-12
    assert (hinge <= 1e-12) == (factor < 1)


@seeds
@given(st.integers(0, 10**6), st.integers(1, 7), st.sampled_from([0.0, -1.0]), st.floats(0.01, 0.6))
def test_no_other_representation_allows_a_smaller_regularised_hinge(seed, positives, minimum, tau):
    """Any unit vectors with k >= minimum, any w and b, after descent on all of them: never below the ideal part's."""
    y = torch.tensor([1.0] * positives + [-1.0] * (8 - positives), dtype=torch.float64)
    z, w, b = (draw(shape, seed + i).requires_grad_() for i, shape in enumerate([(8, 3), (3,), (1,)]))
    optimizer = torch.optim.SGD([z, w, b], lr=0.3)
    bound = least_regularised_hinge(math.sqrt(2 * (1 - minimum)), positives / 8, tau)
    for _ in range(40):
        phi = F.normalize(z if minimum < 0 else z.abs(), dim=1)
        value = (1 - y * (phi @ w + b)).clamp_min(0).mean() + tau * w.norm()
        assert value.item() >= bound - 1e-12
        optimizer.zero_grad()
        value.backward()
        optimizer.step()


# Options and errors.


@pytest.mark.parametrize("maximise", [losses.alignment, losses.upper_triangle_alignment], ids=lambda m: m.__name__)
@pytest.mark.parametrize("kernel", [losses.RELU, losses.SIGMOID, losses.gaussian(2.0)], ids=lambda k: k.name)
def test_alignment_of_negative_pairs_is_refused_at_once_where_the_minimum_is_zero(maximise, kernel):
    with pytest.raises(MethodError, match="minimum is 0"):
        KernelProxy(kernel=kernel, maximise=maximise, negatives_only=True)
    assert KernelProxy(kernel=losses.TANH, maximise=maximise, negatives_only=True).negatives_only


@pytest.mark.parametrize(
    ("options", "says"), [({"pool": 0}, "pool=0"), ({"projection": 0}, "projection=0"), ({"projection": -3}, "=-3")]
)
def test_numbers_below_one_are_refused(options, says):
    with pytest.raises(MethodError, match=says):
        KernelProxy(**options)


def test_a_kernel_without_a_range_is_refused():
    """It has no ideal Gram matrix."""
    with pytest.raises(MethodError, match="linear is unbounded"):
        KernelProxy(kernel=losses.LINEAR)


@pytest.mark.parametrize("rows", [1, 4])
def test_a_batch_of_one_class_is_refused(rows):
    with pytest.raises(MethodError, match="one class"):
        KernelProxy().objective(site(VECTOR))(context(torch.randn(rows, 6), torch.zeros(rows, dtype=torch.long)))


def test_an_objective_of_ones_own_needs_no_option_for_negative_pairs():
    def own(gram, y, /, *, minimum, maximum):
        return gram.sum()

    h = torch.randn(VECTOR.shape)
    loss = KernelProxy(maximise=own).objective(site(VECTOR))(context(h)).loss
    assert torch.equal(loss, -losses.RELU.gram(h).sum())


def trainer_of(method, x, loss=F.cross_entropy):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    return mw.Trainer(
        mw.Partition(model, cuts=["1"], example=x),
        method,
        loss=loss,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )


def test_features_that_are_not_a_number_stop_the_step_before_the_part_is_touched():
    x, y = torch.randn(6, 5), torch.arange(6) % 3
    trainer = trainer_of(KernelProxy(), x)
    before = trainer.partition.model[0].weight.detach().clone()
    x[0, 0] = torch.nan
    with pytest.raises(NonFiniteLossError, match="part 0"):
        trainer.step(x, y)
    assert torch.equal(trainer.partition.model[0].weight, before)


def test_the_trainers_loss_is_the_hinge_of_the_last_part():
    x, y = torch.randn(6, 5), torch.arange(6) % 3
    trainer = trainer_of(KernelProxy(), x, loss=losses.multi_margin)
    expected = losses.multi_margin(trainer.partition.model(x), y).detach()
    assert torch.equal(trainer.step(x, y)[1], expected)


def test_every_kernel_and_objective_can_be_named_on_the_command_line():
    for kernel in losses.KERNELS.keys() - {"linear"}:
        for name in losses.PAIRWISE_OBJECTIVES:
            built = registry.build(registry.parse(f"kernel-proxy:kernel={kernel},maximise={name}"), classes=3)
            assert built == KernelProxy(kernel=losses.KERNELS[kernel], maximise=losses.PAIRWISE_OBJECTIVES[name])
    text = "kernel-proxy:kernel=tanh,negatives-only=yes,projection=8,pool=none"
    built = registry.build(registry.parse(text), classes=3)
    assert built == KernelProxy(kernel=losses.TANH, negatives_only=True, projection=8)
    assert set(options.settable(KernelProxy)) == {"kernel", "maximise", "negatives_only", "pool", "projection"}


def test_the_projection_is_the_perceptron_of_the_heads():
    """The same seed gives the same head, made by hand."""
    torch.manual_seed(3)
    ours = KernelProxy(projection=4, pool=2).objective(site(IMAGE)).state_dict()
    torch.manual_seed(3)
    by_hand = heads.mlp(IMAGE, 4, depth=1, width=14, pool=2).state_dict()
    assert all(torch.equal(a, b) for a, b in zip(ours.values(), by_hand.values(), strict=True))
