"""Synthetic gradients: a perfect guess is backpropagation, and a learned one comes from the right messages."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hand_driving import clear, drive, equal, gradients, objectives_of, sites
from torch import Tensor, nn

from modulewise.errors import MethodError
from modulewise.methods.gradients import SyntheticGradients
from modulewise.methods.gradients.gradient_predictors import GradientPredictor, label_weights
from modulewise.methods.gradients.synthetic_gradients_objective import predictor_loss
from modulewise.methods.reference import Backprop
from modulewise.objective import Site
from modulewise.partition.boundary import Boundary


def mlp_parts() -> list[nn.Module]:
    torch.manual_seed(1)
    return [
        nn.Sequential(nn.Linear(6, 7), nn.Tanh()),
        nn.Sequential(nn.Linear(7, 5), nn.Tanh()),
        nn.Linear(5, 3),
    ]


def linear_parts() -> list[nn.Module]:
    torch.manual_seed(1)
    return [nn.Linear(6, 7).double(), nn.Linear(7, 5).double(), nn.Linear(5, 3).double()]


def batch(n: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(n, 6, dtype=dtype), torch.randint(0, 3, (n,))


class Known(nn.Module):
    """A predictor that is told the answer."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = nn.Parameter(answer.clone())

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        return self.answer


def test_a_perfect_predictor_gives_backpropagation_bit_for_bit():
    """N = 8, so that N g / N is exact; the predictor's loss is zero, it has nothing to learn."""
    parts, (x, y) = mlp_parts(), batch()
    at = sites(parts, x, F.cross_entropy)
    truth = drive(parts, objectives_of(Backprop(), at), x, y)
    expected = gradients(parts)
    clear(parts)
    answers = {k: 8 * truth.messages[k + 1][k] for k in range(2)}
    method = SyntheticGradients(labelled=False, predictor=lambda site: Known(answers[site.part]))
    done = drive(parts, objectives_of(method, at), x, y)
    assert equal(gradients(parts), expected)
    assert [float(signal.shown()) for signal in done.heard.values()] == [0.0, 0.0]


def test_at_first_only_the_last_part_learns():
    """The paper's zero initialisation: the first guess is zero, and so is every update below the last part."""
    parts, (x, y) = mlp_parts(), batch()
    done = drive(parts, objectives_of(SyntheticGradients(classes=3, width=4), sites(parts, x, F.cross_entropy)), x, y)
    assert not any(g.any() for g in gradients(parts[:2]))
    assert all(g.any() for g in gradients(parts[2:]))
    assert done.signals[0].shown() == 0


def test_messages_are_the_chain_rule_applied_to_the_guess():
    """Bootstrapping: part 1 sends guess W_1 down, not the true gradient."""
    parts, (x, y) = linear_parts(), batch(dtype=torch.float64)
    guesses = {0: torch.randn(8, 7, dtype=torch.float64), 1: torch.randn(8, 5, dtype=torch.float64)}
    method = SyntheticGradients(labelled=False, predictor=lambda site: Known(guesses[site.part]))
    done = drive(parts, objectives_of(method, sites(parts, x, F.cross_entropy)), x, y)
    assert torch.allclose(done.messages[1][0], guesses[1] / 8 @ parts[1].weight, rtol=1e-12)
    assert torch.allclose(parts[0].weight.grad, (guesses[0] / 8).T @ x, rtol=1e-12)
    loss = ((guesses[0] - 8 * done.messages[1][0]) ** 2).sum() / 8
    assert torch.allclose(done.heard[0].shown(), loss, rtol=1e-12)


def test_hearing_updates_the_predictor_alone():
    parts, (x, y) = mlp_parts(), batch()
    objectives = objectives_of(SyntheticGradients(classes=3, width=4), sites(parts, x, F.cross_entropy))
    for objective in objectives[:2]:
        nn.init.normal_(objective.predictor.last.weight)
    done = drive(parts, objectives, x, y)
    assert sorted(done.heard) == [0, 1]
    assert all(p.grad is not None and p.grad.any() for o in objectives[:2] for p in o.parameters())
    assert not list(objectives[2].parameters())
    found = gradients(parts)
    clear(parts)
    for k in range(2):
        h_out = parts[k](done.contexts[k].h_in.detach())
        h_out.backward(objectives[k].predictor(h_out.detach(), y).detach() / 8)
    assert equal(gradients(parts[:2]), found[:4])


def test_predictor_loss_is_the_loop():
    torch.manual_seed(0)
    guess, gradient = torch.randn(3, 2, 2, dtype=torch.float64), torch.randn(3, 2, 2, dtype=torch.float64)
    total = 0.0
    for n in range(3):
        for a, b in zip(guess[n].flatten().tolist(), gradient[n].flatten().tolist(), strict=True):
            total += (a - 3 * b) ** 2 / 3
    assert predictor_loss(guess, gradient).item() == pytest.approx(total, rel=1e-12)


def test_a_predictor_learns_a_gradient():
    """A softmax classifier's gradient (p - onehot) V is a function of (h, y); Adam fits it on one batch."""
    torch.manual_seed(0)
    h, y, v = torch.randn(32, 4), torch.randint(0, 3, (32,)), torch.randn(3, 4)
    leaf = h.clone().requires_grad_()
    F.cross_entropy(leaf @ v.T, y).backward()
    predictor = GradientPredictor(Boundary("cut", (32, 4)), classes=3, width=32)
    optimizer = torch.optim.Adam(predictor.parameters(), lr=1e-2)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = predictor_loss(predictor(h, y), leaf.grad)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]


@pytest.mark.parametrize(
    ("shape", "axis", "labels"),
    [
        ((4, 6), 1, ()),
        ((4, 5, 6), -1, ()),
        ((4, 5, 6), -1, (5,)),
        ((4, 6, 5), 1, ()),
        ((4, 6, 8, 9), 1, ()),
        ((4, 6, 8, 9), 1, (8, 9)),
        ((4, 6, 8, 9), 1, (16, 18)),
        ((4, 8, 9, 6), -1, ()),
        ((4, 8, 9, 6), -1, (8, 9)),
    ],
)
def test_default_predictors_fit_every_layout_and_see_labels(shape, axis, labels):
    """Zero at first; once the last layer is not, the guess has h's shape and moves with the labels."""
    torch.manual_seed(0)
    predictor = GradientPredictor(Boundary("cut", shape, torch.float32, axis), classes=3, width=4)
    for n in (4, 2):
        h, y = torch.randn(n, *shape[1:]), torch.zeros(n, *labels, dtype=torch.long)
        nn.init.zeros_(predictor.last.weight)
        assert torch.equal(predictor(h, y), torch.zeros_like(h))
        nn.init.normal_(predictor.last.weight)
        guess = predictor(h, y)
        assert guess.shape == h.shape
        assert not torch.allclose(guess, predictor(h, y + 1))


def test_labels_reach_their_own_token():
    predictor = GradientPredictor(Boundary("cut", (1, 3, 4), torch.float32, -1), classes=2, width=4)
    nn.init.normal_(predictor.last.weight)
    h, y = torch.randn(1, 3, 4), torch.tensor([[0, 0, 0]])
    changed = predictor(h, torch.tensor([[0, 1, 0]])) - predictor(h, y)
    assert changed[0, 1].any()
    assert not changed[0, [0, 2]].any()


def test_the_perceptron_takes_one_sample_and_images_have_three_convolutions():
    assert GradientPredictor(Boundary("cut", (4, 6)), classes=None, width=4)(torch.ones(1, 6), None).shape == (1, 6)
    images = GradientPredictor(Boundary("cut", (4, 6, 8, 8)), classes=None, width=4)
    convolutions = [m.kernel_size for m in images.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions == [(5, 5)] * 3


def test_default_widths_are_the_papers():
    def width(boundary: Boundary) -> int:
        site = Site(0, 2, None, boundary, F.cross_entropy)
        return SyntheticGradients(classes=3).objective(site).predictor.first.weight.shape[0]

    assert width(Boundary("cut", (4, 6))) == 1024
    assert width(Boundary("cut", (4, 6, 8, 8))) == 128


def test_label_weights_average_over_positions_of_another_grid_and_skip_ignored_labels():
    y = torch.tensor([[0, 1, 1, 1], [0, 0, -100, -100]])
    expected = torch.tensor([[0.25, 0.75], [0.5, 0.0]])
    assert torch.equal(label_weights(y, classes=2, spatial=(2, 2)), expected)
    assert torch.equal(label_weights(y, classes=2, spatial=(4,))[1, 2], torch.zeros(2))


@pytest.mark.parametrize("y", [torch.zeros(4), ("a", "b")])
def test_labels_that_are_not_integers_are_refused(y):
    with pytest.raises(MethodError, match="give integers"):
        label_weights(y, classes=2, spatial=())


def test_labelled_guesses_need_a_number_of_classes():
    with pytest.raises(MethodError, match="labelled=True was given with classes=None"):
        SyntheticGradients()
    with pytest.raises(MethodError, match="width=0"):
        SyntheticGradients(classes=2, width=0)
    SyntheticGradients(labelled=False)
