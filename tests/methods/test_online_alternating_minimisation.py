"""Online alternating minimisation: codes and weights against the formulas, written out sample by sample."""

from __future__ import annotations

import pytest
import torch
from literal_oracles import draw
from torch import Tensor, nn

import modulewise as mw
from modulewise.errors import MethodError
from modulewise.methods import OnlineAlternatingMinimisation
from modulewise.methods.auxiliary.altmin_updates import altmin_codes

N = 6
MU, RATE, MOMENTUM, SPARSITY = 0.3, 0.07, 0.8, 0.05


def squared(output: Tensor, y: Tensor) -> Tensor:
    """1/(2N) sum_n ||output_n - y_n||^2."""
    return (output - y).square().sum() / (2 * len(y))


def relative(a: Tensor, b: Tensor) -> float:
    assert b.abs().max() > 0
    return float((a.detach() - b).abs().max() / b.abs().max())


WEIGHTS = (0.5 * draw(4, 5, seed=2), 0.5 * draw(3, 4, seed=3), 0.5 * draw(2, 3, seed=4))


def network() -> nn.Sequential:
    """W1 x | W2 tanh | W3 tanh: cut after the linear layers, so that codes are their outputs."""
    layers = [
        nn.Linear(5, 4, bias=False),
        nn.Tanh(),
        nn.Linear(4, 3, bias=False),
        nn.Tanh(),
        nn.Linear(3, 2, bias=False),
    ]
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for p, w in zip(model.parameters(), WEIGHTS, strict=True):
            p.copy_(w)
    return model


def literal_codes(x: Tensor, y: Tensor, steps: int, sparsity: float = SPARSITY) -> tuple[Tensor, Tensor]:
    """Both codes of every sample: the upper by the task loss, then the lower towards the upper; Nesterov's momentum."""
    w1, w2, w3 = WEIGHTS
    lower, upper = [], []
    for n in range(len(x)):
        h1 = w1 @ x[n]
        h2 = w2 @ h1.tanh()
        c2, c1 = h2, h1
        velocity = torch.zeros_like(h2)
        for _ in range(steps):
            residual = w3 @ c2.tanh() - y[n]
            slope = 1 - c2.tanh() ** 2
            gradient = 2 * (c2 - h2) + slope * (w3.T @ residual) / MU + sparsity / MU * c2.sign()
            velocity = MOMENTUM * velocity + gradient
            c2 = c2 - RATE * (gradient + MOMENTUM * velocity)
        velocity = torch.zeros_like(h1)
        for _ in range(steps):
            slope = 1 - c1.tanh() ** 2
            gradient = 2 * (c1 - h1) + 2 * slope * (w2.T @ (w2 @ c1.tanh() - c2)) + sparsity / MU * c1.sign()
            velocity = MOMENTUM * velocity + gradient
            c1 = c1 - RATE * (gradient + MOMENTUM * velocity)
        lower.append(c1)
        upper.append(c2)
    return torch.stack(lower), torch.stack(upper)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("sparsity", [0.0, SPARSITY])
def test_codes_are_those_of_the_formula(steps, sparsity):
    x, y, model = draw(N, 5, seed=1), draw(N, 2, seed=5), network()
    parts = [model[0], model[1:3], model[3:5]]
    start = [model[:1](x).detach(), model[:3](x).detach()]
    ours = altmin_codes(
        lambda part, c: parts[part](x if part == 0 else c[part - 1]),
        start,
        [[1], [2]],
        lambda out: squared(out, y),
        mu=MU,
        rate=RATE,
        momentum=MOMENTUM,
        steps=steps,
        sparsity=sparsity,
    )
    for code, literal, before in zip(ours, literal_codes(x, y, steps, sparsity), start, strict=True):
        assert relative(code, literal) < 1e-12
        assert relative(code, before) > 1e-3
        assert not code.requires_grad


def literal_gradients(x: Tensor, y: Tensor, c1: Tensor, c2: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Every part's gradient and loss at the codes: squared distances to them, and the task loss, means over samples."""
    w1, w2, w3 = WEIGHTS
    gradients, losses = [torch.zeros_like(w) for w in WEIGHTS], [torch.zeros(()).double() for _ in WEIGHTS]
    for n in range(len(x)):
        for index, (w, below, target) in enumerate(
            ((w1, x[n], c1[n]), (w2, c1[n].tanh(), c2[n]), (w3, c2[n].tanh(), y[n]))
        ):
            error, factor = w @ below - target, 1 if index == 2 else 2
            gradients[index] += factor * torch.outer(error, below) / len(x)
            losses[index] += factor * (error @ error) / (2 * len(x))
    return gradients, losses


@pytest.mark.parametrize("adam", [False, True])
def test_a_step_of_the_solver_is_the_formula(adam):
    """Codes, then each part by itself: plain gradient descent, or Adam's first step lr g / (|g| + eps)."""
    x, y, model = draw(N, 5, seed=1), draw(N, 2, seed=5), network()
    method = OnlineAlternatingMinimisation(
        mu=MU, sparsity=SPARSITY, code_steps=3, code_rate=RATE, code_momentum=MOMENTUM, weight_rate=0.05, adam=adam
    )
    trainer = mw.Trainer(mw.Partition(model, cuts=["0", "2"], example=x[:2]), method, loss=squared)
    losses = trainer.step(x, y)
    gradients, shares = literal_gradients(x, y, *literal_codes(x, y, 3))
    for part, (w, before, g) in enumerate(zip(model.parameters(), WEIGHTS, gradients, strict=True)):
        move = g / (g.abs() + 1e-8) if adam else g
        assert relative(w - before, -0.05 * move) < 1e-10
        assert float(losses[part]) == pytest.approx(float(shares[part]), rel=1e-12)


def test_weight_steps_repeat_on_the_same_codes():
    x, y, model = draw(N, 5, seed=1), draw(N, 2, seed=5), network()
    c1, c2 = literal_codes(x, y, 2, 0.0)
    method = OnlineAlternatingMinimisation(
        mu=MU, code_steps=2, code_rate=RATE, code_momentum=MOMENTUM, weight_steps=3, weight_rate=0.05, adam=False
    )
    mw.Trainer(mw.Partition(model, cuts=["0", "2"], example=x[:2]), method, loss=squared).step(x, y)
    for w, before, below, target, factor in zip(
        model.parameters(), WEIGHTS, (x, c1.tanh(), c2.tanh()), (c1, c2, y), (2, 2, 1), strict=True
    ):
        expected = before
        for _ in range(3):
            expected = expected - 0.05 * factor * (below @ expected.T - target).T @ below / N
        assert relative(w, expected) < 1e-12


def test_the_step_of_a_code_does_not_depend_on_the_batch_around_it():
    x, y, model = draw(N, 5, seed=1), draw(N, 2, seed=5), network()
    parts = [model[0], model[1:3], model[3:5]]

    def codes(rows: slice) -> list[Tensor]:
        start = [model[:1](x[rows]).detach(), model[:3](x[rows]).detach()]
        run = lambda part, c: parts[part](x[rows] if part == 0 else c[part - 1])  # noqa: E731
        task = lambda out: squared(out, y[rows])  # noqa: E731
        return altmin_codes(run, start, [[1], [2]], task, mu=MU, rate=RATE, momentum=MOMENTUM, steps=4)

    for all_of_them, alone in zip(codes(slice(None)), codes(slice(2, 3)), strict=True):
        assert relative(all_of_them[2:3], alone) < 1e-12


class Sign(torch.autograd.Function):
    """sign(h), with the gradient of the identity; notes how often that is asked for."""

    asked = 0

    @staticmethod
    def forward(ctx, h):
        return h.sign()

    @staticmethod
    def backward(ctx, gradient):
        Sign.asked += 1
        return gradient


class Step(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return Sign.apply(h)


def test_no_weight_needs_the_gradient_of_the_non_linearity_that_its_part_begins_with():
    """A network of signs trains: the surrogate gradient is asked for by steps of codes alone."""
    model = nn.Sequential(nn.Linear(5, 8), Step(), nn.Linear(8, 8), Step(), nn.Linear(8, 2)).double()
    x, y = draw(N, 5, seed=1), draw(N, 2, seed=5)
    before = [p.detach().clone() for p in model.parameters()]
    partition = mw.Partition(model, cuts=["0", "2"], example=x[:2])
    Sign.asked = 0
    mw.Trainer(partition, OnlineAlternatingMinimisation(code_steps=3, weight_steps=2), loss=squared).step(x, y)
    assert Sign.asked == 2 * 3
    assert all((p != b).any() for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (name, value, f"{name}={value} was given to OnlineAlternatingMinimisation; give finite numbers above 0")
        for name in ("mu", "code_rate", "weight_rate")
        for value in (0.0, -1.0, float("nan"), float("inf"))
    ]
    + [
        (name, value, f"{name}={value} was given to OnlineAlternatingMinimisation; give whole numbers")
        for name in ("code_steps", "weight_steps")
        for value in (0, 2.5)
    ]
    + [("sparsity", value, "give sparsity >= 0") for value in (-1.0, float("nan"))]
    + [("code_momentum", value, "0 <= code_momentum < 1") for value in (-0.1, 1.0, float("nan"))],
)
def test_numbers_out_of_range_are_refused(field, value, message):
    with pytest.raises(MethodError, match=message):
        OnlineAlternatingMinimisation(**{field: value})
