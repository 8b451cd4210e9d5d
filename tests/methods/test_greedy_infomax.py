"""Greedy InfoMax: the objective against loops in every layout, its training without labels, and what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import modulewise as mw
from modulewise.errors import MethodError, NonFiniteLossError
from modulewise.methods import GreedyInfoMax
from modulewise.methods.objectives import TaskLoss
from modulewise.methods.proxy.infomax_objective import PositionPrediction, position_grid, positions
from modulewise.objective import Context, Site
from modulewise.partition.boundary import Boundary

F64 = torch.float64
SPEECH = Boundary("conv", (2, 3, 6), F64)
IMAGE = Boundary("layer", (2, 3, 5, 2), F64)
IMAGE_LAST = Boundary("stage", (2, 5, 2, 3), F64, channel_axis=-1)
PATCHES = Boundary("conv1", (2, 3, 16, 2, 3), F64)
OBLONG = Boundary("conv1", (2, 3, 10, 2, 2), F64)
TOKENS = Boundary("encoder", (2, 6, 3), F64, channel_axis=-1)
LAYOUTS = [SPEECH, IMAGE, IMAGE_LAST, PATCHES, OBLONG, TOKENS]
every_layout = pytest.mark.parametrize("boundary", LAYOUTS, ids=lambda b: f"{b.name}{b.shape}")


def method_at(boundary, **settings):
    return GreedyInfoMax(grid=(5, 2) if boundary is OBLONG else None, negatives=4, **settings)


def objective_at(boundary, **settings):
    torch.manual_seed(0)
    site = Site(0, 2, None, boundary, F.cross_entropy)
    return method_at(boundary, **settings).objective(site)


def context(h, y=None):
    return Context(h_in=None, h_out=h, x=None, y=y, views=1, part=0, step=0)


def draw(shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def at(h, boundary, n, row, column):
    """The encoding at a position, element by element."""
    if boundary in (SPEECH, TOKENS):
        assert column == 0
        return [h[n, c, row] if boundary is SPEECH else h[n, row, c] for c in range(3)]
    if boundary is IMAGE:
        return [h[n, c, row, column] for c in range(3)]
    if boundary is IMAGE_LAST:
        return [h[n, row, column, c] for c in range(3)]
    columns = 4 if boundary is PATCHES else 2
    patches = [h[n, c, columns * row + column] for c in range(3)]
    return [sum(pixel for line in patch for pixel in line) / patch.numel() for patch in patches]


SIZES = {SPEECH: (6, 1), TOKENS: (6, 1), IMAGE: (5, 2), IMAGE_LAST: (5, 2), PATCHES: (4, 4), OBLONG: (5, 2)}


def literal(objective, h, boundary, steps, skip, summary=None):
    """The mean over k of InfoNCE, by loops; negatives are drawn for every k as the objective draws them."""
    rows, columns = SIZES[boundary]
    per_step = []
    for i, k in enumerate(range(skip + 1, skip + steps + 1)):
        if k >= rows:
            break
        weight = objective.maps[i].weight
        there = [(n, r + k, s) for n in range(2) for r in range(rows - k) for s in range(columns)]
        drawn = torch.randint(len(there), (len(there), 4)).tolist()
        total = 0.0
        for (n, row, column), others in zip(there, drawn, strict=True):
            c = at(h, boundary, n, row - k, column) if summary is None else summary[n, row - k]
            expected = [sum(w * v for w, v in zip(line, c, strict=True)) for line in weight]

            def score(place, expected=expected):
                return torch.exp(sum(a * b for a, b in zip(at(h, boundary, *place), expected, strict=True)))

            true = score((n, row, column))
            total = total - torch.log(true / (true + sum(score(there[j]) for j in others)))
        per_step.append(total / len(there))
    return sum(per_step) / len(per_step)


def assert_same(objective, boundary, make_literal):
    """Value, and gradients to the part and to every parameter of the head, to 1e-10 of the largest entry."""
    first, second = (draw(boundary.shape).requires_grad_() for _ in range(2))
    parameters = list(objective.parameters())
    torch.manual_seed(5)
    loss = objective(context(first)).loss
    torch.manual_seed(5)
    expected = make_literal(second)
    assert loss.shape == ()
    got, wanted = (torch.autograd.grad(a, [h, *parameters]) for a, h in ((loss, first), (expected, second)))
    for a, b in [(loss, expected), *zip(got, wanted, strict=True)]:
        assert b.abs().max() > 0
        assert (a - b).abs().max() <= 1e-10 * b.abs().max()


@every_layout
@pytest.mark.parametrize(("steps", "skip"), [(2, 1), (5, None), (1, 0)])
def test_objective_equals_the_formula_by_loops_in_every_layout(boundary, steps, skip):
    objective = objective_at(boundary, steps=steps, skip=skip)
    published = (0 if boundary in (SPEECH, TOKENS) else 1) if skip is None else skip
    assert_same(objective, boundary, lambda h: literal(objective, h, boundary, steps, published))


@pytest.mark.parametrize("boundary", [SPEECH, TOKENS], ids=lambda b: b.name)
def test_context_is_the_recurrent_networks_last_output_on_the_sequence_so_far(boundary):
    objective = objective_at(boundary, context=4)
    assert {map.weight.shape for map in objective.maps} == {(3, 4)}

    def loops(h):
        sequence = h.movedim(1, 2) if boundary is SPEECH else h
        sofar = [objective.recurrent(sequence[:, : t + 1])[0][:, -1] for t in range(6)]
        return literal(objective, h, boundary, 5, 0, summary=torch.stack(sofar, 1))

    assert_same(objective, boundary, loops)


def test_images_have_no_recurrent_network():
    assert objective_at(IMAGE, context=4).recurrent is None


@pytest.mark.parametrize(
    ("boundary", "settings", "count"),
    [
        (IMAGE, {}, 3),
        (IMAGE, {"steps": 2}, 2),
        (IMAGE, {"skip": 0}, 4),
        (IMAGE, {"skip": 3}, 1),
        (SPEECH, {}, 5),
        (SPEECH, {"steps": 12}, 5),
        (PATCHES, {}, 2),
        (OBLONG, {}, 3),
        (TOKENS, {"skip": 1}, 4),
    ],
)
def test_as_many_predictions_are_made_as_rows_are_left_for(boundary, settings, count):
    assert len(objective_at(boundary, **settings).maps) == count


@every_layout
def test_equal_encodings_are_told_apart_by_chance_alone(boundary):
    loss = objective_at(boundary)(context(torch.ones(boundary.shape, dtype=F64))).loss
    assert loss.item() == pytest.approx(math.log(1 + 4), rel=1e-12)


def test_a_batch_of_one_image_has_its_other_positions_as_negatives():
    objective, h = objective_at(IMAGE), draw((1, 3, 5, 2)).requires_grad_()
    objective(context(h)).loss.backward()
    assert h.grad.abs().sum() > 0


def test_drawn_negatives_stay_where_they_were_drawn_when_samples_change_places():
    """The exception to invariance: the same draws name other samples. Without negatives' influence it holds."""
    objective, h = objective_at(IMAGE), draw(IMAGE.shape)
    losses = []
    for rows in (h, h.flip(0), h, h.flip(0)):
        if len(losses) == 2:
            nn.init.zeros_(objective.maps[0].weight)
            objective.maps = objective.maps[:1]
        torch.manual_seed(5)
        losses.append(objective(context(rows)).loss.item())
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    assert losses[2] == pytest.approx(losses[3], rel=1e-12)


def test_shorter_sequences_than_the_example_make_fewer_predictions_and_too_short_ones_are_refused():
    objective = objective_at(TOKENS)
    short = draw((2, 3, 3))
    torch.manual_seed(5)
    loss = objective(context(short)).loss
    objective.maps = objective.maps[:2]
    torch.manual_seed(5)
    assert torch.equal(loss, objective(context(short)).loss)
    with pytest.raises(MethodError, match="1 rows or steps"):
        objective(context(draw((2, 1, 3))))


def test_patches_are_laid_out_row_by_row():
    h = torch.arange(6.0).view(1, 1, 6, 1, 1)
    laid = positions(h, Boundary("p", (1, 1, 6, 1, 1)), grid=(2, 3))
    assert laid[0, :, :, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_last_part_minimises_the_task_loss_without_a_head():
    objective = GreedyInfoMax().objective(Site(1, 2, IMAGE, None, F.cross_entropy))
    assert isinstance(objective, TaskLoss)
    assert not list(objective.parameters())


@pytest.mark.parametrize(
    ("boundary", "says"),
    [
        (Boundary("fc1", (4, 6)), "'fc1'.*cut where positions are left"),
        (Boundary("deep", (4, 6, 2, 2, 2, 2)), "'deep'.*cut where positions are left"),
        (Boundary("conv1", (4, 6, 10, 2, 2)), r"10 patches make no grid of 3 x 3; give grid="),
        (Boundary("pooled", (4, 6, 2, 8)), "'pooled', a prediction over skip=1 of them needs 3"),
        (Boundary("frame", (4, 6, 1)), "1 rows or steps were given at boundary 'frame'"),
    ],
    ids=lambda v: getattr(v, "name", ""),
)
def test_boundaries_without_enough_positions_are_refused_when_bound(boundary, says):
    with pytest.raises(MethodError, match=says):
        GreedyInfoMax().objective(Site(0, 2, None, boundary, F.cross_entropy))


def test_grids_that_do_not_hold_the_patches_are_refused():
    with pytest.raises(MethodError, match="10 patches make no grid of 2 x 4"):
        position_grid(OBLONG, (2, 4))
    assert position_grid(OBLONG, (2, 5)) == (2, 5)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"steps": 0}, "steps=0"),
        ({"negatives": 0}, "negatives=0"),
        ({"context": 0}, "context=0"),
        ({"skip": -1}, "skip=-1"),
        ({"grid": (0, 4)}, "grid="),
        ({"grid": (4,)}, "grid="),
    ],
)
def test_hyperparameters_out_of_range_are_refused(settings, says):
    with pytest.raises(MethodError, match=says):
        GreedyInfoMax(**settings)


class Recording(nn.Module):
    """A network on sound (N, 1, T): two convolutions with strides, the mean over time, a classifier."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv1d(1, 6, 4, stride=2, padding=1), nn.ReLU())
        self.conv2 = nn.Sequential(nn.Conv1d(6, 8, 4, stride=2, padding=1), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.conv2(self.conv1(x)).mean(2))


def image_network():
    return mw.models.patches((1, 8, 8), 3, patch=4, stride=1, width=4)


NETWORKS = {
    "images": (image_network, (6, 1, 8, 8), ["conv1", "conv3"]),
    "sound": (Recording, (6, 1, 32), ["conv1", "conv2"]),
}


def trainer_on(kind, optimizer=lambda p: torch.optim.SGD(p, lr=0.05), **settings):
    make, shape, cuts = NETWORKS[kind]
    torch.manual_seed(3)
    model, x = make(), torch.randn(shape)
    trainer = mw.Trainer(
        mw.Partition(model, cuts=cuts, example=x),
        GreedyInfoMax(negatives=4, **settings),
        loss=F.cross_entropy,
        optimizer=optimizer,
    )
    return trainer, x


@pytest.mark.parametrize("kind", NETWORKS)
def test_labels_move_the_last_part_alone(kind):
    moved = []
    for y in (torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([2, 2, 0, 0, 1, 1])):
        trainer, x = trainer_on(kind)
        before = [p.detach().clone() for p in trainer.partition.model.parameters()]
        for _ in range(2):
            trainer.step(x, y)
        moved.append([[p.detach().clone() for p in trainer.partition.part(k).parameters()] for k in range(3)])
        assert not any(torch.equal(a, b) for a, b in zip(before, trainer.partition.model.parameters(), strict=True))
    first, second = moved
    for part in (0, 1):
        assert all(torch.equal(a, b) for a, b in zip(first[part], second[part], strict=True))
    assert not torch.equal(first[2][-1], second[2][-1])


@pytest.mark.parametrize("context", [None, 5])
def test_sound_is_predicted_better_than_chance_after_training(context):
    """A sine of random phase and pitch: what comes next follows from what was."""
    trainer, _ = trainer_on("sound", lambda p: torch.optim.Adam(p, lr=0.02), context=context)
    generator = torch.Generator().manual_seed(0)
    time, y = torch.arange(32.0), torch.zeros(16, dtype=torch.long)
    losses = []
    for _ in range(60):
        pitch, phase = torch.rand(2, 16, 1, 1, generator=generator)
        x = torch.sin(time * (0.3 + pitch) + 6.28 * phase)
        losses.append([float(loss) for loss in trainer.step(x, y).values()])
    chance = math.log(5)
    for part in (0, 1):
        first, last = (sum(row[part] for row in rows) / 5 for rows in (losses[:5], losses[-5:]))
        assert last < min(first, chance) - 0.1


@pytest.mark.parametrize("schedule", [mw.schedules.simultaneous, mw.schedules.sequential], ids=["together", "in turn"])
def test_parts_train_together_or_one_after_another(schedule):
    trainer, x = trainer_on("images")
    before = [p.detach().clone() for p in trainer.partition.model.parameters()]
    epochs = trainer.fit([(x, torch.arange(6) % 3)] * 2, epochs=1, schedule=schedule)
    assert epochs
    assert not any(torch.equal(a, b) for a, b in zip(before, trainer.partition.model.parameters(), strict=True))


def test_features_that_are_not_finite_stop_the_part_before_its_weights_move():
    trainer, x = trainer_on("images")
    before = [p.detach().clone() for p in trainer.partition.part(0).parameters()]
    x[0, 0, 0, 0] = math.nan
    with pytest.raises(NonFiniteLossError):
        trainer.step(x, torch.arange(6) % 3)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.partition.part(0).parameters(), strict=True))


def test_prediction_maps_are_heads_that_the_model_does_not_keep():
    trainer, _ = trainer_on("images")
    assert all(isinstance(o, PositionPrediction) for o in trainer.objectives[:2])
    assert not any("maps" in name for name in trainer.partition.model.state_dict())
