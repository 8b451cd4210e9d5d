"""GAIT-prop: exact inverses, literal targets, and backpropagation where weights are orthogonal."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from target_networks import captured, half_squared_error, learn, network, rows, trained, updates
from torch import Tensor, nn

import modulewise as mw
from modulewise.checks import Problem, conformance
from modulewise.errors import MethodError
from modulewise.method import Family, Locality, Reach
from modulewise.methods.targets import orthogonal_
from modulewise.methods.targets.gait_prop_objective import target_below
from modulewise.methods.targets.invertible import (
    activation_slope,
    activation_step,
    exact_inverse,
    soft_orthogonality,
)

M = mw.methods
ACTIVATIONS = [nn.Identity(), nn.LeakyReLU(0.2), nn.Tanh(), nn.Sigmoid(), nn.ELU(0.7)]


def square(activation, outputs: int = 6, *, orthogonal: bool = True) -> nn.Sequential:
    """Three square layers and a head, of orthogonal weights and some bias."""
    model = network(widths=(6, 6, 6, 6), activation=activation, outputs=outputs)
    if orthogonal:
        torch.manual_seed(2)
        orthogonal_(model)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
    return model


def gradients_of(model: nn.Module, x: Tensor, y: Tensor, loss) -> list[Tensor]:
    return list(torch.autograd.grad(loss(model(x), y), list(model.parameters())))


def away(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference relative to each parameter's largest entry."""
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("outputs", [6, 3], ids=["square", "narrowing"])
def test_with_orthogonal_weights_and_leaky_relu_updates_are_backpropagation(outputs):
    """Half the squared error, gamma = 1e-2, no kink crossed: within 1e-6 of E2EBP; a narrowing head as well."""
    model = square(lambda: nn.LeakyReLU(0.2), outputs)
    x, y = rows(400)[0], 0.3 * torch.randn(400, outputs, dtype=torch.float64)
    from_kinks = torch.stack([model[:k](x).abs().amin(1) for k in (1, 2, 3)]).amin(0)
    x, y = x[from_kinks > 0.02], y[from_kinks > 0.02]
    assert len(x) > 20
    expected = gradients_of(model, x, y, half_squared_error)
    hs = [model[:k](x) for k in (1, 2, 3)]
    trainer = trained(M.GaitProp(gamma=1e-2, orthogonality=0.0), model=model, loss=half_squared_error)
    told = []
    for objective in trainer.objectives:
        objective.register_forward_pre_hook(lambda _, args: told.append(args[0]))
    found = learn(trainer, x, y)
    for context in told:
        if context.part < 3:
            message = context.feedback[context.part + 1]
            moved = hs[context.part] + message[0] / message[1]
            assert torch.equal(moved > 0, hs[context.part] > 0), "a kink is crossed: the oracle does not apply"
    assert away(found, expected) < 1e-6


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid], ids=lambda a: a.__name__)
def test_for_smooth_activations_the_error_falls_as_gamma(activation, order):
    """As gamma where the output has the activation too; as gamma^2 below a linear head, which is mapped back exactly.

    The slope in a log-log plot from gamma = 1e-1 to 1e-5 (1e-4 for order 2, whose error is round-off after that).
    """
    errors = []
    for gamma in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)[: 5 if order == 1 else 4]:
        model = square(activation)
        if order == 1:
            model[3] = nn.Sequential(model[3], activation())
        x, y = rows()[0], torch.rand(8, 6, dtype=torch.float64)
        expected = gradients_of(model, x, y, half_squared_error)
        method = M.GaitProp(gamma=gamma, orthogonality=0.0)
        errors.append(away(learn(trained(method, model=model, loss=half_squared_error), x, y), expected))
    slopes = [math.log10(larger / smaller) for larger, smaller in pairwise(errors)]
    assert all(order - 0.1 < slope < order + 0.1 for slope in slopes[1:]), slopes
    assert slopes[0] > order - 0.3, slopes


def test_with_cross_entropy_and_a_narrowing_head_updates_are_backpropagation_too():
    model = square(lambda: nn.LeakyReLU(0.2), 3)
    x, y = rows()
    expected = gradients_of(model, x, y, F.cross_entropy)
    found = learn(trained(M.GaitProp(gamma=1e-3, orthogonality=0.0), model=model), x, y)
    assert away(found, expected) < 1e-9


def test_targets_are_the_formula_row_by_row():
    """s_{l-1} = f^{-1}((1 - gamma f'^2) h + gamma f'^2 s), m / gamma: by loops over rows with inverse matrices."""
    model = square(lambda: nn.LeakyReLU(0.2), orthogonal=False)
    x, y = rows()[0], torch.randn(8, 6, dtype=torch.float64)
    gamma, weights = 0.3, [(part[0].weight.detach().clone(), part[0].bias.detach().clone()) for part in model[:3]]
    weights.append((model[3].weight.detach().clone(), model[3].bias.detach().clone()))
    hs = [model[:k](x).detach() for k in range(1, 5)]
    told = captured(trained(M.GaitProp(gamma=gamma), model=model, loss=half_squared_error), x, y)
    for n in range(8):
        s, m = y[n], 1.0
        for k in (3, 2, 1):
            h, (weight, bias) = hs[k][n], weights[k]
            slope = (
                torch.ones(6).double() if k == 3 else torch.where(h > 0, torch.ones_like(h), 0.2 * torch.ones_like(h))
            )
            mixed = (1 - gamma * slope**2) * h + gamma * slope**2 * s
            before = mixed if k == 3 else torch.where(mixed > 0, mixed, mixed / 0.2)
            s, m = weight.inverse() @ (before - bias), m / gamma
            assert told[k - 1][1] == pytest.approx(m)
            assert torch.allclose(told[k - 1][0][n], m * (s - hs[k - 1][n]), rtol=1e-9, atol=1e-11)


def test_a_narrowing_head_is_the_square_layer_with_outputs_that_keep_their_values():
    """The auxiliary outputs of the paper, added by hand: rows orthogonal to the head's, targets their own values."""
    torch.manual_seed(0)
    head = torch.randn(3, 6, dtype=torch.float64)
    basis = torch.linalg.svd(head, full_matrices=True)[2][3:]
    whole = torch.cat([head, basis])
    h, target = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)
    kept = torch.randn(8, 3, dtype=torch.float64)
    added = exact_inverse(nn.Identity(), whole, torch.cat([h, kept], 1), torch.cat([target - h, 0 * kept], 1))
    assert torch.allclose(exact_inverse(nn.Identity(), head, h, target - h), added, rtol=1e-10, atol=1e-12)
    assert torch.allclose(added @ head.T, target - h, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_inverses_and_slopes_of_activations_are_those_of_autograd(activation):
    a = torch.linspace(-3, 3, 41, dtype=torch.float64).requires_grad_()
    h = activation(a)
    (slope,) = torch.autograd.grad(h.sum(), a)
    assert torch.allclose(activation_slope(activation, h.detach()), slope, rtol=1e-12, atol=1e-14)
    for shift in (1.3, -0.4, 1e-9):
        steps = activation_step(activation, h.detach(), (activation(a + shift) - h).detach())
        assert torch.allclose(steps, torch.full_like(steps, shift), rtol=1e-5 if shift == 1e-9 else 1e-10)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_small_steps_lose_no_digits(activation):
    """d = 1e-20 beside h of order 1: the step is d / slope, where the difference of two inverses would be 0."""
    h = activation(torch.linspace(-2, 2, 20, dtype=torch.float64))
    d = torch.full_like(h, 1e-20)
    assert torch.allclose(activation_step(activation, h, d) / d, 1 / activation_slope(activation, h), rtol=1e-12)


def test_saturated_units_ask_for_nothing_below():
    """tanh = 1 in float32: slope 0, and a finite target, where the plain inverse is infinite."""
    h = torch.tensor([[1.0, -1.0, 0.5]], dtype=torch.float64)
    step = target_below(nn.Tanh(), torch.eye(3).double(), h, torch.ones(1, 3).double(), gamma=0.1)
    assert step[0, :2].tolist() == [0.0, 0.0]
    assert torch.isfinite(step).all()


def test_the_parts_also_minimise_soft_orthogonality():
    """lambda sum_{i != j} (w_i . w_j)^2 on every part above the first: its gradient by loops, in the update."""
    model = square(nn.Tanh, orthogonal=False)
    x, y = rows()[0], torch.randn(8, 6, dtype=torch.float64)
    other = square(nn.Tanh, orthogonal=False)
    weights = [layer.weight.detach().clone().requires_grad_() for layer in (model[1][0], model[2][0], model[3])]
    plain = learn(trained(M.GaitProp(orthogonality=0.0), model=other, loss=half_squared_error), x, y)
    found = learn(trained(M.GaitProp(orthogonality=0.3), model=model, loss=half_squared_error), x, y)
    assert torch.equal(found[0], plain[0]), "the first part has no inverse and no penalty"
    for weight, index in zip(weights, (2, 4, 6), strict=True):
        penalty = sum((weight[i] @ weight[j]) ** 2 for i in range(6) for j in range(6) if i != j)
        assert soft_orthogonality(weight).item() == pytest.approx(penalty.item(), rel=1e-12)
        (gradient,) = torch.autograd.grad(0.3 * penalty, weight)
        assert torch.allclose(found[index] - plain[index], gradient, rtol=1e-9, atol=1e-11)


def test_one_part_is_plain_training_whatever_it_is():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)).double()
    x, y = rows()
    expected = updates(model, F.cross_entropy(model(x), y))
    found = learn(trained(M.GaitProp(), model=model, cuts=()), x, y)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def leaky_problem() -> Problem:
    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return nn.Sequential(
                nn.Linear(5, 8),
                nn.ReLU(),
                nn.Linear(8, 8),
                nn.LeakyReLU(0.1),
                nn.Linear(8, 8),
                nn.Tanh(),
                nn.Linear(8, 3),
            )

    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(11))
    return Problem(make, ("1", "3", "5"), x, torch.arange(12) % 3)


def test_the_contract_holds_on_a_perceptron_of_equal_widths():
    """The first part may be anything: a ReLU, which has no inverse."""
    failed = {
        check.name: check.detail for check in conformance(M.GaitProp(), problem=leaky_problem()) if not check.passed
    }
    assert failed == {}


def refused(*layers: nn.Module, cuts=("0", "1"), match: str) -> None:
    model = nn.Sequential(nn.Linear(6, 6), *layers)
    with pytest.raises(MethodError, match=match):
        trained(M.GaitProp(), model=model.double(), cuts=cuts)


def test_parts_without_an_exact_inverse_are_refused_by_name():
    """At construction: widths, activations, several layers, and layers that are no Linear."""
    refused(nn.Linear(6, 5), nn.Linear(5, 3), match="part 1: 1 maps 6 features to 5 and has no exact inverse")
    refused(nn.Linear(6, 8), nn.Linear(8, 3), match="part 1: 1 maps 6 features to 8")
    refused(nn.Linear(6, 6), nn.Linear(6, 8), match="part 2: 2 maps 6 features to 8")
    relu = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    refused(relu, nn.Linear(6, 3), match=r"part 1: 1\.1 \(ReLU\) has no known inverse; use one of ELU, Identity")
    flat = nn.Sequential(nn.Linear(6, 6), nn.LeakyReLU(0.0))
    refused(flat, nn.Linear(6, 3), match=r"part 1: 1\.1 \(LeakyReLU.*\) has no inverse; give it a factor above 0")
    two = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    refused(two, nn.Linear(6, 3), match=r"part 1 calls the layers 1\.0 \(Linear\), 1\.1 \(Tanh\), 1\.2 \(Linear\)")
    refused(nn.Tanh(), nn.Linear(6, 3), match=r"part 1 calls the layers 1 \(Tanh\)")
    dropped = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.1))
    refused(dropped, nn.Linear(6, 3), match=r"1\.1 \(Dropout\) has no known inverse")


def test_layers_that_change_nothing_are_passed_over():
    nothing = nn.Sequential(nn.Identity(), nn.Linear(6, 6), nn.Dropout(0.0), nn.Tanh())
    trainer = trained(M.GaitProp(), model=nn.Sequential(nn.Linear(6, 6), nothing, nn.Linear(6, 3)).double())
    trainer.step(*rows())


def test_an_activation_that_is_no_module_is_noticed_in_the_first_step():
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, h: Tensor) -> Tensor:
            return self.c(self.b(self.a(h)).relu())

    model = Hidden().double()
    partition = mw.Partition(model, cuts=["a", "b"], example=rows()[0])
    trainer = mw.Trainer(partition, M.GaitProp(), loss=F.cross_entropy, optimizer=torch.optim.SGD)
    with pytest.raises(MethodError, match="part 2 does more than Identity after its Linear"):
        trainer.step(*rows())


def test_orthogonal_weights_are_drawn_for_every_linear_layer():
    torch.manual_seed(0)
    model = orthogonal_(nn.Sequential(nn.Linear(4, 6), nn.Conv2d(1, 1, 1), nn.Sequential(nn.Linear(6, 6, bias=False))))
    wide, whole = model[0].weight, model[2][0].weight
    assert torch.allclose(wide.T @ wide, torch.eye(4), atol=1e-5)
    assert torch.allclose(whole @ whole.T, torch.eye(6), atol=1e-5)
    assert not model[0].bias.any()


@pytest.mark.parametrize(
    "arguments", [{"gamma": 0.0}, {"gamma": 1.5}, {"gamma": float("nan")}, {"orthogonality": -1.0}]
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(MethodError, match=r"give gamma in \(0, 1\] and orthogonality >= 0"):
        M.GaitProp(**arguments)


def test_name_family_and_locality():
    assert M.GaitProp.name == "gait-prop"
    assert M.GaitProp.family is Family.TARGETS
    assert M.GaitProp.locality == Locality(Reach.TARGETS)
