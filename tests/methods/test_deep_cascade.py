"""Deep cascade learning: the output block against its formula, and one part after another."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import modulewise as mw
from modulewise import losses, schedules
from modulewise.errors import DataError, MethodError, NonFiniteLossError
from modulewise.heads.cascade import output_block
from modulewise.methods import DeepCascade
from modulewise.objective import Context, Site
from modulewise.partition.boundary import Boundary

Y = torch.tensor([0, 1, 0, 2])
LAYOUTS = [
    Boundary("image", (4, 3, 2, 2), torch.float64),
    Boundary("last", (4, 2, 2, 3), torch.float64, -1),
    Boundary("row", (4, 3, 4), torch.float64),
    Boundary("tokens", (4, 5, 3), torch.float64, -1),
    Boundary("vector", (4, 3), torch.float64),
]


def objective(boundary, **options):
    return DeepCascade(3, **options).objective(Site(0, 2, None, boundary, losses.classification))


def context(h, y=Y):
    return Context(h_in=None, h_out=h, x=None, y=y, views=1, part=0, step=0)


def literal_block(boundary, h, parameters, y):
    """CE of three linear maps with ReLU between, on all elements of a sample (the mean of tokens), by loops."""
    weights, biases = parameters[::2], parameters[1::2]
    total = 0.0
    for n, label in enumerate(y.tolist()):
        if boundary.name == "tokens":
            values = [sum(h[n, :, c]) / h.shape[1] for c in range(h.shape[2])]
        else:
            values = list(boundary.channels_first(h)[n].flatten())
        for layer, (w, b) in enumerate(zip(weights, biases, strict=True)):
            values = [sum(a * v for a, v in zip(row, values, strict=True)) + c for row, c in zip(w, b, strict=True)]
            values = [v if v > 0 else 0 * v for v in values] if layer < 2 else values
        total = total + torch.log(sum(torch.exp(v) for v in values)) - values[label]
    return total / len(y)


@pytest.mark.parametrize("boundary", LAYOUTS, ids=lambda b: b.name)
def test_the_objective_is_the_literal_output_block_in_every_layout(boundary):
    torch.manual_seed(0)
    made = objective(boundary, width=6, dropout=0.0)
    parameters = list(made.parameters())
    for parameter in parameters:  # large enough that no layer is dead on four samples
        nn.init.normal_(parameter)
    h = torch.randn(boundary.shape, dtype=torch.float64)
    first, second = h.clone().requires_grad_(), h.clone().requires_grad_()
    loss, literal = made(context(first)).loss, literal_block(boundary, second, parameters, Y)
    actual = torch.autograd.grad(loss, [first, *parameters])
    expected = torch.autograd.grad(literal, [second, *parameters])
    assert abs(loss - literal) <= 1e-10 * abs(literal)
    for a, b in zip(actual, expected, strict=True):
        assert b.abs().max() > 0
        assert (a - b).abs().max() <= 1e-10 * b.abs().max()


def test_the_published_block_drops_half_and_has_512_and_256_units_on_all_positions():
    block = output_block(Boundary("conv1", (2, 8, 4, 4)), 10)
    kinds = [(type(m), getattr(m, "out_features", getattr(m, "p", None))) for m in block]
    drop = (nn.Dropout, 0.5)
    assert [k for k in kinds if k[0] in (nn.Dropout, nn.Linear, nn.ReLU)] == [
        drop,
        (nn.Linear, 512),
        (nn.ReLU, None),
        drop,
        (nn.Linear, 256),
        (nn.ReLU, None),
        (nn.Linear, 10),
    ]
    assert next(m for m in block if isinstance(m, nn.Linear)).in_features == 8 * 4 * 4


def test_pooling_bounds_the_first_layer_and_a_width_of_one_keeps_a_unit():
    block = output_block(Boundary("conv1", (2, 8, 9, 4)), 10, width=1, pool=2)
    assert [m.weight.shape for m in block if isinstance(m, nn.Linear)] == [(1, 32), (1, 1), (10, 1)]


def test_the_last_part_minimises_the_task_loss_alone():
    made = DeepCascade(3).objective(Site(1, 2, None, None, lambda output, y: (output - y).square().sum()))
    assert made(context(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0]))).loss == 5
    assert not list(made.parameters())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"width": 0}, "width=0"),
        ({"pool": 0}, "pool=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"dropout": -0.1}, "-0.1"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(options, says):
    with pytest.raises(MethodError, match=says):
        DeepCascade(3, **options)
    with pytest.raises(MethodError, match="classes=0"):
        DeepCascade(0)


def small_trainer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(12, 4)
    trainer = mw.Trainer(
        mw.Partition(model, cuts=["1", "3"], example=x),
        DeepCascade(3, width=8),
        loss=F.cross_entropy,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
    )
    return trainer, x


def test_one_part_after_another_each_learns_alone_on_frozen_ones_below():
    trainer, x = small_trainer()
    model, y = trainer.partition.model, torch.arange(12) % 3
    seen = []
    before = [p.detach().clone() for p in model.parameters()]

    def moved(epoch):
        changed = [not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
        seen.append((epoch.part, changed[::2]))
        before[:] = [p.detach().clone() for p in model.parameters()]

    trainer.fit([(x, y)], epochs=1, schedule=schedules.sequential, callbacks=[moved])
    assert seen == [(0, [True, False, False]), (1, [False, True, False]), (2, [False, False, True])]


def test_labels_beyond_the_classes_and_nan_inputs_are_refused_by_the_trainer():
    trainer, x = small_trainer()
    with pytest.raises(DataError):
        trainer.step(x, torch.full((12,), 3))
    with pytest.raises(NonFiniteLossError):
        trainer.step(x * torch.nan, torch.arange(12) % 3)
