"""MAC: Z-steps and W-steps against closed forms, and E2EBP in the limit of a large penalty."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from literal_oracles import draw
from torch import Tensor, nn

import modulewise as mw
from modulewise.errors import MethodError
from modulewise.methods import MAC
from modulewise.methods.auxiliary.mac_updates import mac_coordinates, mac_penalty, mac_share

N, INPUTS, HIDDEN, OUTPUTS = 7, 4, 3, 5


def squared(output: Tensor, y: Tensor) -> Tensor:
    """1/(2N) sum_n ||output_n - y_n||^2."""
    return (output - y).square().sum() / (2 * len(y))


def chain(*layers: nn.Module) -> nn.Sequential:
    """Double precision, weights from a seed of their own."""
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for index, p in enumerate(model.parameters()):
            p.copy_(0.5 * draw(*p.shape, seed=20 + index))
    return model


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def runs(*functions: Callable[[Tensor], Tensor]) -> Callable[[int, Sequence[Tensor]], Tensor]:
    """Parts as plain functions; the first reads the data."""
    x = draw(N, INPUTS, seed=1)
    return lambda part, z: functions[part](x if part == 0 else z[part - 1])


def trainer(model: nn.Module, cuts: Sequence[str], x: Tensor, method: MAC) -> mw.Trainer:
    return mw.Trainer(mw.Partition(model, cuts=list(cuts), example=x[:2]), method, loss=squared)


def relative(a: Tensor, b: Tensor) -> float:
    assert b.abs().max() > 0
    return float((a.detach() - b).abs().max() / b.abs().max())


def test_a_coordinate_step_is_the_formula_sample_by_sample():
    """Three parts, tanh(W1 x), tanh(W2 z1), W3 z2: both gradients by hand, two steps, every sample alone."""
    w1, w2, w3 = draw(3, 4, seed=2), draw(2, 3, seed=3), draw(5, 2, seed=4)
    x, y, mu, rate = draw(N, INPUTS, seed=1), draw(N, OUTPUTS, seed=5), 0.7, 0.11
    parts = runs(lambda h: (h @ w1.T).tanh(), lambda h: (h @ w2.T).tanh(), lambda h: h @ w3.T)
    start = [draw(N, 3, seed=6), draw(N, 2, seed=7)]
    ours = mac_coordinates(parts, start, lambda out: squared(out, y), mu=mu, rate=rate, steps=2)
    for n in range(N):
        z1, z2 = start[0][n], start[1][n]
        for _ in range(2):
            f2 = (w2 @ z1).tanh()
            g1 = mu * (z1 - (w1 @ x[n]).tanh()) - mu * w2.T @ ((z2 - f2) * (1 - f2**2))
            g2 = mu * (z2 - f2) + w3.T @ (w3 @ z2 - y[n])
            z1, z2 = z1 - rate / mu * g1, z2 - rate / mu * g2
        assert relative(ours[0][n], z1) < 1e-12
        assert relative(ours[1][n], z2) < 1e-12


def test_the_z_step_of_a_linear_network_reaches_the_joint_minimum():
    """Three linear parts: (z1, z2) of a sample solve one linear system, whose solution descent reaches."""
    w1, w2, w3 = (0.6 * draw(*s, seed=i) for i, s in ((2, (3, 4)), (3, (2, 3)), (4, (5, 2))))
    x, y, mu = draw(N, INPUTS, seed=1), draw(N, OUTPUTS, seed=5), 2.0
    parts = runs(lambda h: h @ w1.T, lambda h: h @ w2.T, lambda h: h @ w3.T)
    start = [x @ w1.T, x @ w1.T @ w2.T]
    ours = mac_coordinates(parts, start, lambda out: squared(out, y), mu=mu, rate=0.3, steps=500)
    one, two = torch.eye(3).double(), torch.eye(2).double()
    system = torch.cat(
        [torch.cat([mu * (one + w2.T @ w2), -mu * w2.T], 1), torch.cat([-mu * w2, mu * two + w3.T @ w3], 1)]
    )
    right = torch.cat([mu * x @ w1.T, y @ w3], 1)
    exact = torch.linalg.solve(system, right.T).T
    assert relative(torch.cat(ours, 1), exact) < 1e-10
    assert relative(torch.cat(start, 1), exact) > 0.1


def test_the_w_steps_of_a_linear_network_are_least_squares_on_the_coordinates():
    """Every part by itself: W1 fits z to x, W2 fits y to z, at the z that the Z-step reached before."""
    model, x, y, mu = (
        chain(linear(INPUTS, HIDDEN), linear(HIDDEN, OUTPUTS)),
        draw(40, INPUTS),
        draw(40, OUTPUTS, seed=5),
        1.0,
    )
    w1, w2 = (p.detach().clone() for p in model.parameters())
    system = mu * torch.eye(HIDDEN).double() + w2.T @ w2
    z = torch.linalg.solve(system, (mu * x @ w1.T + y @ w2).T).T
    method = MAC(mu=mu, coordinate_steps=150, coordinate_rate=0.2, weight_steps=400, weight_rate=0.5, adam=False)
    before = trainer(model, ["0"], x, method).step(x, y)
    assert relative(model[0].weight, torch.linalg.lstsq(x, z).solution.T) < 1e-10
    assert relative(model[1].weight, torch.linalg.lstsq(z, y).solution.T) < 1e-10
    assert float(before[0]) == pytest.approx(float(mu / 2 * (z - x @ w1.T).square().sum() / 40), rel=1e-10)
    assert float(before[1]) == pytest.approx(float(squared(z @ w2.T, y)), rel=1e-10)


def test_alternating_reaches_the_joint_minimum_of_weights_and_coordinates():
    """With a frozen last part E is convex in (W1, Z): without Z it is weighted least squares with a closed form."""
    model, x, y, mu = (
        chain(linear(INPUTS, HIDDEN), linear(HIDDEN, OUTPUTS)),
        draw(40, INPUTS),
        draw(40, OUTPUTS, seed=5),
        1.5,
    )
    w2 = model[1].weight.detach().clone()
    model[1].weight.requires_grad_(False)
    weight = torch.linalg.inv(torch.eye(OUTPUTS).double() + w2 @ w2.T / mu)
    fitted = torch.linalg.lstsq(x, y).solution.T
    exact = torch.linalg.solve(w2.T @ weight @ w2, w2.T @ weight @ fitted)
    method = MAC(
        mu=mu, alternations=400, coordinate_steps=1, coordinate_rate=0.4, weight_steps=1, weight_rate=0.4, adam=False
    )
    trainer(model, ["0"], x, method).step(x, y)
    assert relative(model[0].weight, exact) < 1e-10
    assert torch.equal(model[1].weight, w2)


def best_coordinates(model: nn.Sequential, x: Tensor, y: Tensor, mu: float, steps: int = 200) -> tuple[list, Callable]:
    """Coordinates between tanh layers at the minimum for a penalty, and the parts."""
    parts = lambda part, z: model[part](x if part == 0 else z[part - 1])  # noqa: E731
    with torch.no_grad():
        start = [model[0](x), model[1](model[0](x))]
    return mac_coordinates(parts, start, lambda out: squared(out, y), mu=mu, rate=0.3, steps=steps), parts


@pytest.fixture(scope="module")
def limit() -> list[tuple[float, float, float]]:
    """(mu, violation, relative difference of the W-gradient from E2EBP's) over a grid of penalties."""
    model = chain(*(nn.Sequential(linear(a, b), nn.Tanh()) for a, b in ((4, 3), (3, 3))), linear(3, OUTPUTS))
    x, y, found = draw(N, INPUTS, seed=1), draw(N, OUTPUTS, seed=5), []
    truth = torch.cat([g.flatten() for g in torch.autograd.grad(squared(model(x), y), list(model.parameters()))])
    for mu in (3.0, 10.0, 1e2, 1e3, 1e4, 1e5):
        z, parts = best_coordinates(model, x, y, mu)
        shares = [mac_share(part, parts, z, lambda out: squared(out, y), mu=mu) for part in range(3)]
        violation = sum((a - parts(part, z)).square().sum() for part, a in enumerate(z)).sqrt()
        ours = torch.autograd.grad(sum(shares), list(model.parameters()))
        found.append((mu, float(violation.detach()), relative(torch.cat([g.flatten() for g in ours]), truth)))
    return found


def test_the_violation_falls_as_one_over_the_penalty(limit):
    """Monotone over the grid; mu times the violation converges, here to 1e-3 over the last decade."""
    violations = [violation for _, violation, _ in limit]
    assert violations == sorted(violations, reverse=True)
    assert violations[0] > 0.1
    scaled = [mu * violation for mu, violation, _ in limit]
    assert abs(scaled[-1] / scaled[-2] - 1) < 1e-3
    assert violations[-1] < 1e-4


def test_the_weights_gradient_approaches_backpropagations_as_one_over_the_penalty(limit):
    """All parts: the W-step's gradient at the best coordinates differs from E2EBP's by O(1/mu)."""
    differences = [difference for _, _, difference in limit]
    assert differences == sorted(differences, reverse=True)
    assert differences[0] > 0.05
    scaled = [mu * difference for mu, _, difference in limit]
    assert abs(scaled[-1] / scaled[-2] - 1) < 1e-2
    assert differences[-1] < 1e-4


def test_a_step_with_a_large_penalty_is_a_step_of_gradient_descent():
    """Through the trainer: plain W-steps at mu = 1e6 move the weights as SGD on the task loss does."""
    make = lambda: chain(*(nn.Sequential(linear(a, b), nn.Tanh()) for a, b in ((4, 3), (3, 3))), linear(3, OUTPUTS))  # noqa: E731
    model, plain, x, y = make(), make(), draw(N, INPUTS, seed=1), draw(N, OUTPUTS, seed=5)
    method = MAC(mu=1e6, mu_limit=1e6, coordinate_steps=200, coordinate_rate=0.3, weight_rate=0.1, adam=False)
    trainer(model, ["0", "1"], x, method).step(x, y)
    squared(plain(x), y).backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert relative(ours - theirs, -0.1 * theirs.grad) < 1e-4


def test_the_penalty_grows_with_the_steps_up_to_its_limit():
    grown = [mac_penalty(mu=2.0, growth=3.0, every=2, limit=20.0, step=step) for step in range(8)]
    assert grown == [2, 2, 6, 6, 18, 18, 20, 20]
    assert mac_penalty(mu=2.0, growth=1.0, every=1, limit=20.0, step=10**12) == 2
    model, x, y = chain(linear(INPUTS, HIDDEN), linear(HIDDEN, OUTPUTS)), draw(N, INPUTS), draw(N, OUTPUTS, seed=5)
    method = MAC(
        mu=1.0,
        growth=10.0,
        every=1,
        mu_limit=1e4,
        coordinate_steps=100,
        coordinate_rate=0.2,
        weight_rate=1e-12,
        adam=False,
    )
    bound = trainer(model, ["0"], x, method)
    violation = [float(bound.step(x, y)[0] * 2 / mu) ** 0.5 for mu in (1, 10, 100, 1000)]
    assert violation == sorted(violation, reverse=True)
    assert violation[2] / violation[3] == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (name, value, f"{name}={value} was given to MAC; give finite numbers above 0")
        for name in ("mu", "growth", "mu_limit", "coordinate_rate", "weight_rate")
        for value in (0.0, -1.0, float("nan"))
    ]
    + [
        (name, value, f"{name}={value} was given to MAC; give whole numbers")
        for name in ("every", "alternations", "coordinate_steps", "weight_steps")
        for value in (0, 1.5)
    ]
    + [("growth", 0.5, "mu never falls"), ("mu_limit", 0.5, "mu never falls")],
)
def test_numbers_out_of_range_are_refused(field, value, message):
    with pytest.raises(MethodError, match=message):
        MAC(**{field: value})


def test_a_z_step_too_short_for_the_labels_to_come_down_is_refused():
    model, x = chain(*(linear(4, 4) for _ in range(4))), draw(N, 4)
    with pytest.raises(MethodError, match="coordinate_steps=2 was given for 4 parts, expected at least 3"):
        trainer(model, ["0", "1", "2"], x, MAC(coordinate_steps=2))
    trainer(model, ["0", "1", "2"], x, MAC(coordinate_steps=3))
