"""Synthetic inputs: perfect guesses are synthetic gradients, others the literal recursion, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from exact_chains import CLASSES, Others, batch, chain, close, moves, snapshot, train_alike, trainer
from torch import Tensor, nn

import modulewise as mw
from modulewise.errors import MethodError
from modulewise.methods import SyntheticGradients, SyntheticInputs
from modulewise.methods.gradients.input_predictors import InputPredictor
from modulewise.partition.boundary import Boundary


def random_gradients(site):
    """A labelled default predictor whose last layer is not zero."""
    predictor = mw.methods.gradients.gradient_predictors.GradientPredictor(site.boundary, classes=CLASSES, width=4)
    nn.init.normal_(predictor.last.weight)
    return predictor


def test_perfect_input_predictors_give_synthetic_gradients_bit_for_bit():
    """Copies of the parts below guess every input; three steps, parts and gradient predictors."""

    def method(model: nn.Sequential, followers: list[Others]) -> SyntheticInputs:
        def inputs(site):
            followers.append(Others(model, range(site.part)))
            return followers[-1]

        return SyntheticInputs(predictor=random_gradients, input_predictor=inputs)

    plain_method = SyntheticGradients(predictor=random_gradients)
    ours, plain, first, second = train_alike(method, plain_method, own=0.1)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))
    for k in range(2):
        pairs = zip(
            first.objectives[k].predictor.parameters(), second.objectives[k].predictor.parameters(), strict=True
        )
        assert all(torch.equal(a, b) for a, b in pairs)


class LinearInput(nn.Module):
    def __init__(self, features: int, boundary: Boundary) -> None:
        super().__init__()
        self.map = nn.Linear(features, boundary.features, bias=False).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x)


class LinearGradient(nn.Module):
    def __init__(self, boundary: Boundary) -> None:
        super().__init__()
        self.map = nn.Linear(boundary.features, boundary.features, bias=False).double()

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        return self.map(h)


LINEAR = SyntheticInputs(
    predictor=lambda site: LinearGradient(site.boundary), input_predictor=lambda site: LinearInput(6, site.input)
)


def test_a_step_is_the_literal_recursion():
    """Sample by sample: parts on guessed inputs with guessed gradients, predictors on what is true."""
    model, (x, y) = chain(), batch()
    ours = trainer(model, LINEAR, x, rate=0.5, own=0.1)
    layers = [copy.deepcopy(layer) for layer in (model[0][0], model[1][0], model[2])]
    s = [ours.objectives[k].predictor.map.weight.detach().clone() for k in range(2)]
    p = {k: ours.objectives[k].inputs.map.weight.detach().clone() for k in (1, 2)}
    found = {name: torch.zeros_like(t) for name, t in zip(["W0", "W1", "W2"], [m.weight for m in layers], strict=True)}
    found |= {f"s{k}": torch.zeros_like(s[k]) for k in range(2)} | {f"p{k}": torch.zeros_like(p[k]) for k in p}
    n = len(x)
    with torch.no_grad():
        for sample in range(n):
            v = x[sample]
            h0 = torch.tanh(layers[0].weight @ v + layers[0].bias)
            h1 = torch.tanh(layers[1].weight @ h0 + layers[1].bias)
            found["W0"] += torch.outer((1 - h0**2) * (s[0] @ h0) / n, v)
            guessed = torch.tanh(layers[1].weight @ (p[1] @ v) + layers[1].bias)
            back1 = (1 - guessed**2) * (s[1] @ guessed) / n
            found["W1"] += torch.outer(back1, p[1] @ v)
            logits = layers[2].weight @ (p[2] @ v) + layers[2].bias
            back2 = (torch.softmax(logits, 0) - torch.eye(CLASSES, dtype=x.dtype)[y[sample]]) / n
            found["W2"] += torch.outer(back2, p[2] @ v)
            found["s0"] += torch.outer(2 * (s[0] @ h0 - n * layers[1].weight.T @ back1) / n, h0)
            found["s1"] += torch.outer(2 * (s[1] @ h1 - n * layers[2].weight.T @ back2) / n, h1)
            found["p1"] += torch.outer(2 * (p[1] @ v - h0) / n, v)
            found["p2"] += torch.outer(2 * (p[2] @ v - h1) / n, v)
    before = snapshot(model)
    ours.step(x, y)
    moved = moves(model, before)
    for k, name in enumerate(["0.0", "1.0", "2"]):
        assert close(moved[f"{name}.weight"], -0.5 * found[f"W{k}"])
    for k in range(2):
        assert close(ours.objectives[k].predictor.map.weight.detach() - s[k], -0.1 * found[f"s{k}"])
    for k, map in p.items():
        assert close(ours.objectives[k].inputs.map.weight.detach() - map, -0.1 * found[f"p{k}"])


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_a_part_s_update_depends_on_no_other_part(changed):
    """Unlocked both ways: whatever the weights of another part are, the part moves the same way in this step."""
    moved = []
    for noise in (0.0, 0.5):
        model, (x, y) = chain(), batch()
        ours = trainer(model, LINEAR, x)
        with torch.no_grad():
            for p in model[changed].parameters():
                p += noise * torch.linspace(-1, 1, p.numel(), dtype=p.dtype).reshape(p.shape)
        before = snapshot(model)
        ours.step(x, y)
        moved.append(moves(model, before))
    own = str(changed)
    for name in moved[0]:
        same = torch.allclose(moved[0][name], moved[1][name], rtol=1e-9, atol=1e-15)
        assert same != name.startswith(own), name


def test_in_half_precision_scaled_gradients_are_unscaled_before_they_are_sent():
    """The gradient predictor of part 0 learns from the same message, to half precision."""
    found = []
    for precision in (torch.float32, torch.float16):
        model, (x, y) = chain().float(), batch()
        method = SyntheticInputs(
            predictor=random_gradients, input_predictor=lambda site: LinearInput(6, site.input).float()
        )
        partition = mw.Partition(model, cuts=["0", "1"], example=x.float())
        ours = mw.Trainer(
            partition,
            method,
            loss=F.cross_entropy,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
            precision=precision,
        )
        for objective in ours.objectives[:2]:
            objective.predictor.last.weight.data *= 0.1
        before = snapshot(ours.objectives[0].predictor)
        ours.step(x.float(), y)
        found.append(moves(ours.objectives[0].predictor, before)["last.weight"])
    assert close(found[1], found[0], relative=0.02)


def test_the_last_part_s_shown_loss_is_the_task_loss_on_the_guessed_input():
    model, (x, y) = chain(), batch()
    ours = trainer(model, LINEAR, x)
    with torch.no_grad():
        expected = F.cross_entropy(model[2](ours.objectives[2].inputs(x)), y)
    assert torch.equal(ours.step(x, y)[2], expected)


@pytest.mark.parametrize(
    ("x", "shape", "axis"),
    [
        ((4, 3, 8, 8), (4, 6, 8, 8), 1),
        ((4, 3, 8, 8), (4, 6, 4, 4), 1),
        ((4, 3, 8, 8), (4, 4, 4, 6), -1),
        ((4, 3, 8, 8), (4, 6), 1),
        ((4, 5), (4, 7), 1),
        ((4, 5), (4, 3, 7), -1),
    ],
)
def test_default_input_predictors_fit_every_layout(x, shape, axis):
    torch.manual_seed(0)
    predictor = InputPredictor(torch.zeros(x), Boundary("cut", shape, torch.float64, axis), width=4)
    guess = predictor(torch.randn(2, *x[1:]))
    assert guess.shape == (2, *shape[1:])
    assert guess.dtype == torch.float64
    assert guess.detach().std() > 0


@pytest.mark.parametrize("x", [torch.zeros(2, 3, dtype=torch.long), {"x": torch.zeros(2, 3)}])
def test_the_default_input_predictor_refuses_inputs_it_cannot_read_when_the_trainer_is_made(x):
    with pytest.raises(MethodError, match="give input_predictor="):
        InputPredictor(x, Boundary("cut", (2, 3)), width=4)


def test_bad_hyper_parameters_are_refused():
    with pytest.raises(MethodError, match="labelled=True was given with classes=None"):
        SyntheticInputs()
    with pytest.raises(MethodError, match="width=0"):
        SyntheticInputs(classes=3, width=0)
