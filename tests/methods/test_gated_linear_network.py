"""Gated linear networks: the solver against a scalar loop, the gradient that a step is, and what the model computes."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import modulewise as mw
from modulewise import models
from modulewise.compare import Experiment, run
from modulewise.errors import CheckpointError, MethodError, ModulewiseError
from modulewise.methods import GatedLinearNetwork
from modulewise.methods.proxy.gln_solver import online_pass
from modulewise.models.gated import GatedLinear

CLASSES = 3
few = settings(max_examples=10, deadline=None, database=None)


def network(*, widths=(4, 2), contexts=2, clip=0.01, shape=(1, 2, 3), classes=CLASSES, spread=0.3):
    """A small network in float64 whose weights differ from each other."""
    torch.manual_seed(0)
    model = models.gln(shape, classes, widths=widths, contexts=contexts, clip=clip).double()
    for layer in model.layers.values():
        layer.weight.data += spread * torch.randn_like(layer.weight)
    return model


def batch(n=7, shape=(1, 2, 3), seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (n,), generator=generator)


def trainer_of(model, x, *, cuts=(), method=None):
    partition = mw.Partition(model, cuts=cuts, example=x)
    return mw.Trainer(partition, method or GatedLinearNetwork(), loss=F.cross_entropy, optimizer=None)


def literal_context(planes, offsets, z):
    index = 0
    for k, (plane, offset) in enumerate(zip(planes, offsets, strict=True)):
        if sum(p * v for p, v in zip(plane, z, strict=True)) > offset:
            index += 2**k
    return index


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


def literal_pass(model, x, y, *, rates, limit, clip=0.01):
    """One pass in plain Python numbers: new weights, log losses (layer, sample, class, neuron) and the outputs."""
    layers = [(layer.weight.tolist(), layer.planes.tolist(), layer.offsets.tolist()) for layer in model.layers.values()]
    losses, outputs = [[] for _ in layers], []
    for sample, label, rate in zip(x.flatten(1).tolist(), y.tolist(), rates, strict=True):
        outputs.append([])
        for c in range(CLASSES):
            target = 1.0 if label == c else 0.0
            below = [sigmoid(v) for v in sample]
            for k, (weights, planes, offsets) in enumerate(layers):
                clipped = [min(max(p, clip), 1 - clip) for p in below]
                features = [math.log(p / (1 - p)) for p in clipped] + [1.0]
                below = []
                for u in range(len(weights[c])):
                    w = weights[c][u][literal_context(planes[c][u], offsets[c][u], sample)]
                    log_odds = sum(a * b for a, b in zip(w, features, strict=True))
                    p = sigmoid(log_odds)
                    losses[k].append(-math.log(p if target else 1 - p))
                    for i, f in enumerate(features):
                        w[i] = min(max(w[i] - rate * (p - target) * f, -limit), limit)
                    below.append(p)
            outputs[-1].append(log_odds)
    return [layer[0] for layer in layers], losses, outputs


@pytest.mark.parametrize("sizes", [(7,), (3, 4), (1, 1, 5)])
def test_the_solver_equals_a_scalar_loop_however_the_samples_are_batched(sizes):
    model, (x, y) = network(), batch()
    method = GatedLinearNetwork(rate=0.3, decay=1.0, weight_limit=0.6)
    rates = [min(0.3, 1.0 / t) for t in range(1, 8)]
    weights, losses, _ = literal_pass(model, x, y, rates=rates, limit=0.6)
    assert any(abs(v) == 0.6 for layer in weights for c in layer for u in c for w in u for v in w)  # the limit acts
    trainer = trainer_of(model, x, cuts=("layer1",), method=method)
    reported = [
        {part: loss.item() * len(some) for part, loss in trainer.step(some, labels).items()}
        for some, labels in zip(x.split(list(sizes)), y.split(list(sizes)), strict=True)
    ]
    for layer, expected in zip(model.layers.values(), weights, strict=True):
        assert (layer.weight - torch.tensor(expected, dtype=torch.float64)).abs().max() <= 1e-12
    means = [sum(values) / len(values) for values in losses]
    expected = [means[0], (means[1] + means[2]) / 2]
    for part in (0, 1):
        assert sum(report[part] for report in reported) / 7 == pytest.approx(expected[part], rel=1e-10)


def test_the_model_computes_what_the_scalar_loop_computes():
    model, (x, y) = network(), batch()
    _, _, outputs = literal_pass(model, x, y, rates=[0.0] * 7, limit=9.0)
    assert (model(x) - torch.tensor(outputs, dtype=torch.float64)).abs().max() <= 1e-12


def test_the_contexts_are_all_used_and_the_clip_acts():
    """So that the two tests above say something about both."""
    model, (x, _) = network(), batch(200)
    layer = model.layers["layer1"]
    assert layer.context(x.flatten(1)).unique().tolist() == [0, 1, 2, 3]
    assert layer.features(x.flatten(1)).abs().max().item() == pytest.approx(math.log(99))
    assert torch.equal(layer.features(x.flatten(1))[:, -1], torch.ones(200).double())


def test_a_step_is_the_gradient_of_every_neurons_own_log_loss():
    model, (x, y) = network(), batch(1)
    target = F.one_hot(y, CLASSES).double()
    before = {name: layer.weight.detach().clone() for name, layer in model.layers.items()}
    z = h = x.flatten(1)
    total = torch.zeros(()).double()
    for layer in model.layers.values():
        h = layer(h.detach(), z)
        total = total + F.binary_cross_entropy_with_logits(h, target[:, :, None].expand_as(h), reduction="sum")
    gradients = torch.autograd.grad(total, [layer.weight for layer in model.layers.values()])
    trainer_of(model, x).step(x, y)
    for (name, layer), gradient in zip(model.layers.items(), gradients, strict=True):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(layer.weight, before[name] - 0.01 * gradient, rtol=1e-13, atol=1e-13)


@few
@given(st.integers(0, 10**6))
def test_a_neurons_loss_is_convex_in_its_weights(seed):
    """A gradient is monotone, (g(a) - g(b)) . (a - b) >= 0; g is what the solver takes off, at rate 1."""
    generator = torch.Generator().manual_seed(seed)
    start = [torch.randn(2, 1, 1, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    z, targets = torch.randn(1, 3, generator=generator, dtype=torch.float64), torch.tensor([[0.0, 1.0]]).double()
    moved = []
    for weight in start:
        layer = GatedLinear(3, 1, classes=2, side=3, contexts=0, clip=0.01).double()
        layer.weight.data.copy_(weight)
        with torch.no_grad():
            online_pass([layer], z, targets, rates=[1.0], limit=1e9)
        moved.append(weight - layer.weight.detach())
    assert ((moved[0] - moved[1]) * (start[0] - start[1])).sum() >= 0


def test_one_neuron_without_half_spaces_is_online_logistic_regression():
    """Weights 1/2 for the input and the bias: with x = 2 and y = 1, p = sigmoid(1.5), and so on by hand."""
    model = models.gln((1, 1, 1), 1, widths=(), contexts=0).double()
    x = torch.tensor([2.0, -9.0]).double().view(2, 1, 1, 1)
    trainer_of(model, x, method=GatedLinearNetwork(rate=0.1)).step(x, torch.tensor([0, 0]))
    a, b = 0.5 + 0.1 * 2 * (1 - sigmoid(1.5)), 0.5 + 0.1 * (1 - sigmoid(1.5))
    error = 1 - sigmoid(-math.log(99) * a + b)  # -9 is clipped to the log-odds of 0.01
    expected = [a - 0.1 * error * math.log(99), b + 0.1 * error]
    assert model.head.weight.flatten().tolist() == pytest.approx(expected, rel=1e-12)


def test_the_learning_rate_falls_from_the_sample_where_decay_over_t_reaches_the_rate():
    model, (x, y) = network(), batch(1)
    trainer = trainer_of(model, x, method=GatedLinearNetwork(rate=0.01, decay=0.02))
    for t in range(1, 5):
        before = model.head.weight.detach().clone()
        probability = model(x).sigmoid()
        trainer.step(x, y)
        moved = (model.head.weight - before)[:, 0, :, -1].sum(1)  # of the bias, whose input is 1
        expected = -min(0.01, 0.02 / t) * (probability - F.one_hot(y, CLASSES)).flatten()
        torch.testing.assert_close(moved, expected, rtol=1e-10, atol=1e-14)


def test_another_order_gives_other_weights():
    """On purpose: online learning is no function of the set of samples."""
    results = []
    for order in (slice(None), torch.arange(6, -1, -1)):
        model, (x, y) = network(), batch()
        trainer_of(model, x).step(x[order], y[order])
        results.append(model.head.weight.detach())
    assert (results[0] - results[1]).abs().max() > 1e-4


@few
@given(st.permutations(range(CLASSES)))
def test_classes_learn_side_by_side_their_order_does_not_matter(order):
    model, other = network(), network()
    x, y = batch()
    for a, b in zip(model.layers.values(), other.layers.values(), strict=True):
        for name in ("weight", "planes", "offsets"):
            getattr(b, name).data.copy_(getattr(a, name).data[list(order)])
    inverse = torch.tensor(order).argsort()
    trainer_of(model, x).step(x, y)
    trainer_of(other, x).step(x, inverse[y])
    torch.testing.assert_close(other(x), model(x)[:, list(order)], rtol=1e-12, atol=1e-12)


def test_no_neuron_hears_of_another_layer_above_it():
    results = []
    for factor in (1.0, -3.0):
        model, (x, y) = network(), batch()
        model.layer2.weight.data *= factor
        model.head.weight.data *= factor
        trainer_of(model, x, cuts=("layer1",)).step(x, y)
        results.append(model.layer1.weight.detach())
    assert torch.equal(*results)


def test_a_frozen_layer_does_not_move_and_the_others_do():
    model, (x, y) = network(), batch()
    model.layer2.weight.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer_of(model, x).step(x, y)
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert still == ["layer2.weight"]


def test_one_pass_learns_what_one_logistic_regression_cannot():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1200, 1, 1, 2, generator=generator)
    y = (x[:, 0, 0, 0] * x[:, 0, 0, 1] > 0).long()
    accuracies = []
    for widths, contexts in (((16, 8), 4), ((), 0)):
        torch.manual_seed(0)
        model = models.gln((1, 1, 2), 2, widths=widths, contexts=contexts)
        trainer_of(model, x[:4], method=GatedLinearNetwork(rate=0.1)).step(x[:800], y[:800])
        accuracies.append((model(x[800:]).argmax(1) == y[800:]).float().mean().item())
    assert accuracies[0] > 0.85
    assert accuracies[1] < 0.65


@pytest.mark.parametrize("cuts", [("layer1",), ("layer2",), ("layer1", "layer2")])
def test_a_partition_cuts_between_layers_and_recomputes_the_side_information(cuts):
    model, (x, _) = network(), batch()
    partition = mw.Partition(model, cuts=cuts, example=x)
    h = x
    for index in range(len(partition)):
        h = partition.part(index)(h, x=x)
    assert torch.equal(h, model(x))
    assert not partition.ports


def test_the_counter_is_saved_and_taken_back():
    (x, y), models_, states = batch(), [network(), network()], []
    method = GatedLinearNetwork(rate=1.0, decay=0.5)
    first, second = (trainer_of(model, x, method=method) for model in models_)
    first.step(x, y)
    second.partition.model.load_state_dict(first.partition.model.state_dict())
    second.solver.load_state_dict(first.solver.state_dict())
    for trainer in (first, second):
        trainer.step(x, y)
        states.append(trainer.partition.model.head.weight)
    assert torch.equal(*states)
    assert first.solver.state_dict()["seen"].item() == 14
    with pytest.raises(CheckpointError, match="number of samples seen"):
        second.solver.load_state_dict({})


def test_what_cannot_be_learned_from_is_refused_before_a_weight_moves():
    model, (x, y) = network(), batch()
    trainer = trainer_of(model, x)
    before = model.layer1.weight.detach().clone()
    broken = x.clone()
    broken[3] = torch.nan
    for some, labels, said in (
        (broken, y, "not finite"),
        (x, y + 1, "given for 3 classes"),
        (x, y - 1, "given for 3 classes"),
        (x, y.double(), "integer classes"),
        (x, torch.zeros(7, 2, dtype=torch.long), "integer classes"),
        ({"x": x}, y, "integer classes"),
    ):
        with pytest.raises(MethodError, match=said):
            trainer.solver.step(some, labels, step=0)
    assert torch.equal(model.layer1.weight, before)
    with pytest.raises(ModulewiseError, match="not finite"):
        trainer.step(broken, y)


def test_a_model_of_other_layers_is_refused():
    x = torch.randn(4, 1, 2, 3).double()
    plain = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Linear(4, 3)).double()
    with pytest.raises(MethodError, match=r"models\.gln"):
        trainer_of(plain, x)


@pytest.mark.parametrize("arguments", [{"rate": 0.0}, {"decay": -1.0}, {"weight_limit": 0.0}, {"rate": math.nan}])
def test_numbers_out_of_range_are_refused(arguments):
    with pytest.raises(MethodError, match="above 0"):
        GatedLinearNetwork(**arguments)


@pytest.mark.parametrize("arguments", [{"widths": (3, 0)}, {"contexts": -1}, {"clip": 0.5}, {"clip": 0.0}])
def test_a_network_with_numbers_out_of_range_is_refused(arguments):
    with pytest.raises(ModulewiseError, match="expected widths"):
        models.gln((1, 2, 2), 3, **arguments)


def test_half_spaces_are_unit_vectors_and_weights_start_at_the_geometric_mean():
    model = models.gln((1, 4, 4), 3)
    for layer, inputs in zip(model.layers.values(), (16, 50, 25), strict=True):
        torch.testing.assert_close(layer.planes.norm(dim=-1), torch.ones(layer.planes.shape[:3]))
        assert torch.equal(layer.weight, torch.full(layer.weight.shape, 1 / (inputs + 1)))
    assert set(dict(model.named_buffers())) == {f"{n}.{b}" for n in model.layers for b in ("planes", "offsets")}


def test_compare_trains_it_by_name():
    (result,) = run(
        Experiment(methods=("gln",), model="gln", data="digits", epochs=1, parts=(2,), train_limit=100, probe=False)
    )
    assert result.error is None
    assert result.test_accuracy > 0.5
