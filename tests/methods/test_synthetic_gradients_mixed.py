"""BP(lambda), true targets and what predictors converge to, in float64 and through `Trainer.step`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exact_chains import CLASSES, Others, batch, chain, close, moves, snapshot, train_alike, trainer
from torch import Tensor, nn

from modulewise.errors import MethodError
from modulewise.methods import Backprop, SyntheticGradients
from modulewise.methods.gradients.synthetic_gradients_objective import mixed_gradient


class TrueGradient(nn.Module):
    """N dL/dh through a copy of the rest of the network."""

    def __init__(self, rest: Others) -> None:
        super().__init__()
        self.rest = rest

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = h.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(self.rest(leaf), y), leaf)
        return len(h) * gradient


def perfect(**fields: Any):
    """The method with true gradients for guesses."""

    def method(model: nn.Sequential, followers: list[Others]) -> SyntheticGradients:
        def predictor(site):
            followers.append(Others(model, range(site.part + 1, site.parts)))
            return TrueGradient(followers[-1])

        return SyntheticGradients(predictor=predictor, **fields)

    return method


@pytest.mark.parametrize(
    "fields", [{}, {"mix": 0.3}, {"mix": 1.0}, {"true_targets": True}, {"mix": 0.3, "true_targets": True}], ids=str
)
def test_with_a_perfect_predictor_three_steps_equal_backpropagation(fields):
    """N = 8, so that N g / N is exact; bit for bit where nothing is mixed."""
    ours, plain, *_ = train_alike(perfect(**fields), Backprop())
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert close(a, b, relative=1e-14)
        assert "mix" in fields or torch.equal(a, b)


def wrong(site: Any) -> nn.Module:
    """A labelled predictor that is far from the gradient."""
    predictor = LabelledLinear(site.boundary.channels, CLASSES).double()
    for p in predictor.parameters():
        nn.init.normal_(p)
    return predictor


class LabelledLinear(nn.Module):
    """A h + b + C onehot(y); without labels where classes is 0."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.map = nn.Linear(features, features)
        self.label = nn.Linear(classes, features, bias=False) if classes else None

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        guess = self.map(h)
        return guess if self.label is None else guess + self.label(F.one_hot(y, CLASSES).to(h.dtype))


@pytest.mark.parametrize("true_targets", [False, True])
def test_lambda_one_equals_backpropagation_bit_for_bit_however_wrong_the_guesses(true_targets):
    method = SyntheticGradients(predictor=wrong, mix=1.0, true_targets=true_targets)
    ours, plain, *_ = train_alike(lambda model, followers: method, Backprop())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))


def recursion(model, predictors, x, y, *, mix, true_targets):
    """The literal step, sample by sample: updates of every weight and bias, and of every predictor's A and b."""
    n = len(x)
    layers = [*(part[0] for part in model[:-1]), model[-1]]
    top = len(layers) - 1
    found: dict[str, Tensor] = {}
    for sample in range(n):
        h = [x[sample]]
        for layer in layers[:-1]:
            h.append(torch.tanh(layer.weight @ h[-1] + layer.bias))
        logits = layers[-1].weight @ h[-1] + layers[-1].bias
        delta = (torch.softmax(logits, 0) - torch.eye(CLASSES, dtype=x.dtype)[y[sample]]) / n
        true = delta
        for k in range(top, -1, -1):
            if k < top:
                guess = predictors[k](h[k + 1].unsqueeze(0), y[sample : sample + 1])[0]
                target = true if true_targets else delta
                error = 2 * (guess - n * target) / n
                add(found, f"A{k}", torch.outer(error, h[k + 1]))
                add(found, f"b{k}", error)
                delta = torch.stack([mix * d + (1 - mix) * s / n for d, s in zip(delta, guess, strict=True)])
                delta, true = (1 - h[k + 1] ** 2) * delta, (1 - h[k + 1] ** 2) * true
            add(found, f"W{k}", torch.outer(delta, h[k]))
            add(found, f"c{k}", delta)
            delta, true = layers[k].weight.T @ delta, layers[k].weight.T @ true
    return found


def add(found: dict[str, Tensor], name: str, value: Tensor) -> None:
    found[name] = found.get(name, torch.zeros_like(value)) + value.detach()


@pytest.mark.parametrize("true_targets", [False, True])
@pytest.mark.parametrize("mix", [0.0, 0.3, 0.8])
def test_a_step_is_the_literal_recursion(mix, true_targets):
    """Parts follow the mixture and send on what it makes; predictors learn what arrived, or the true gradient."""
    model, (x, y) = chain((6, 7, 5, 4, CLASSES)), batch()
    ours = trainer(model, SyntheticGradients(predictor=wrong, mix=mix, true_targets=true_targets), x, rate=0.5, own=0.1)
    predictors = [objective.predictor for objective in ours.objectives[:3]]
    expected = recursion(model, predictors, x, y, mix=mix, true_targets=true_targets)
    before = snapshot(model), [snapshot(p) for p in predictors]
    ours.step(x, y)
    moved = moves(model, before[0])
    for k, name in enumerate(["0.0", "1.0", "2.0", "3"]):
        assert close(moved[f"{name}.weight"], -0.5 * expected[f"W{k}"])
        assert close(moved[f"{name}.bias"], -0.5 * expected[f"c{k}"])
    for k in range(3):
        own = moves(predictors[k], before[1][k])
        assert close(own["map.weight"], -0.1 * expected[f"A{k}"])
        assert close(own["map.bias"], -0.1 * expected[f"b{k}"])


def test_true_and_bootstrapped_targets_are_the_same_below_the_last_part_and_differ_further_down():
    """What part 1 hears is made by the task loss alone; what part 0 hears went through part 1's guess, or did not."""
    found = []
    for true_targets in (False, True):
        model, (x, y) = chain(), batch()
        ours = trainer(model, SyntheticGradients(predictor=wrong, mix=0.3, true_targets=true_targets), x)
        ours.step(x, y)
        found.append([objective.predictor.map.weight.detach().clone() for objective in ours.objectives[:2]])
    assert torch.equal(found[0][1], found[1][1])
    assert not torch.allclose(found[0][0], found[1][0])


TARGETS = torch.tensor([[1.0, -1.0, 0.5], [0.0, 2.0, 1.0], [-1.0, 0.5, 0.0]], dtype=torch.float64)


def squared(output: Tensor, y: Tensor) -> Tensor:
    return (output - TARGETS[y]).square().sum(1).mean()


@pytest.mark.parametrize("labelled", [False, True])
def test_a_linear_predictor_converges_to_the_true_gradient_with_labels_and_to_least_squares_without(labelled):
    """A frozen linear network and squared error: 2 W^T (W h + b - t_y) is linear in (h, onehot y), not in h alone."""
    model = chain((4, 3, CLASSES), linear=True)
    x, y = batch(30, features=4)
    own = LabelledLinear(3, CLASSES if labelled else 0).double()
    method = SyntheticGradients(predictor=lambda site: own, labelled=labelled)
    ours = trainer(model, method, x, rate=0.0, own=0.2, momentum=0.9, loss=squared)
    for _ in range(500):
        ours.step(x, y)
    h = model[0](x).detach()
    true = 2 * (model[1](h) - TARGETS[y]).detach() @ model[1].weight.detach()
    rows = torch.cat([h, torch.ones(30, 1, dtype=h.dtype)], 1)
    best = rows @ torch.linalg.lstsq(rows, true).solution
    assert (true - best).norm() > 0.1 * true.norm()
    assert close(own(h, y).detach(), true if labelled else best, relative=1e-8)


def test_where_parts_wait_a_frozen_part_still_passes_the_true_gradient_down():
    """Part 1 has nothing to learn; the true gradient goes through it all the same."""
    model, (x, y) = chain(), batch()
    for p in model[1].parameters():
        p.requires_grad_(False)
    ours = trainer(model, SyntheticGradients(predictor=wrong, true_targets=True), x, own=0.1)
    predictors = [objective.predictor for objective in ours.objectives[:2]]
    expected = recursion(model, predictors, x, y, mix=0.0, true_targets=True)
    before = snapshot(predictors[0])
    ours.step(x, y)
    assert close(moves(predictors[0], before)["map.weight"], -0.1 * expected["A0"])


def test_the_mixture_is_its_formula_and_keeps_nothing_of_the_guess_at_one():
    gradient, guess = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    assert torch.equal(mixed_gradient(gradient, guess, mix=1.0), gradient)
    assert torch.equal(mixed_gradient(gradient, guess, mix=0.0), guess / 4)


@pytest.mark.parametrize("mix", [-0.1, 1.1, float("nan")])
def test_a_mixture_outside_zero_and_one_is_refused(mix):
    with pytest.raises(MethodError, match="mix="):
        SyntheticGradients(classes=3, mix=mix)
