"""Local propagation: iterations against the formula, multipliers against backpropagation's errors at the saddle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from literal_oracles import draw
from torch import Tensor, nn

import modulewise as mw
from modulewise.errors import MethodError
from modulewise.methods import LocalPropagation
from modulewise.methods.auxiliary import local_propagation_solver
from modulewise.methods.auxiliary.local_propagation_updates import constraint, insensitive, lagrangian_share

N = 6


def squared(output: Tensor, y: Tensor) -> Tensor:
    """1/(2N) sum_n ||output_n - y_n||^2."""
    return (output - y).square().sum() / (2 * len(y))


def relative(a: Tensor, b: Tensor) -> float:
    assert b.abs().max() > 0
    return float((a.detach() - b).abs().max() / b.abs().max())


WEIGHTS = (0.5 * draw(4, 5, seed=2), 0.5 * draw(3, 4, seed=3), 0.5 * draw(2, 3, seed=4))


def tanh_network() -> nn.Sequential:
    """tanh(W1 x) | tanh(W2 x1) | W3 x2."""
    layers = [nn.Sequential(nn.Linear(a, b, bias=False), nn.Tanh()) for a, b in ((5, 4), (4, 3))]
    model = nn.Sequential(*layers, nn.Linear(3, 2, bias=False)).double()
    with torch.no_grad():
        for p, w in zip(model.parameters(), WEIGHTS, strict=True):
            p.copy_(w)
    return model


def literal_tie(e: float, epsilon: float, absolute: bool) -> tuple[float, float]:
    """G(e) and its slope, one number."""
    if absolute:
        return max(abs(e) - epsilon, 0.0), (1.0 if e > epsilon else -1.0 if e < -epsilon else 0.0)
    return max(e, epsilon) - max(-e, epsilon), (1.0 if abs(e) >= epsilon else 0.0)


def tied(e: Tensor, epsilon: float, absolute: bool) -> tuple[Tensor, Tensor]:
    both = torch.tensor([literal_tie(float(v), epsilon, absolute) for v in e], dtype=torch.float64)
    return both[:, 0], both[:, 1]


def literal_search(
    x: Tensor,
    y: Tensor,
    *,
    iterations: int,
    rates: tuple[float, float, float],
    damping: float,
    epsilon: float,
    absolute: bool,
) -> tuple[list[Tensor], list[float]]:
    """All variables of all samples by hand; the weights in the end, and each part's share in the last iteration."""
    of_x, of_lambda, of_w = rates
    w1, w2, w3 = (w.clone() for w in WEIGHTS)
    x1 = [(w1 @ x[n]).tanh() for n in range(N)]
    x2 = [(w2 @ x1[n]).tanh() for n in range(N)]
    l1, l2 = [torch.zeros(4).double()] * N, [torch.zeros(3).double()] * N
    shares = []
    for _ in range(iterations):
        d1, d2, d3 = torch.zeros_like(w1), torch.zeros_like(w2), torch.zeros_like(w3)
        shares = [0.0, 0.0, 0.0]
        for n in range(N):
            f1, f2, residual = (w1 @ x[n]).tanh(), (w2 @ x1[n]).tanh(), w3 @ x2[n] - y[n]
            g1, slope1 = tied(x1[n] - f1, epsilon, absolute)
            g2, slope2 = tied(x2[n] - f2, epsilon, absolute)
            m1, m2 = (l1[n] + damping * g1) * slope1, (l2[n] + damping * g2) * slope2
            shares[0] += float(l1[n] @ g1 + damping / 2 * g1 @ g1) / N
            shares[1] += float(l2[n] @ g2 + damping / 2 * g2 @ g2) / N
            shares[2] += float(residual @ residual) / (2 * N)
            d1 -= torch.outer(m1 * (1 - f1**2), x[n]) / N
            d2 -= torch.outer(m2 * (1 - f2**2), x1[n]) / N
            d3 += torch.outer(residual, x2[n]) / N
            x1[n] = x1[n] - of_x * (m1 - w2.T @ (m2 * (1 - f2**2)))
            x2[n] = x2[n] - of_x * (m2 + w3.T @ residual)
            l1[n], l2[n] = l1[n] + of_lambda * g1, l2[n] + of_lambda * g2
        w1, w2, w3 = w1 - of_w * d1, w2 - of_w * d2, w3 - of_w * d3
    return [w1, w2, w3], shares


@pytest.mark.parametrize(("epsilon", "absolute"), [(0.0, False), (0.02, False), (0.0, True), (0.02, True)])
@pytest.mark.parametrize("damping", [0.0, 0.8])
def test_iterations_are_those_of_the_formula(epsilon, absolute, damping):
    """Seven iterations in x, lambda and W of three parts, each from gradients at one and the same point."""
    x, y, model = draw(N, 5, seed=1), draw(N, 2, seed=5), tanh_network()
    method = LocalPropagation(
        iterations=7,
        activation_rate=0.2,
        multiplier_rate=0.6,
        weight_rate=0.1,
        damping=damping,
        epsilon=epsilon,
        absolute=absolute,
        adam=False,
    )
    losses = mw.Trainer(mw.Partition(model, cuts=["0", "1"], example=x[:2]), method, loss=squared).step(x, y)
    weights, shares = literal_search(
        x, y, iterations=7, rates=(0.2, 0.6, 0.1), damping=damping, epsilon=epsilon, absolute=absolute
    )
    for p, expected, before in zip(model.parameters(), weights, WEIGHTS, strict=True):
        assert relative(p, expected) < 1e-12
        assert relative(p, before) > 1e-4
    assert [float(losses[part]) for part in range(3)] == pytest.approx(shares, rel=1e-10)


def test_the_insensitive_functions_are_the_papers():
    e = torch.cat([draw(200, seed=8), torch.tensor([0.0, 0.5, -0.5]).double()])
    for absolute in (False, True):
        for epsilon in (0.0, 0.5):
            literal = [literal_tie(float(v), epsilon, absolute)[0] for v in e]
            assert insensitive(e, epsilon=epsilon, absolute=absolute).tolist() == pytest.approx(literal, abs=1e-15)


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[Tensor]]]:
    """The activations and multipliers of the last step; they are updated in place."""
    held: dict[str, list[Tensor]] = {}

    def noting(activations: list[Tensor]) -> list[Tensor]:
        held["x"], held["lambda"] = activations, [torch.zeros_like(h) for h in activations]
        return held["lambda"]

    monkeypatch.setattr(local_propagation_solver, "zeros", noting)
    return held


def settled(model: nn.Module, cuts: list[str], x: Tensor, y: Tensor, **settings: float) -> None:
    method = LocalPropagation(adam=False, **settings)
    mw.Trainer(mw.Partition(model, cuts=cuts, example=x[:2]), method, loss=squared).step(x, y)


def test_with_fixed_weights_the_saddle_is_the_forward_pass_with_backpropagations_errors(variables):
    """tanh parts: x feasible, lambda = -N dloss/dx, and the Lagrangian's weight gradients are E2EBP's; to 1e-10."""
    model, x, y = tanh_network(), draw(N, 5, seed=1), draw(N, 2, seed=5)
    for p in model.parameters():
        p.requires_grad_(False)
    settled(model, ["0", "1"], x, y, iterations=600, activation_rate=0.15, multiplier_rate=1.0, damping=3.0)
    for p in model.parameters():
        p.requires_grad_(True)
    h1 = model[0](x)
    h2 = model[1](h1)
    h1.retain_grad()
    h2.retain_grad()
    squared(model[2](h2), y).backward()
    for ours, h, multiplier in zip(variables["x"], (h1, h2), variables["lambda"], strict=True):
        assert relative(ours, h.detach()) < 1e-10
        assert relative(multiplier, -N * h.grad) < 1e-10
    run = lambda part, a: model[part](x if part == 0 else a[part - 1])  # noqa: E731
    for part, p in enumerate(model.parameters()):
        share, _ = lagrangian_share(
            part,
            run,
            [h.detach() for h in variables["x"]],
            variables["lambda"],
            lambda out: squared(out, y),
            tie=constraint(0.0, absolute=False),
            damping=3.0,
        )
        (gradient,) = torch.autograd.grad(share, p)
        assert relative(gradient, p.grad) < 1e-9


def test_the_saddle_of_a_linear_problem_fulfils_the_kkt_conditions(variables):
    """One hidden layer, all variables free: least squares, feasible, lambda_n = -W2^T (W2 W1 x_n - y_n)."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3).double() + 0.1 * draw(3, 3, seed=3))
        model[1].weight.copy_(torch.eye(2, 3).double() + 0.1 * draw(2, 3, seed=4))
    x, y = draw(30, 3, seed=1), draw(30, 2, seed=5)
    settled(model, ["0"], x, y, iterations=1000, activation_rate=0.3, multiplier_rate=0.5, weight_rate=0.1, damping=1.0)
    w1, w2 = (p.detach() for p in model.parameters())
    fitted = torch.linalg.lstsq(x, y).solution.T
    assert relative(w2 @ w1, fitted) < 1e-8
    assert relative(variables["x"][0], x @ w1.T) < 1e-8
    errors = torch.stack([w2.T @ (w2 @ w1 @ x[n] - y[n]) for n in range(len(x))])
    assert relative(variables["lambda"][0], -errors) < 1e-8
    assert errors.abs().max() > 0.1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (name, value, f"{name}={value} was given to LocalPropagation; give finite numbers above 0")
        for name in ("activation_rate", "multiplier_rate", "weight_rate")
        for value in (0.0, -1.0, float("nan"))
    ]
    + [("iterations", value, "give whole numbers, at least 1") for value in (0, 1.5)]
    + [(name, value, "give numbers >= 0") for name in ("damping", "epsilon") for value in (-1.0, float("nan"))],
)
def test_numbers_out_of_range_are_refused(field, value, message):
    with pytest.raises(MethodError, match=message):
        LocalPropagation(**{field: value})


@pytest.mark.parametrize(("damping", "least"), [(1.0, 3), (0.0, 5)])
def test_iterations_too_few_for_the_labels_to_come_down_are_refused(damping, least):
    """With the least number part 0 does learn, with one less it would not."""
    model, x, y = tanh_network(), draw(N, 5, seed=1), draw(N, 2, seed=5)
    partition = mw.Partition(model, cuts=["0", "1"], example=x[:2])
    with pytest.raises(MethodError, match=f"iterations={least - 1} was given for 3 parts, expected at least {least}"):
        mw.Trainer(partition, LocalPropagation(iterations=least - 1, damping=damping), loss=squared)
    mw.Trainer(partition, LocalPropagation(iterations=least, damping=damping, adam=False), loss=squared).step(x, y)
    assert (model[0][0].weight != WEIGHTS[0]).any()
    rates = (0.2, 0.5, 0.1)
    weights, _ = literal_search(x, y, iterations=least - 1, rates=rates, damping=damping, epsilon=0.0, absolute=False)
    assert torch.allclose(weights[0], WEIGHTS[0], rtol=0, atol=1e-15)
