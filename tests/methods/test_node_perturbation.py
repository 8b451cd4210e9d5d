"""Node perturbation: unbiased estimates, exact with enumerated signs; feedback that is fitted, and what it sends."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exact_chains import CLASSES, batch, chain, close, moves, snapshot, trainer
from torch import Tensor, nn

import modulewise as mw
from modulewise.checks import recurrent_problem
from modulewise.errors import MethodError
from modulewise.methods import Backprop, NodePerturbation
from modulewise.methods.gradients.node_perturbation_objective import fed_back, perturbation_estimate

LINEAR = torch.tensor([[1.0, -2.0, 0.5], [0.3, 1.0, -1.0], [2.0, 0.1, 0.7]], dtype=torch.float64)


def linear_loss(output: Tensor, y: Tensor) -> Tensor:
    return (output * LINEAR[y]).sum(1).mean()


def squared(output: Tensor, y: Tensor) -> Tensor:
    return (output - LINEAR[y]).square().sum(1).mean()


def signs(h: Tensor) -> Tensor:
    """Every pattern of +-1, one a row, as often as it goes."""
    patterns = torch.tensor(list(product((-1.0, 1.0), repeat=h.shape[1])), dtype=h.dtype)
    return patterns.repeat(len(h) // len(patterns), 1)


def repeated(features: int, times: int, samples: int = 1) -> tuple[Tensor, Tensor]:
    """Samples, each so many times in a row."""
    x, y = batch(samples, features=features)
    return x.repeat_interleave(times, 0), y.repeat_interleave(times)


def estimates(ours: mw.Trainer) -> dict[int, Tensor]:
    """Where the estimate of every part that perturbs its input is put during the next step."""
    seen: dict[int, Tensor] = {}
    for part, objective in enumerate(ours.objectives[1:], 1):

        def rehearsed(context: Any, part: int = part, inner: Any = objective.rehearsed) -> Any:
            messages = inner(context)
            seen[part] = messages[part]
            return messages

        objective.rehearsed = rehearsed
    return seen


def gradients(model: nn.Sequential, x: Tensor, y: Tensor, loss: Any) -> dict[int, Tensor]:
    """N dL/d(input) of every part above the first, by autograd."""
    entered = {}
    h = model[0](x)
    for part in range(1, len(model)):
        entered[part] = h
        h = model[part](h)
    found = torch.autograd.grad(loss(h, y), list(entered.values()))
    return {part: len(x) * g for part, g in zip(entered, found, strict=True)}


def test_the_estimate_is_its_formula_for_every_sample():
    losses, perturbed = torch.randn(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    noise = torch.randn(3, 2, 2, dtype=torch.float64)
    found = perturbation_estimate(losses, perturbed, noise, scale=0.1)
    for n in range(3):
        for i, j in product(range(2), repeat=2):
            expected = (perturbed[n] - losses[n]).item() * noise[n, i, j].item() / 0.1
            assert found[n, i, j].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", [linear_loss, squared], ids=["linear", "squared"])
def test_over_all_signs_of_the_noise_the_estimate_is_exactly_the_gradient(loss):
    """A linear network; for a quadratic loss the curvature is odd in the noise and cancels. A large rate shows that
    every estimate is made with the weights of the forward pass."""
    model = chain((4, 3, 4, CLASSES), linear=True)
    x, y = repeated(4, 16)
    true = gradients(model, x, y, loss)
    ours = trainer(model, NodePerturbation(scale=0.7, draw=signs), x, rate=10.0, loss=loss)
    seen = estimates(ours)
    ours.step(x, y)
    for part in (1, 2):
        assert close(seen[part].mean(0), true[part][0])


def test_as_the_perturbation_shrinks_the_error_falls_with_its_square():
    model = chain((4, 3, 4, CLASSES))
    x, y = repeated(4, 16)
    true = gradients(model, x, y, F.cross_entropy)[1][0]
    errors = []
    for scale in (0.2, 0.1, 0.05):
        ours = trainer(chain((4, 3, 4, CLASSES)), NodePerturbation(scale=scale, draw=signs), x)
        seen = estimates(ours)
        ours.step(x, y)
        errors.append((seen[1].mean(0) - true).norm().item())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.02)


def test_with_normal_noise_the_estimate_is_unbiased():
    """20,000 draws on one sample and a linear loss: within four standard errors, and not by being zero."""
    model = chain((4, 3, CLASSES), linear=True)
    x, y = repeated(4, 20_000)
    true = gradients(model, x, y, linear_loss)[1][0]
    ours = trainer(model, NodePerturbation(), x, loss=linear_loss)
    seen = estimates(ours)
    ours.step(x, y)
    error = seen[1].std(0) / 20_000**0.5
    assert ((seen[1].mean(0) - true).abs() < 4 * error).all()
    assert (true.abs() > 8 * error).any()


def test_with_the_layers_own_weights_for_feedback_it_is_backpropagation():
    """Errors pass through tanh by the chain rule, and through every first layer by B."""
    models, (x, y) = (chain(), chain()), batch(7)
    ours, plain = trainer(models[0], NodePerturbation(), x, own=0.0), trainer(models[1], Backprop(), x)
    for step in range(3):
        for part, layer in ((1, models[0][1][0]), (2, models[0][2])):
            ours.objectives[part].feedback.data.copy_(layer.weight.data)
        x, y = batch(7, seed=step)
        ours.step(x, y)
        plain.step(x, y)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert close(a, b, relative=1e-13)


def test_a_step_is_the_literal_update():
    """Sample by sample, with other weights B than the layers': what parts follow, and the fit of every B."""
    model, (x, y) = chain(), batch(5)
    noise = {7: torch.randn(5, 7, dtype=torch.float64), 5: torch.randn(5, 5, dtype=torch.float64)}
    ours = trainer(model, NodePerturbation(scale=0.3, draw=lambda h: noise[h.shape[1]]), x, own=0.1)
    layers = [model[0][0], model[1][0], model[2]]
    feedback = {part: ours.objectives[part].feedback.detach().clone() for part in (1, 2)}
    weights, fits = [torch.zeros_like(m.weight) for m in layers], {k: torch.zeros_like(b) for k, b in feedback.items()}
    n = len(x)

    def upper(h: Tensor, sample: int, start: int) -> Tensor:
        if start == 1:
            h = torch.tanh(layers[1].weight @ h + layers[1].bias)
        return -torch.log_softmax(layers[2].weight @ h + layers[2].bias, 0)[y[sample]]

    with torch.no_grad():
        for sample in range(n):
            h = [x[sample]]
            for layer in layers[:2]:
                h.append(torch.tanh(layer.weight @ h[-1] + layer.bias))
            clean = upper(h[2], sample, 2)
            error = torch.softmax(layers[2].weight @ h[2] + layers[2].bias, 0)
            error = error - torch.eye(CLASSES, dtype=x.dtype)[y[sample]]
            for part in (2, 1):
                weights[part] += torch.outer(error, h[part]) / n
                xi = noise[len(h[part])][sample]
                estimate = (upper(h[part] + 0.3 * xi, sample, part) - clean) * xi / 0.3
                sent = feedback[part].T @ error
                fits[part] += 2 * torch.outer(error, sent - estimate) / n
                error = (1 - h[part] ** 2) * sent
            weights[0] += torch.outer(error, h[0]) / n
    before = snapshot(model)
    shown = ours.step(x, y)
    moved = moves(model, before)
    for k, name in enumerate(["0.0", "1.0", "2"]):
        assert close(moved[f"{name}.weight"], -0.5 * weights[k])
    for part, fit in fits.items():
        assert close(ours.objectives[part].feedback.detach() - feedback[part], -0.1 * fit)
    assert shown[2].item() == pytest.approx(F.cross_entropy(chain()(x), y).item(), rel=1e-12)


def test_feedback_converges_to_least_squares_and_that_is_the_layer_where_noise_is_enumerated():
    """Frozen parts: B solves min ||E B - lambda||; over all signs and a quadratic loss the solution is W itself."""
    model = chain((4, 3, CLASSES), linear=True)
    x, y = repeated(4, 8, samples=6)
    method = NodePerturbation(scale=0.5, draw=signs)
    ours = trainer(model, method, x, rate=0.0, own=0.04, momentum=0.9, loss=squared)
    seen = estimates(ours)
    for _ in range(400):
        ours.step(x, y)
    errors = (2 * (model(x) - LINEAR[y])).detach()
    best = torch.linalg.lstsq(errors, seen[1]).solution
    assert (seen[1] - errors @ best).norm() > 0.1 * seen[1].norm()
    assert close(best, model[1].weight.detach())
    assert close(ours.objectives[1].feedback.detach(), best, relative=1e-8)


def test_errors_pass_back_through_a_convolution_with_other_weights():
    layer = nn.Conv2d(2, 4, 3, stride=2, padding=1).double()
    weight, error = torch.randn(4, 2, 3, 3).double(), torch.randn(5, 4, 3, 3).double()
    back = fed_back(layer, weight, error, like=torch.zeros(5, 2, 6, 6).double())
    assert close(back, torch.nn.grad.conv2d_input((5, 2, 6, 6), weight, error, stride=2, padding=1))


def test_the_model_keeps_its_own_weights_while_others_are_lent():
    layer = nn.Linear(3, 2)
    weight = layer.weight
    fed_back(layer, torch.zeros(2, 3), torch.ones(4, 2), like=torch.ones(4, 3))
    assert layer.weight is weight
    assert weight.grad is None


def test_dropout_is_drawn_alike_for_both_losses():
    """A linear network and loss, all signs for every mask: were masks drawn anew, other gradients would mix in."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)), nn.Linear(4, CLASSES))
    model = model.double()
    x, y = repeated(4, 16)
    masks: list[Tensor] = []
    model[1][1].register_forward_hook(lambda _, args, out: masks.append(out.detach() != 0))
    ours = trainer(model, NodePerturbation(scale=0.5, draw=signs), x, loss=linear_loss)
    masks.clear()
    seen = estimates(ours)
    weights = model[1][0].weight.detach().clone(), model[2].weight.detach().clone()
    ours.step(x, y)
    through = torch.diag_embed(2.0 * masks[0].double())
    true = (LINEAR[y] @ weights[1]).unsqueeze(1) @ through @ weights[0]
    noise = signs(torch.zeros(16, 3, dtype=torch.float64))
    assert close(seen[1], (true.squeeze(1) * noise).sum(1, keepdim=True) * noise)
    assert 0 < masks[0].float().mean() < 1


@pytest.mark.parametrize("scale", [0.0, -0.1, float("nan"), float("inf")])
def test_a_perturbation_that_is_not_above_zero_is_refused(scale):
    with pytest.raises(MethodError, match="size of the perturbation"):
        NodePerturbation(scale=scale)


def test_a_part_without_a_layer_of_its_own_is_refused_when_the_trainer_is_made():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, CLASSES)).double()
    with pytest.raises(MethodError, match="part 1 has no linear or convolutional layer"):
        trainer(model, NodePerturbation(), batch(features=4)[0])


def test_a_part_that_changes_its_input_before_the_first_layer_is_refused():
    pooled = nn.Sequential(nn.AvgPool1d(2), nn.Linear(3, CLASSES)).double()
    model = nn.Sequential(nn.Linear(4, 6).double(), pooled)
    with pytest.raises(MethodError, match=r"part 1 reads 6 channels and its first layer, 1\.1, 3"):
        trainer(model, NodePerturbation(), batch(features=4)[0])


def test_windows_of_time_are_refused_when_the_trainer_is_made():
    problem = recurrent_problem()
    with pytest.raises(MethodError, match="a window of time begins with its recurrent cell"):
        mw.Trainer(problem.partition(), NodePerturbation(), loss=F.cross_entropy, optimizer=torch.optim.AdamW)
