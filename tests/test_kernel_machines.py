"""Kernel machines with centres: values and gradients, placing and merging centres, networks made of them."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import modulewise as mw
from modulewise import losses, models, schedules
from modulewise.errors import ModulewiseError
from modulewise.methods import KernelProxy
from modulewise.models import KernelMachine, gaussian_kernel, klenet5, kmlp, merged, place_centres, thinned

seeds = settings(max_examples=20, deadline=None, database=None)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer_on(centres, units=3, *, width=1.3):
    layer = KernelMachine(centres.shape[1], units, centres=len(centres), width=width).double()
    with torch.no_grad():
        layer.centres.copy_(centres)
        layer.alpha.copy_(draw(units, len(centres), seed=7))
        layer.bias.copy_(draw(units, seed=8))
    return layer


def literal_kernel(h, centres, width):
    """k_nm = exp(-sum_d (h_nd - c_md)^2 / (2 width^2)) by loops."""
    rows = []
    for u in h:
        row = []
        for c in centres:
            distance = sum((a - b) ** 2 for a, b in zip(u, c, strict=True))
            row.append(torch.exp(-distance / (2 * width**2)))
        rows.append(row)
    return rows


def literal_layer(h, centres, alpha, bias, width):
    gram = literal_kernel(h, centres, width)
    return torch.stack(
        [
            torch.stack(
                [
                    sum(a * k for a, k in zip(machine, row, strict=True)) + b
                    for machine, b in zip(alpha, bias, strict=True)
                ]
            )
            for row in gram
        ]
    )


def test_the_kernel_is_the_literal_gaussian():
    h, centres = draw(4, 3), draw(5, 3, seed=1)
    literal = torch.stack([torch.stack(row) for row in literal_kernel(h, centres, 0.7)])
    assert (gaussian_kernel(h, centres, width=0.7) - literal).abs().max() <= 1e-10 * literal.abs().max()


def test_the_layer_is_the_literal_sum_over_centres_in_value_and_gradient():
    layer, h = layer_on(draw(5, 4, seed=1)), draw(6, 4)
    first, second = h.clone().requires_grad_(), h.clone().requires_grad_()
    actual, literal = layer(first), literal_layer(second, layer.centres, layer.alpha, layer.bias, 1.3)
    weight = draw(6, 3, seed=9)
    mine = torch.autograd.grad((actual * weight).sum(), [first, layer.alpha, layer.bias])
    theirs = torch.autograd.grad((literal * weight).sum(), [second, layer.alpha, layer.bias])
    assert (actual - literal).abs().max() <= 1e-10 * literal.abs().max()
    for a, b in zip(mine, theirs, strict=True):
        assert b.abs().max() > 0
        assert (a - b).abs().max() <= 1e-10 * b.abs().max()


def test_images_are_flattened_as_their_elements_are_stored():
    layer, h = layer_on(draw(5, 8, seed=1)), draw(3, 2, 2, 2)
    assert torch.equal(layer(h), layer(h.reshape(3, 8)))


@given(st.integers(0, 999))
@seeds
def test_the_kernel_does_not_change_under_a_shift_or_a_rotation_of_inputs_and_centres(seed):
    h, centres = draw(4, 3, seed=seed), draw(5, 3, seed=seed + 1)
    rotation, _ = torch.linalg.qr(draw(3, 3, seed=seed + 2))
    shift = 10 * draw(3, seed=seed + 3)
    before = gaussian_kernel(h, centres, width=1.1)
    after = gaussian_kernel(h @ rotation + shift, centres @ rotation + shift, width=1.1)
    assert torch.allclose(before, after, rtol=1e-9, atol=1e-12)


@given(st.integers(0, 999), st.floats(0.1, 10))
@seeds
def test_scaling_inputs_centres_and_width_alike_changes_nothing(seed, factor):
    """Not so for inputs and centres alone: the width is in units of the representation."""
    h, centres = draw(4, 3, seed=seed), draw(5, 3, seed=seed + 1)
    scaled = gaussian_kernel(factor * h, factor * centres, width=1.1 * factor)
    assert torch.allclose(gaussian_kernel(h, centres, width=1.1), scaled, rtol=1e-9, atol=1e-12)


@given(st.integers(0, 999))
@seeds
def test_permuting_samples_permutes_rows_and_permuting_centres_with_alphas_changes_nothing(seed):
    layer, h = layer_on(draw(5, 4, seed=seed)), draw(6, 4, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(6, generator=generator), torch.randperm(5, generator=generator)
    assert torch.allclose(layer(h[rows]), layer(h)[rows], rtol=1e-10)
    other = layer_on(layer.centres[columns])
    with torch.no_grad():
        other.alpha.copy_(layer.alpha[:, columns])
    assert torch.allclose(other(h), layer(h), rtol=1e-10)


def test_gradients_are_finite_where_inputs_lie_on_centres_and_nan_stays_nan():
    layer = layer_on(torch.zeros(3, 4, dtype=torch.float64))
    h = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    out = layer(h)
    out.sum().backward()
    assert torch.allclose(out[0], layer.alpha.sum(1) + layer.bias)  # k = 1
    assert h.grad.abs().max() == 0  # the top of every Gaussian is flat
    assert torch.equal(layer.alpha.grad, torch.full((3, 3), 2.0, dtype=torch.float64))
    assert layer(h * torch.nan).isnan().all()


def test_far_from_all_centres_the_output_is_the_bias_and_the_gradient_zero():
    layer = layer_on(draw(3, 4))
    h = torch.full((1, 4), 1e3, dtype=torch.float64, requires_grad=True)
    out = layer(h)
    out.sum().backward()
    assert torch.equal(out[0], layer.bias)
    assert h.grad.abs().max() == 0


def test_distances_keep_their_digits_far_from_the_origin_in_float32():
    near = (64 * draw(6, 3)).round().float() / 64  # multiples of 1/64, which adding 3000 does not round
    far = gaussian_kernel(3000 + near, 3000 + near, width=1.0)
    assert torch.allclose(far, gaussian_kernel(near, near, width=1.0), rtol=0, atol=1e-5)


def test_under_autocast_kernel_values_keep_float32():
    h, centres = draw(4, 6).float(), draw(5, 6, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = gaussian_kernel(h, centres, width=2.0)
    assert torch.equal(inside, gaussian_kernel(h, centres, width=2.0))
    assert inside.dtype is torch.float32


def test_the_matching_proxy_computes_with_the_kernel_of_the_layer_above_the_cut():
    h, y = draw(6, 4), torch.tensor([0, 1, 0, 2, 1, 2])
    layer = KernelMachine(4, 3, centres=5, width=1.7)
    site = mw.Site(0, 2, None, mw.Boundary("kernel1", (6, 4), torch.float64), losses.classification)
    objective = KernelProxy(kernel=losses.gaussian(layer.width)).objective(site)
    context = mw.Context(h_in=None, h_out=h, x=None, y=y, views=1, part=0, step=0)
    expected = -losses.alignment(gaussian_kernel(h, h, width=layer.width), y, minimum=0.0, maximum=1.0)
    assert abs(objective(context).loss - expected) < 1e-12


def test_placing_puts_each_layer_on_what_the_layers_below_give_for_the_stored_samples():
    torch.manual_seed(0)
    model = kmlp((1, 2, 3), 4, units=(5, 3), centres=(7, 6, 4), widths=(1.0, 0.5, 0.7)).double()
    x = draw(8, 1, 2, 3)
    place_centres(model, x)
    h = x.flatten(1)
    assert torch.equal(model.kernel1.centres, h[:7])
    h = literal_layer(h, model.kernel1.centres, model.kernel1.alpha, model.kernel1.bias, 1.0)
    assert torch.allclose(model.kernel2.centres, h[:6], rtol=1e-10)
    h = literal_layer(h, model.kernel2.centres, model.kernel2.alpha, model.kernel2.bias, 0.5)
    assert torch.allclose(model.head.centres, h[:4], rtol=1e-10)


def test_placing_again_with_the_same_samples_changes_nothing():
    model = kmlp((1, 2, 3), 4, units=(5, 3), centres=6)
    x = torch.randn(6, 1, 2, 3)
    place_centres(model, x)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    place_centres(model, x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_placing_changes_centres_alone_in_eval_mode_without_gradients():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), KernelMachine(4, 3, centres=6))
    model.train()
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(6, 4)
    place_centres(model, x)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"3.centres"}
    assert [m.training for m in model] == [True, True, False, True]
    assert not model[3].centres.requires_grad
    assert not model[3]._forward_pre_hooks
    assert torch.equal(model[3].centres, model[1].eval()(model[0](x)))


def test_placing_puts_modes_and_hooks_back_where_the_model_fails():
    model = nn.Sequential(KernelMachine(4, 3, centres=2), nn.Linear(5, 5))
    with pytest.raises(RuntimeError):
        place_centres(model, torch.randn(2, 4))
    assert model.training
    assert not model[0]._forward_pre_hooks


def test_placing_without_kernel_layers_or_enough_samples_is_refused():
    with pytest.raises(ModulewiseError, match="0 kernel layers"):
        place_centres(nn.Linear(4, 3), torch.randn(2, 4))
    with pytest.raises(ModulewiseError, match="up to 3 centres"):
        place_centres(KernelMachine(4, 3, centres=3), torch.randn(2, 4))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 5))
@seeds
def test_thinning_keeps_the_first_samples_of_each_class_and_any_prefix_of_full_rounds_is_balanced(labels, per_class):
    y = torch.tensor(labels)
    kept = thinned(torch.arange(len(labels)), y, per_class=per_class).tolist()
    expected = []
    for turn in range(per_class):
        for label in sorted(set(labels)):
            places = [n for n, other in enumerate(labels) if other == label]
            expected += places[turn : turn + 1]
    assert kept == expected


@pytest.mark.parametrize(
    ("y", "per_class"), [(torch.zeros(3).long(), 0), (torch.zeros(2).long(), 1), (torch.zeros(3), 1)]
)
def test_thinning_refuses_counts_below_one_and_labels_that_do_not_fit(y, per_class):
    with pytest.raises(ModulewiseError, match="expected"):
        thinned(torch.zeros(3, 2), y, per_class=per_class)


def test_on_perfect_clusters_one_centre_a_class_reaches_what_all_centres_reach():
    """Coinciding centres give equal columns, so the functions a layer can be have the same span."""
    points = draw(3, 4, seed=3)
    y = torch.tensor([0, 1, 2, 1, 0, 2, 2, 0, 1])
    layer, h = layer_on(points[y]), draw(20, 4)
    fewer = merged(layer)
    assert torch.equal(fewer.centres, points)
    columns = gaussian_kernel(h, layer.centres, width=1.3)
    single = gaussian_kernel(h, fewer.centres, width=1.3)
    assert torch.allclose(columns, single[:, y], rtol=1e-12, atol=0)
    assert torch.linalg.matrix_rank(columns, rtol=1e-10) == torch.linalg.matrix_rank(single, rtol=1e-10) == 3
    alpha = layer.alpha.tolist()
    sums = [[sum(alpha[i][n] for n in range(9) if y[n] == c) for c in range(3)] for i in range(3)]
    assert torch.allclose(fewer.alpha, torch.tensor(sums, dtype=torch.float64), rtol=1e-12)
    assert torch.allclose(fewer(h), layer(h), rtol=1e-12, atol=1e-14)


def test_merging_is_exact_where_the_sums_are():
    """Two coinciding centres with equal alphas: k + k = 2 k has no rounding."""
    layer = layer_on(torch.tensor([[0.5, -1.0], [0.5, -1.0]], dtype=torch.float64))
    with torch.no_grad():
        layer.alpha.copy_(layer.alpha[:, :1].expand(-1, 2))
        layer.bias.zero_()
    h = draw(20, 2)
    assert len(merged(layer).centres) == 1
    assert torch.equal(merged(layer)(h), layer(h))


@given(st.integers(0, 999), st.floats(0.0, 2.0))
@seeds
def test_merging_by_distance_stays_within_the_bound_of_the_slope(seed, distance):
    layer, h = layer_on(draw(12, 2, seed=seed), width=0.8), 2 * draw(30, 2, seed=seed + 1)
    fewer = merged(layer, distance=distance)
    nearest = torch.cdist(layer.centres, fewer.centres).min(1).values
    assert (nearest <= distance + 1e-12).all()
    assert torch.allclose(fewer.alpha.sum(1), layer.alpha.sum(1), rtol=1e-10)  # every alpha counts once
    bound = layer.alpha.abs().sum(1) * distance / (0.8 * math.sqrt(math.e))
    assert ((fewer(h) - layer(h)).abs() <= bound + 1e-12).all()


def test_merging_leaves_the_layer_itself_and_the_generators_alone():
    layer = KernelMachine(2, 3, centres=4)
    place_centres(layer, torch.zeros(4, 2))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    generator = torch.get_rng_state()
    fewer = merged(layer)
    assert torch.equal(generator, torch.get_rng_state())
    with torch.no_grad():
        for parameter in fewer.parameters():
            parameter.add_(1.0)
        fewer.centres.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    with pytest.raises(ModulewiseError, match="distance=-1"):
        merged(layer, distance=-1.0)


@pytest.mark.parametrize(
    "options", [{"centres": 0}, {"units": 0}, {"features": 0}, {"width": 0.0}, {"width": -1.0}, {"width": math.nan}]
)
def test_a_layer_with_numbers_out_of_range_is_refused(options):
    given = {"features": 4, "units": 3, "centres": 5} | options
    with pytest.raises(ModulewiseError, match="at least 1 and a positive width"):
        KernelMachine(given.pop("features"), given.pop("units"), **given)


def test_inputs_of_another_size_and_lists_that_do_not_fit_are_refused():
    with pytest.raises(ModulewiseError, match="5 elements"):
        KernelMachine(4, 3, centres=2)(torch.zeros(1, 5))
    with pytest.raises(ModulewiseError, match="each of 3 kernel layers"):
        kmlp((1, 2, 2), 3, centres=(5, 5))
    with pytest.raises(ModulewiseError, match="each of 3 kernel layers"):
        kmlp((1, 2, 2), 3, widths=(1.0,))


def test_klenet5_is_lenet5_with_kernel_machines_for_its_last_relu_and_layer():
    model, plain = klenet5((1, 28, 28), 10, centres=20, width=9.0), models.lenet5((1, 28, 28), 10)
    assert [name for name, _ in model.named_children()] == [name for name, _ in plain.named_children()]
    assert isinstance(model.fc2, nn.Linear)
    assert (model.head.centres.shape, model.head.width) == ((20, 84), 9.0)
    below = [str(a) == str(b) for a, b in zip(model, plain, strict=True)]
    assert below == [True] * (len(plain) - 2) + [False] * 2


@pytest.mark.parametrize(
    ("model", "shape", "cuts"),
    [
        (kmlp((1, 4, 4), 3, units=(5, 6), centres=8), (1, 4, 4), ["kernel1", "kernel2"]),
        (klenet5((1, 28, 28), 3, centres=8), (1, 28, 28), ["conv2", "fc2"]),
    ],
    ids=["kmlp", "klenet5"],
)
def test_networks_can_be_cut_below_and_between_kernel_layers(model, shape, cuts):
    x, y = torch.randn(8, *shape), torch.arange(8) % 3
    place_centres(model, x)
    trainer = mw.Trainer(
        mw.Partition(model, cuts=cuts, example=x),
        KernelProxy(kernel=losses.gaussian(1.0)),
        loss=F.cross_entropy,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    before = [p.detach().clone() for p in model.parameters()]
    assert sorted(trainer.step(x, y)) == [0, 1, 2]
    assert all(p.isfinite().all() for p in model.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_centres_are_saved_and_come_back(tmp_path):
    def make(seed):
        torch.manual_seed(seed)
        model = kmlp((1, 2, 2), 3, units=(4,), centres=5)
        return mw.Trainer(
            mw.Partition(model, cuts=["kernel1"], example=torch.zeros(3, 1, 2, 2)),
            KernelProxy(kernel=losses.gaussian(1.0)),
            loss=F.cross_entropy,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        )

    first, x = make(0), torch.randn(5, 1, 2, 2)
    place_centres(first.partition.model, x)
    first.save(tmp_path)
    second = make(1).load(tmp_path)
    assert torch.equal(second.predict(x), first.predict(x))


def test_a_greedily_trained_kernel_perceptron_learns_digits_and_then_needs_fewer_centres():
    data = mw.data.load("digits")
    scale = mw.data.normalization(data.train)
    train, test = (mw.data.Loader(s, batch_size=128, normalize=scale, shuffle=False) for s in (data.train, data.test))
    images, labels = zip(*train, strict=True)
    stored = thinned(torch.cat(images), torch.cat(labels), per_class=10)
    torch.manual_seed(0)
    model = kmlp((1, 8, 8), 10, units=(32, 32), centres=100, widths=(8.0, 4.0, 4.0))
    place_centres(model, stored)
    trainer = mw.Trainer(
        mw.Partition(model, cuts=["kernel1", "kernel2"], example=stored[:8]),
        KernelProxy(kernel=losses.gaussian(4.0)),
        loss=F.cross_entropy,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=3e-2),
    )
    trainer.fit(
        mw.data.Loader(data.train, batch_size=128, normalize=scale, seed=0),
        epochs=12,
        schedule=schedules.sequential,
        callbacks=[lambda epoch: place_centres(model, stored)],
    )
    accuracy = trainer.evaluate(test).accuracy
    assert accuracy > 0.9
    model.head = merged(model.head, distance=1.0)
    assert len(model.head.centres) < 95
    assert abs(trainer.evaluate(test).accuracy - accuracy) < 0.02
