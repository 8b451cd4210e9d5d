"""L-DRL and FW-DTP: the Jacobian's closed form, what it converges to, and targets against literal loops."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from target_networks import captured, learn, literal_map, network, rows, trained
from torch import Tensor, nn

import modulewise as mw
from modulewise.errors import MethodError
from modulewise.method import Family, Locality, Reach
from modulewise.methods.targets.targets_objective import jacobian_matching
from modulewise.objective import Role
from modulewise.partition.boundary import Boundary

M = mw.methods


def linear(rows: int, columns: int) -> nn.Linear:
    return nn.Linear(columns, rows, bias=False).double()


def test_on_a_linear_part_the_expected_loss_is_the_distance_to_the_transpose(monkeypatch):
    """With noise whose covariance is exact, loss = -2 tr(B W) + ||B||^2: at its least, -||W||^2, where B = W^T."""
    torch.manual_seed(0)
    part, back = linear(6, 4), linear(4, 6)
    exact = {4: math.sqrt(4) * torch.eye(4).repeat(3, 1).double(), 6: math.sqrt(6) * torch.eye(6).repeat(2, 1).double()}
    monkeypatch.setattr(torch, "randn_like", lambda h: exact[h.shape[1]])
    h_in = torch.randn(12, 4, dtype=torch.float64)
    h_out = part(h_in).detach()

    def loss(b: nn.Linear) -> Tensor:
        return jacobian_matching(b, part, h_in, h_out, noise=0.3)

    w, b = part.weight.detach(), back.weight.detach()
    expected = -2 * (b @ w).trace() + b.square().sum()
    assert loss(back).item() == pytest.approx(expected.item(), rel=1e-10)
    with torch.no_grad():
        back.weight.copy_(w.T)
    least = loss(back)
    assert least.item() == pytest.approx(-w.square().sum().item(), rel=1e-10)
    (gradient,) = torch.autograd.grad(least, back.weight)
    assert gradient.abs().max() < 1e-12
    assert part.weight.grad is None


def test_the_loss_is_the_formula_element_by_element():
    """1/N sum_n [-2 e.(g(f(h + e)) - g(f(h))) + ||g(f(h) + n) - g(f(h))||^2] / noise^2, with the draws repeated."""
    torch.manual_seed(0)
    part = nn.Sequential(nn.Linear(5, 4), nn.Tanh()).double()
    back = nn.Sequential(nn.Tanh(), nn.Linear(4, 5)).double()
    h_in = torch.randn(6, 5, dtype=torch.float64)
    h_out = part(h_in).detach()
    torch.manual_seed(2)
    found = jacobian_matching(back, part, h_in, h_out, noise=0.2)
    torch.manual_seed(2)
    e, n = 0.2 * torch.randn_like(h_in), 0.2 * torch.randn_like(h_out)
    returned = [literal_map(back, h).tolist() for h in (literal_map(part, h_in + e), h_out, h_out + n)]
    total = 0.0
    for i in range(6):
        corrupted, plain, shaken = (r[i] for r in returned)
        total += sum(-2 * e[i, j].item() * (corrupted[j] - plain[j]) + (shaken[j] - plain[j]) ** 2 for j in range(5))
    assert found.item() == pytest.approx(total / 6 / 0.2**2, rel=1e-9)


def test_the_loss_is_a_mean_over_positions():
    """Images of 4 x 4: a sixteenth of the plain loss, with the same draws."""
    site = mw.Site(1, 3, Boundary("in", (2, 3, 4, 4)), Boundary("out", (2, 3, 4, 4)), loss=F.cross_entropy)
    torch.manual_seed(0)
    objective = M.LocalDRL(outputs=3, noise=0.2).objective(site)
    h = torch.randn(2, 3, 4, 4)
    torch.manual_seed(1)
    found = objective.rehearse(mw.Context(h, h.tanh(), h, None, 1, 1, 0, run=torch.tanh)).loss
    torch.manual_seed(1)
    plain = jacobian_matching(objective.inverse, torch.tanh, h, h.tanh(), noise=0.2)
    assert found.item() == pytest.approx(plain.item() / 16, rel=1e-5)


def jacobian(function: nn.Module, h: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(lambda row: function(row[None])[0], h)


@pytest.mark.parametrize("activation", [nn.Identity, nn.Tanh])
def test_feedback_jacobians_fall_towards_the_transposes_over_training(activation):
    """Parts stand still; ||g' - f'^T|| / ||f'|| over the batch falls to a tenth of one, for the last part as well."""
    model = network(activation=activation)
    standing = lambda p, *, part, role: torch.optim.SGD(p, lr=0.0 if role is Role.PART else 0.02)  # noqa: E731
    trainer = trained(M.LocalDRL(outputs=3, rounds=10, noise=0.02), model=model, optimizer=standing)
    x, y = rows(64)

    def distances() -> list[float]:
        found, h = [], model[0](x).detach()
        for k in (1, 2, 3):
            away = size = 0.0
            for row in h[:4]:
                forward = jacobian(model[k], row)
                backward = jacobian(trainer.objectives[k].inverse, model[k](row[None])[0].detach())
                away += (backward - forward.T).square().sum().item()
                size += forward.square().sum().item()
            found.append(math.sqrt(away / size))
            h = model[k](h).detach()
        return found

    measured = [distances()]
    for count in (2, 18):
        for _ in range(count):
            trainer.step(x, y)
        measured.append(distances())
    for before, between, after in zip(*measured, strict=True):
        assert after < between < before
        assert after < 0.15


class Transposed(nn.Module):
    """h W: the transposed Jacobian of a linear layer, exactly."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = [layer]

    def forward(self, h: Tensor) -> Tensor:
        return h @ self.layer[0].weight.detach()


def test_with_transposed_jacobians_parts_follow_step_size_times_the_true_gradient():
    """In a linear network at any step size: updates are backpropagation's, times step_size below the last part."""
    model = network(activation=nn.Identity)
    x, y = rows()
    gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    layers = [part[0] for part in model[:3]] + [model[3]]
    method = M.LocalDRL(outputs=3, step_size=0.7, rounds=1, inverse=lambda site: Transposed(layers[site.part]))
    found = learn(trained(method, model=model), x, y)
    for index, (update, gradient) in enumerate(zip(found, gradients, strict=True)):
        assert torch.allclose(update, gradient * (0.7 if index < 6 else 1.0), rtol=1e-10, atol=1e-14)


def literal_targets(model: nn.Module, x: Tensor, y: Tensor, step_size: float, back) -> dict[int, Tensor]:
    """From the step at the output down, t_{k-1} = h_{k-1} + back(k, t_k) - back(k, h_k)."""
    hs = [model[:k](x).detach() for k in range(1, 5)]
    leaf = hs[3].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(leaf, y), leaf)
    target, found = hs[3] - step_size * len(x) * gradient, {}
    for k in (3, 2, 1):
        target = hs[k - 1] + back(k, target) - back(k, hs[k])
        found[k - 1] = target
    return found


def test_targets_come_down_from_the_output_through_what_the_feedback_has_learned():
    """Difference targets element by element, with the feedback of after the rounds."""
    trainer = trained(M.LocalDRL(outputs=3, rounds=2, step_size=0.5), lr=0.01)
    x, y = rows()
    model = copy.deepcopy(trainer.partition.model)
    before = copy.deepcopy([o.state_dict() for o in trainer.objectives])
    targets = captured(trainer, x, y)
    for k in (1, 2, 3):
        old, new = before[k]["inverse.linear.weight"], trainer.objectives[k].inverse.linear.weight
        assert not torch.equal(old, new)
    tanh = {1: [nn.Tanh()], 2: [nn.Tanh()], 3: []}
    back = lambda k, h: literal_map([*tanh[k], trainer.objectives[k].inverse.linear], h)  # noqa: E731
    for k, expected in literal_targets(model, x, y, 0.5, back).items():
        assert torch.allclose(targets[k], expected, rtol=1e-10, atol=1e-13)


def test_fixed_feedback_targets_are_the_loop_and_nothing_but_the_network_learns():
    """t_{k-1} = h_{k-1} + tanh(B t_k) - tanh(B h_k) number by number; B is uniform, fixed, and saved."""
    trainer = trained(M.FixedWeightDTP(outputs=3, step_size=0.5, scale=0.7))
    x, y = rows()
    model, matrices = copy.deepcopy(trainer.partition.model), [o.state_dict() for o in trainer.objectives]
    weights = {k: matrices[k]["inverse.weight"].clone() for k in (1, 2, 3)}
    assert not any(list(o.parameters()) for o in trainer.objectives)
    assert all(0.35 < w.abs().max() <= 0.7 for w in weights.values())
    assert not torch.equal(weights[1][:3, :3], weights[2][:3, :3])

    def back(k: int, h: Tensor) -> Tensor:
        made = []
        for row in h.tolist():
            made.append([math.tanh(sum(w * v for w, v in zip(ws, row, strict=True))) for ws in weights[k].tolist()])
        return torch.tensor(made, dtype=torch.float64)

    targets = captured(trainer, x, y)
    for k, expected in literal_targets(model, x, y, 0.5, back).items():
        assert torch.allclose(targets[k], expected, rtol=1e-10, atol=1e-13)
    for k in (1, 2, 3):
        assert torch.equal(trainer.objectives[k].state_dict()["inverse.weight"], weights[k])


@pytest.mark.parametrize("kind", [M.LocalDRL, M.FixedWeightDTP])
def test_the_distance_to_a_target_counts_half(kind):
    """The update of the first part is (h - t) f' x^T: that of ||h - t||^2 / 2."""
    model = network()
    trainer = trained(kind(outputs=3), model=model)
    x, y = rows()
    first = copy.deepcopy(model[0])
    target = captured(trainer, x, y)[0]
    (((first(x) - target) ** 2).sum(1).mean() / 2).backward()
    for p, after in zip(first.parameters(), model[0].parameters(), strict=True):
        assert torch.allclose(after, p - p.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", [M.LocalDRL, M.FixedWeightDTP])
def test_no_gradient_crosses_a_cut(kind):
    contexts: list[mw.Context] = []
    trainer = trained(kind(outputs=3))
    for objective in trainer.objectives:
        objective.register_forward_pre_hook(lambda _, args: contexts.append(args[0]))
    trainer.step(*rows())
    assert len(contexts) == 4
    assert not any(context.h_in.requires_grad for context in contexts)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (M.LocalDRL, {"outputs": 0}),
        (M.LocalDRL, {"step_size": 0.0}),
        (M.LocalDRL, {"noise": 0.0}),
        (M.LocalDRL, {"noise": float("nan")}),
        (M.LocalDRL, {"rounds": 0}),
        (M.FixedWeightDTP, {"outputs": 0}),
        (M.FixedWeightDTP, {"step_size": -1.0}),
        (M.FixedWeightDTP, {"scale": 0.0}),
        (M.FixedWeightDTP, {"scale": float("nan")}),
    ],
)
def test_arguments_out_of_range_are_refused(kind, arguments):
    with pytest.raises(MethodError, match="give outputs >= 1, step_size > 0"):
        kind(**{"outputs": 3, **arguments})


@pytest.mark.parametrize(("kind", "name"), [(M.LocalDRL, "l-drl"), (M.FixedWeightDTP, "fw-dtp")])
def test_name_family_and_locality(kind, name):
    assert kind.name == name
    assert kind.family is Family.TARGETS
    assert kind.locality == Locality(Reach.TARGETS)
