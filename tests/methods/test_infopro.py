import pytest
import torch
import torch.nn.functional as F
from torch import nn

import modulewise as mw
from modulewise import losses
from modulewise.data import Normalize
from modulewise.errors import DataError, MethodError, NonFiniteLossError
from modulewise.heads.condensing import condensing
from modulewise.method import Reach
from modulewise.methods.proxy.infopro import InfoPro
from modulewise.objective import Context, Site
from modulewise.partition.boundary import Boundary

IMAGE = Boundary("layer1", (4, 6, 8, 8), torch.float64)
IMAGE_LAST = Boundary("stage1", (4, 8, 8, 6), torch.float64, -1)
TOKENS = Boundary("encoder", (4, 5, 6), torch.float64, -1)
VECTOR = Boundary("fc1", (4, 6), torch.float64)
BELOW = Boundary("stem", (4, 3, 16, 16), torch.float64)
BELOW_LAST = Boundary("stem", (4, 16, 16, 3), torch.float64, -1)
Y = torch.tensor([0, 1, 0, 2])
NORMALIZE = Normalize(mean=(0.5, 0.25), std=(0.25, 0.5))
every_layout = pytest.mark.parametrize("boundary", [IMAGE, IMAGE_LAST, TOKENS, VECTOR], ids=lambda b: b.name)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pixels():
    return torch.rand(4, 2, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def site(boundary=IMAGE, *, part=0, parts=3, below=None, x=None):
    x = pixels() if x is None else x
    return Site(part, parts, below, None if part == parts - 1 else boundary, losses.classification, x=x)


def context(h, x, *, h_in=None, y=Y, views=1, part=0):
    return Context(h_in=h_in, h_out=h, x=x, y=y, views=views, part=part, step=0)


def literal_cross_entropy(logits, image):
    total = 0.0
    for v, p in zip(logits.flatten().tolist(), image.flatten().tolist(), strict=True):
        share = torch.sigmoid(torch.tensor(v, dtype=torch.float64))
        total = total - (p * share.log() + (1 - p) * (1 - share).log()).item()
    return total / logits.numel()


def literal_contrast(z, y, temperature):
    rows = [row / row.norm() for row in z]
    total = 0.0
    for i in range(len(rows)):
        positives = [p for p in range(len(rows)) if p != i and y[p] == y[i]]
        others = sum(torch.exp(rows[i] @ rows[a] / temperature) for a in range(len(rows)) if a != i)
        total -= sum(torch.log(torch.exp(rows[i] @ rows[p] / temperature) / others) for p in positives) / max(
            1, len(positives)
        )
    return total / len(rows)


@every_layout
def test_the_objective_is_the_weighted_cross_entropy_of_pixels_plus_the_contrast(boundary):
    objective = InfoPro(3, temperature=0.5, normalize=NORMALIZE).objective(site(boundary, parts=2))
    image, h = pixels(), draw(*boundary.shape).requires_grad_()
    loss = objective(context(h, NORMALIZE(image))).loss
    z, decoded = objective.head(h), objective.decoder(h)
    expected = 5.0 * literal_cross_entropy(decoded, image) + 1.0 * literal_contrast(z, Y, 0.5)
    assert decoded.shape == image.shape
    assert z.shape == (4, 128)
    assert abs(loss - expected) <= 1e-10 * abs(expected)


@every_layout
def test_gradients_reach_the_part_and_every_parameter_of_both_heads(boundary):
    objective = InfoPro(3, normalize=NORMALIZE).objective(site(boundary, parts=2))
    h = draw(*boundary.shape).requires_grad_()
    objective(context(h, NORMALIZE(pixels()))).loss.backward()
    assert h.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())


def test_the_gradient_is_the_weighted_sum_of_the_gradients_of_the_terms():
    objective = InfoPro(3, reconstruction=2.0, information=3.0).objective(site(parts=2))
    x, h = draw(4, 2, 16, 16, seed=3), draw(*IMAGE.shape).requires_grad_()
    (whole,) = torch.autograd.grad(objective(context(h, x)).loss, h)
    (first,) = torch.autograd.grad((objective.decoder(h) - x).square().mean() / 8, h)
    (second,) = torch.autograd.grad(losses.supervised_contrastive(objective.head(h), Y), h)
    assert (whole - 2 * first - 3 * second).abs().max() <= 1e-10 * whole.abs().max()


def test_without_normalisation_any_input_is_reconstructed_by_an_eighth_of_the_squared_error():
    objective = InfoPro(3, information=0.0, reconstruction=1.0).objective(site(parts=2))
    x, h = 100 * draw(4, 2, 16, 16), draw(*IMAGE.shape)
    torch.testing.assert_close(objective(context(h, x)).loss, F.mse_loss(objective.decoder(h), x) / 8)


def test_a_classifier_in_place_of_contrast_minimises_the_criterion_on_as_many_logits_as_classes():
    objective = InfoPro(3, contrast=False, reconstruction=0.0).objective(site(parts=2))
    h = draw(*IMAGE.shape)
    assert objective.head(h).shape == (4, 3)
    torch.testing.assert_close(objective(context(h, None)).loss, F.cross_entropy(objective.head(h), Y))


@pytest.mark.parametrize("below", [BELOW, BELOW_LAST], ids=["channels first", "channels last"])
def test_features_reconstruct_the_own_input_channels_first(below):
    objective = InfoPro(3, features=True, information=0.0).objective(site(part=1, parts=4, below=below))
    h, h_in = draw(*IMAGE.shape), draw(*below.shape, seed=5)
    decoded = objective.decoder(h)
    assert decoded.shape == (4, 3, 16, 16)
    # Half-way from 5 to 0; information goes from 0 to 2, so that its term is taken off.
    term = objective(context(h, None, h_in=h_in, part=1)).loss - losses.supervised_contrastive(objective.head(h), Y)
    torch.testing.assert_close(term, 2.5 / 8 * F.mse_loss(decoded, below.channels_first(h_in)))


def test_features_of_the_first_part_are_the_image():
    objective = InfoPro(3, features=True, normalize=NORMALIZE, information=0.0).objective(site(parts=2))
    image, h = pixels(), draw(*IMAGE.shape)
    loss = objective(context(h, NORMALIZE(image))).loss
    torch.testing.assert_close(loss, 5 * losses.pixel_cross_entropy(objective.decoder(h), image))


def test_the_squared_error_is_as_steep_as_the_cross_entropy_is_at_most():
    def steepness(normalize, x):
        objective = InfoPro(3, normalize=normalize, information=0.0, reconstruction=1.0).objective(site(parts=2))
        objective.decoder = nn.Identity()
        found = torch.autograd.functional.hessian(lambda h: objective(context(h, x)).loss, torch.zeros_like(x))
        return found.reshape(x.numel(), -1).diagonal().mean() * x.numel()

    x = pixels()[:1, :, :3, :3]
    assert abs(steepness(None, x) - 0.25) < 1e-12
    assert abs(steepness(NORMALIZE, NORMALIZE(x)) - 0.25) < 1e-12


def test_weights_go_linearly_from_the_first_part_to_the_one_before_the_last():
    method = InfoPro(10, reconstruction=6.0, reconstruction_last=1.0, information=0.0, information_last=2.0)
    assert [method.weights_at(part, parts=4) for part in range(3)] == [(6.0, 0.0), (3.5, 1.0), (1.0, 2.0)]
    assert method.weights_at(0, parts=2) == (6.0, 0.0)
    assert method.weights_at(1, parts=3) == (1.0, 2.0)


def test_a_term_of_weight_zero_has_no_modules_and_needs_no_input():
    method = InfoPro(10, reconstruction=1.0, information=0.0, reconstruction_last=0.0, information_last=1.0)
    first, last = (method.objective(site(part=part, parts=3, x=pixels())) for part in (0, 1))
    assert first.head is None
    assert last.decoder is None
    InfoPro(10, reconstruction=0.0, reconstruction_last=0.0).objective(site(x=torch.zeros(4, 7, dtype=torch.long)))


def test_views_of_a_sample_share_its_label_and_attract_each_other():
    objective = InfoPro(3, reconstruction=0.0).objective(site(parts=2))
    h = draw(8, *IMAGE.shape[1:])
    loss = objective(context(h, None, views=2)).loss
    assert torch.equal(loss, losses.supervised_contrastive(objective.head(h), torch.cat([Y, Y])))


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.zeros(4, 7, dtype=torch.long), "int64"),
        (torch.zeros(4), r"\(4,\)"),
        ((torch.zeros(4, 2), torch.zeros(4, 2)), "tuple"),
        ({"ids": torch.zeros(4, 2)}, "dict"),
    ],
    ids=["token ids", "no elements", "two inputs", "a mapping"],
)
def test_inputs_that_cannot_be_reconstructed_are_refused_when_bound(x, says):
    with pytest.raises(MethodError, match=says):
        InfoPro(3).objective(site(x=x))


def test_token_ids_are_refused_when_the_trainer_is_made():
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8), nn.Flatten(), nn.Linear(24, 3))
    partition = mw.Partition(model, cuts=["1"], example=torch.zeros(4, 3, dtype=torch.long))
    with pytest.raises(MethodError, match="floating-point"):
        mw.Trainer(partition, InfoPro(3), loss=F.cross_entropy, optimizer=torch.optim.SGD)


def test_an_input_of_another_size_than_the_example_is_refused():
    objective = InfoPro(3).objective(site())
    with pytest.raises(MethodError, match="same shape"):
        objective(context(draw(*IMAGE.shape), draw(4, 2, 20, 20)))


def test_images_that_were_not_normalised_as_stated_are_refused():
    objective = InfoPro(3, normalize=NORMALIZE).objective(site())
    with pytest.raises(MethodError, match=r"\[0, 1\]"):
        objective(context(draw(*IMAGE.shape), 255 * pixels()))


def test_a_normalisation_of_other_channels_is_refused():
    objective = InfoPro(3, normalize=Normalize(mean=(0.5,), std=(0.5,))).objective(site())
    with pytest.raises(DataError, match="1 channels"):
        objective(context(draw(*IMAGE.shape), pixels()))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"classes": 0}, "classes=0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"reconstruction": -1.0}, "reconstruction=-1.0"),
        ({"reconstruction": float("nan")}, "reconstruction=nan"),
        ({"reconstruction": 0.0, "information": 0.0}, "not both 0"),
        ({"information_last": 0.0}, "information_last=0.0"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(settings, says):
    with pytest.raises(MethodError, match=says):
        InfoPro(**{"classes": 3, **settings})


def trainer_of(method, **settings):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 3),
    )
    partition = mw.Partition(model, cuts=["1", "3"], example=torch.randn(4, 2, 6, 6))
    made = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "loss": F.cross_entropy, **settings}
    return mw.Trainer(partition, method, **made)


def test_a_step_of_the_trainer_is_gradient_descent_on_the_objective():
    trainer = trainer_of(InfoPro(3, normalize=NORMALIZE))
    assert trainer.objectives[0].decoder(torch.zeros(4, 4, 6, 6)).shape == (4, 2, 6, 6)
    x = NORMALIZE(torch.rand(4, 2, 6, 6))
    weight = trainer.partition.model[0].weight
    before = weight.detach().clone()
    h = F.relu(F.conv2d(x, weight, trainer.partition.model[0].bias, padding=1))
    (gradient,) = torch.autograd.grad(trainer.objectives[0](context(h, x)).loss, weight)
    trainer.step(x, Y)
    torch.testing.assert_close(weight.detach(), before - 0.1 * gradient)


def test_locality_is_strict_as_declared():
    report = mw.checks.locality(trainer_of(InfoPro(3)), torch.randn(4, 2, 6, 6), Y)
    assert report.ok
    assert report.observed is Reach.STRICT


def test_a_loss_that_is_not_a_number_and_a_class_out_of_range_stop_the_step():
    trainer = trainer_of(InfoPro(3))
    with pytest.raises(NonFiniteLossError):
        trainer.step(torch.full((4, 2, 6, 6), torch.nan), Y)
    with pytest.raises(DataError, match="classes=3"):
        trainer.step(torch.randn(4, 2, 6, 6), Y + 1)


@pytest.mark.parametrize("y", [torch.zeros(4, dtype=torch.long), torch.tensor([0])], ids=["one class", "one sample"])
def test_batches_without_contrast_still_reconstruct(y):
    trainer = trainer_of(InfoPro(3))
    losses_of_parts = trainer.step(torch.randn(len(y), 2, 6, 6), y)
    assert all(torch.isfinite(loss) for loss in losses_of_parts.values())


def test_parts_learn_one_after_another_as_well():
    trainer = trainer_of(InfoPro(3))
    loader = [(torch.randn(4, 2, 6, 6), Y)]
    before = [p.detach().clone() for p in trainer.partition.model.parameters()]
    trainer.fit(loader, epochs=1, schedule=mw.schedules.sequential)
    assert not any(torch.equal(a, b) for a, b in zip(before, trainer.partition.model.parameters(), strict=True))


@pytest.mark.parametrize(("size", "channels", "stride"), [(32, 32, 2), (16, 64, 2), (8, 64, 1)])
def test_the_head_has_the_channels_and_strides_of_the_authors_resnet(size, channels, stride):
    boundary = Boundary("stage", (2, {32: 16, 16: 32, 8: 64}[size], size, size))
    convolution = next(m for m in condensing(boundary, 128).modules() if isinstance(m, nn.Conv2d))
    assert (convolution.out_channels, convolution.stride) == (channels, (stride, stride))


@pytest.mark.parametrize("shape", [(4, 6, 20), (4, 6, 9, 12), (4, 6, 1, 1), (4, 3, 9, 9, 9)], ids=str)
def test_the_head_takes_grids_of_any_size_and_number_of_axes(shape):
    assert condensing(Boundary("b", shape), 7)(torch.randn(shape)).shape == (4, 7)
