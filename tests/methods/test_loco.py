"""LoCo: its update against plain torch with stop-gradients, its messages, and what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_networks import Skipping
from torch import nn

import modulewise as mw
from modulewise import heads, losses
from modulewise.errors import DataError, MethodError, ModulewiseError, NonFiniteLossError
from modulewise.methods import LoCo
from modulewise.methods.objectives import TaskLoss
from modulewise.objective import Context, Site
from modulewise.partition.boundary import Boundary

F64 = torch.float64
LAYOUTS = [
    Boundary("layer", (4, 3, 5, 2), F64),
    Boundary("stage", (4, 5, 2, 3), F64, channel_axis=-1),
    Boundary("sound", (4, 3, 6), F64),
    Boundary("encoder", (4, 6, 3), F64, channel_axis=-1),
    Boundary("fc1", (4, 3), F64),
]
Y = torch.tensor([0, 1, 2, 3, 0])


def network():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh()),
        nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.Tanh()),
        nn.Sequential(nn.Conv2d(5, 4, 3, padding=1), nn.Tanh()),
        nn.Sequential(nn.Conv2d(4, 3, 3, padding=1), nn.Tanh()),
        nn.Sequential(nn.Flatten(), nn.Linear(48, 4)),
    ).double()


def two_views(n=5, shape=(2, 4, 4), seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator, dtype=F64)
    return torch.cat([x, x + 0.3 * torch.randn(x.shape, generator=generator, dtype=F64)])


def trainer_on(model, cuts, x, method=None, **settings):
    return mw.Trainer(
        mw.Partition(model, cuts=cuts, example=x),
        method or LoCo(features=6, temperature=0.5),
        loss=F.cross_entropy,
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        **settings,
    )


def moved(trainer, x, y, **settings):
    """What one step takes off every part's and every head's parameters; with a learning rate of 1, the gradients."""
    modules = [trainer.partition.part(k) for k in range(len(trainer.partition))] + list(trainer.objectives)
    before = [[p.detach().clone() for p in module.parameters()] for module in modules]
    shown = trainer.step(x, y, **settings)
    after = [[p.detach().clone() for p in module.parameters()] for module in modules]
    return [[b - a for a, b in zip(new, old, strict=True)] for new, old in zip(after, before, strict=True)], shown


def contrast(objective, h):
    return losses.nt_xent(objective.inner.head(h), temperature=0.5)


def expected(trainer, stages, x, y):
    """Plain torch: part k by the losses of k and of k + 1 with h_{k-1} detached, every head by its own loss.

    stages[k](h_{k-1}, detached) gives h_k; what comes from further below is in `detached`.
    """
    count = len(stages)
    with torch.no_grad():
        boundaries = [x]
        for stage in stages:
            boundaries.append(stage(boundaries[-1], boundaries))
    gradients, own, shown = [], [], []
    for k, (stage, objective) in enumerate(zip(stages, trainer.objectives, strict=True)):
        h = stage(boundaries[k], boundaries)
        parameters, head = list(trainer.partition.part(k).parameters()), list(objective.parameters())
        if k == count - 1:
            loss = total = F.cross_entropy(h, y.repeat(2))
        else:
            loss = total = contrast(objective, h)
        if k < count - 2:
            total = loss + contrast(trainer.objectives[k + 1], stages[k + 1](h, boundaries))
        gradients.append(list(torch.autograd.grad(total, parameters, retain_graph=True)))
        own.append(list(torch.autograd.grad(loss, head)) if head else [])
        shown.append(loss.item())
    return [*gradients, *own], shown


def chain(model, cuts):
    """A stage for every part of a network that is cut after its first modules."""
    parts = [*model[: len(cuts)], model[len(cuts) :]]
    return [lambda h, _, part=part: part(h) for part in parts]


def added(first, second):
    pairs = zip(first, second, strict=True)
    return [[a + b for a, b in zip(u, v, strict=True)] for u, v in pairs]


def assert_close(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        for u, v in zip(a, b, strict=True):
            assert v.abs().max() > 0
            assert (u - v).abs().max() <= 1e-10 * v.abs().max()


@pytest.mark.parametrize("cuts", [["0"], ["0", "1"], ["0", "1", "2"], ["0", "1", "2", "3"]], ids=len)
def test_update_is_that_of_the_parts_own_loss_and_of_the_loss_above_with_the_unit_below_detached(cuts):
    model, x = network(), two_views()
    trainer = trainer_on(model, cuts, x)
    wanted, numbers = expected(trainer, chain(model, cuts), x, Y)
    found, shown = moved(trainer, x, Y, views=2)
    assert_close(found, wanted)
    assert [float(shown[k]) for k in range(len(cuts) + 1)] == pytest.approx(numbers, rel=1e-12)


def test_the_loss_above_makes_up_a_part_of_the_update():
    """Without its message the update of the first part would be another one: the test above sees it."""
    model, x = network(), two_views()
    trainer = trainer_on(model, ["0", "1", "2"], x)
    alone = torch.autograd.grad(contrast(trainer.objectives[0], model[0](x)), list(model[0].parameters()))
    found, _ = moved(trainer, x, Y, views=2)
    assert (found[0][0] - alone[0]).abs().max() > 0.05 * alone[0].abs().max()


def test_a_skip_connection_carries_no_gradient_past_the_neighbour():
    """Part c reads what part a gave as well; its loss reaches b alone, although a hears late (d reads a too)."""
    torch.manual_seed(4)
    model, x, y = Skipping().double(), two_views(shape=(6,)), Y % 4
    trainer = trainer_on(model, ["a", "b", "c"], x)
    stages = [
        lambda h, _: model.a(h),
        lambda h, _: model.b(h),
        lambda h, below: model.c(h + below[1]),
        lambda h, below: model.d(h * below[1] + below[2]),
    ]
    wanted, _ = expected(trainer, stages, x, y)
    found, _ = moved(trainer, x, y, views=2)
    assert_close(found, wanted)


def test_slices_of_a_batch_give_the_mean_of_their_gradients():
    """Every slice contrasts its own samples; 2 and 3 of them weigh 2/5 and 3/5, in the messages too."""
    model, x = network(), two_views()
    trainer = trainer_on(model, ["0", "1", "2"], x, accumulate=2)
    total = None
    for rows in (torch.arange(3), torch.arange(3, 5)):
        wanted, _ = expected(trainer, chain(model, "012"), torch.cat([x[rows], x[rows + 5]]), Y[rows])
        part = [[g * (len(rows) / 5) for g in module] for module in wanted]
        total = part if total is None else added(total, part)
    found, _ = moved(trainer, x, Y, views=2)
    assert_close(found, total)


def test_labels_move_the_last_part_alone():
    results = []
    for y in (Y, Y.flip(0).roll(1)):
        x = two_views()
        found, _ = moved(trainer_on(network(), ["0", "1", "2", "3"], x), x, y, views=2)
        results.append(found)
    for part in (0, 1, 2, 3):
        assert all(torch.equal(a, b) for a, b in zip(results[0][part], results[1][part], strict=True))
    assert not torch.equal(results[0][4][0], results[1][4][0])


def test_samples_may_change_places_if_both_views_do():
    x, order = two_views(), torch.tensor([3, 0, 4, 2, 1])
    found = [
        moved(trainer_on(network(), ["0", "1", "2"], x), *batch, views=2)[0]
        for batch in ((x, Y), (x[torch.cat([order, order + 5])], Y[order]))
    ]
    assert_close(found[1], found[0])


@pytest.mark.parametrize("boundary", LAYOUTS, ids=lambda b: b.name)
def test_objective_is_nt_xent_of_a_perceptron_on_the_mean_over_positions_in_every_layout(boundary):
    torch.manual_seed(0)
    objective = LoCo(features=7, temperature=0.3).objective(Site(0, 3, None, boundary, F.cross_entropy))
    h = torch.randn(boundary.shape, dtype=F64, requires_grad=True)
    first, bias, second, shift = objective.parameters()
    assert (first.shape, second.shape) == ((3, 3), (7, 3))
    mean = boundary.channels_first(h).flatten(2).mean(2) if boundary.spatial else h
    z = F.relu(mean @ first.T + bias) @ second.T + shift
    signal = objective(Context(h_in=None, h_out=h, x=None, y=None, views=2, part=0, step=0))
    assert torch.allclose(signal.loss, losses.nt_xent(z, temperature=0.3), rtol=1e-12)
    signal.loss.backward()
    assert h.grad.abs().sum() > 0
    assert all(p.grad is not None for p in objective.parameters())


def test_ends_of_the_chain_send_and_hear_nothing():
    boundary = LAYOUTS[0]
    units = [LoCo().objective(Site(k, 4, boundary, boundary, F.cross_entropy)) for k in range(3)]
    assert [(u.overlaps, u.reads_input_gradient, u.waits, u.hears) for u in units] == [
        (True, False, False, False),
        (True, True, False, False),
        (False, True, False, False),
    ]
    last = LoCo().objective(Site(3, 4, boundary, None, F.cross_entropy))
    assert isinstance(last, TaskLoss)
    assert not last.reads_input_gradient
    first = Context(h_in=torch.zeros(1), h_out=None, x=None, y=None, views=2, part=0, step=0)
    assert units[0].messages(first) == {}
    assert units[2].hear(first) is None


def test_the_head_may_be_a_deeper_decoder():
    method = LoCo(features=6, head=heads.conv)
    assert sum(
        isinstance(m, nn.Conv2d) for m in method.objective(Site(0, 2, None, LAYOUTS[0], F.cross_entropy)).modules()
    )
    x = two_views()
    _, shown = moved(trainer_on(network(), ["0", "1"], x, method), x, Y, views=2)
    assert all(torch.isfinite(loss) for loss in shown.values())


def test_two_views_of_random_images_are_told_apart_better_after_training():
    trainer = trainer_on(network(), ["0", "1", "2"], two_views())
    trainer = mw.Trainer(
        trainer.partition, LoCo(features=6), loss=F.cross_entropy, optimizer=lambda p: torch.optim.Adam(p, lr=0.01)
    )
    shown = [
        [float(v) for v in trainer.step(two_views(8, seed=s), Y.repeat(2)[:8], views=2).values()] for s in range(40)
    ]
    for part in range(3):
        before, after = (sum(row[part] for row in rows) / 5 for rows in (shown[:5], shown[-5:]))
        assert after < 0.7 * before


@pytest.mark.parametrize("views", [1, 5])
def test_another_number_of_views_is_refused(views):
    x = two_views()
    y = torch.arange(10 // views) % 4
    with pytest.raises(MethodError, match=f"views={views} was given.*give views=2"):
        trainer_on(network(), ["0", "1"], x).step(x, y, views=views)


def test_a_batch_of_one_sample_is_refused():
    x = two_views(1)
    with pytest.raises(MethodError, match="two views of at least 2 samples"):
        trainer_on(network(), ["0", "1"], x).step(x, Y[:1], views=2)


def test_features_that_are_not_finite_stop_before_any_weight_moves():
    x = two_views()
    trainer = trainer_on(network(), ["0", "1", "2"], x)
    before = {name: t.clone() for name, t in trainer.partition.model.state_dict().items()}
    x[0, 0, 0, 0] = math.nan
    with pytest.raises(NonFiniteLossError):
        trainer.step(x, Y, views=2)
    assert all(torch.equal(t, before[name]) for name, t in trainer.partition.model.state_dict().items())
    assert all(p.grad is None for p in trainer.partition.model.parameters())


def test_a_schedule_of_one_part_after_another_is_refused():
    """The loss above must have run before a part can step."""
    x = two_views()
    with pytest.raises(ModulewiseError, match=r"sequential|feedback"):
        trainer_on(network(), ["0", "1"], x).fit([(x, Y)], epochs=1, schedule=mw.schedules.sequential)


def test_labels_that_do_not_fit_the_views_are_refused():
    x = two_views()
    with pytest.raises(DataError, match="views=2"):
        trainer_on(network(), ["0", "1"], x).step(x, Y[:4], views=2)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"features": 0}, "features=0"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(settings, says):
    with pytest.raises(MethodError, match=says):
        LoCo(**settings)


def test_projections_need_at_least_one_output():
    with pytest.raises(MethodError, match="outputs=0"):
        heads.projection(LAYOUTS[0], 0)
