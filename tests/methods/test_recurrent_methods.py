"""Methods over time: bridged windows and targets through time against their formulas written out."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import modulewise as mw
from modulewise.methods.targets.target_prop_through_time import InverseCell
from modulewise.models import Recurrent

M = mw.methods
SYMBOLS, MOMENTS, WINDOWS = 4, 8, 4


class Memory(Recurrent):
    """Writes what it sees into its state, h + W x, and reads it off by a fixed map: only the writing is learned."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.write = nn.Linear(SYMBOLS, 6, bias=False)
        self.write.weight.data = 0.1 * torch.randn(6, SYMBOLS, generator=generator)
        self.register_buffer("read", torch.randn(SYMBOLS, 6, generator=generator))

    def window(self, moments: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        written = self.write(moments).sum(1)
        state = written if state is None else state + written
        return state @ self.read.T, state


def copy_task(generator: torch.Generator, n: int = 32) -> tuple[Tensor, Tensor]:
    """A symbol at the first moment, nothing afterwards, to be named after the last."""
    symbols = torch.randint(0, SYMBOLS, (n,), generator=generator)
    x = torch.zeros(n, MOMENTS, SYMBOLS)
    x[torch.arange(n), 0, symbols] = 1
    return x, symbols


def accuracy_after(method: mw.Method, steps: int) -> tuple[float, nn.Module]:
    generator = torch.Generator().manual_seed(1)
    model = Memory()
    partition = mw.TimePartition(model, windows=WINDOWS, example=copy_task(generator)[0])

    def optimizer(parameters) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=0.01)

    trainer = mw.Trainer(partition, method, loss=F.cross_entropy, optimizer=optimizer)
    for _ in range(steps):
        trainer.step(*copy_task(generator))
    x, y = copy_task(generator, 400)
    return float((model(x).argmax(1) == y).double().mean()), model


class TestCopyTask:
    """The gap between writing and reading, seven moments, is longer than a window, two."""

    def test_backpropagation_through_time_solves_it(self):
        assert accuracy_after(M.Backprop(), 150)[0] == 1.0

    def test_truncated_windows_cannot_and_do_not_move(self):
        accuracy, model = accuracy_after(M.SyntheticBPTT(bridged=False), 150)
        assert accuracy < 0.6
        assert torch.equal(model.write.weight, Memory().write.weight)

    def test_bridged_windows_do(self):
        assert accuracy_after(M.SyntheticBPTT(width=32), 150)[0] == 1.0

    def test_targets_through_time_do(self):
        assert accuracy_after(M.TargetPropThroughTime(), 300)[0] == 1.0


def cell(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layer = nn.RNN(3, 5, batch_first=True)
    return mw.models.RecurrentNetwork(layer, outputs=4, every=False).double()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(6, 3, 3, generator=generator, dtype=torch.float64), torch.arange(6) % 4


class Perfect(nn.Module):
    """Gives N dL/dh of the whole rest of the sequence, by running it."""

    def __init__(self, model: nn.Module, x: Tensor, part: int) -> None:
        super().__init__()
        self.rest = (model, x[:, part + 1 :])

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            h = h.detach().requires_grad_()
            output = self.rest[0].window(self.rest[1], h)[0]
            (gradient,) = torch.autograd.grad(F.cross_entropy(output, y), h)
        return gradient * len(h)


@pytest.fixture(autouse=True)
def _same_draws():
    with torch.random.fork_rng(devices=[]):
        yield


def trained(model: nn.Module, method: mw.Method, lr: float = 0.1) -> mw.Trainer:
    x, y = data()
    partition = mw.TimePartition(model, windows=3, example=x)
    trainer = mw.Trainer(partition, method, loss=F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=lr))
    trainer.step(x, y)
    return trainer


def test_a_perfect_predictor_gives_backpropagation_through_time():
    model, plain = cell(), cell()
    x, _ = data()
    trained(model, M.SyntheticBPTT(predictor=lambda site: Perfect(model, x, site.part)))
    trained(plain, M.Backprop())
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_the_bridged_step_equals_the_bootstrapped_recursion_written_out():
    """Windows x_0, x_1, x_2 with a linear guess s(h) = A h: cell, and the predictor's gradient, by hand."""
    model, plain = cell(), cell()
    torch.manual_seed(7)
    guess = nn.Linear(5, 5, bias=False).double()
    a = guess.weight.detach().clone().requires_grad_()

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(5, 5, bias=False).double()
            self.map.weight.data = guess.weight.detach().clone()

        def forward(self, h: Tensor, y: Tensor) -> Tensor:
            return self.map(h)

    trainer = trained(model, M.SyntheticBPTT(predictor=lambda site: Linear()))
    x, y = data()
    states, start = [], None
    for t in range(3):
        fed = None if start is None else start.detach().requires_grad_()
        output, after = plain.window(x[:, t : t + 1], fed)
        states.append((fed, after, output))
        start = after
    deltas: dict[int, Tensor] = {}
    for t, (fed, after, output) in enumerate(states):
        if t == 2:
            F.cross_entropy(output, y).backward()
        else:
            after.backward((after.detach() @ guess.weight.detach().T) / 6)
        if t:
            deltas[t - 1] = fed.grad
    residuals = [(states[t][1].detach() @ a.T - 6 * deltas[t]).square().sum() / 6 for t in (0, 1)]
    sum(residuals).backward()
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs - 0.1 * theirs.grad, rtol=1e-10, atol=1e-12)
        learned = next(trainer.objectives[0].parameters())
        torch.testing.assert_close(learned, a - 0.1 * a.grad, rtol=1e-10, atol=1e-12)


def test_targets_through_time_equal_the_formulas_written_out():
    """t_1 = h_1 - 0.1 N dL/dh_1, t_0 = h_0 + G(x_1, t_1) - G(x_1, h_1); cell and inverse by their squared errors."""
    model, plain = cell(), cell()
    torch.manual_seed(9)
    given = InverseCell(3, 5).double()

    def inverse(site: mw.Site) -> nn.Module:
        made = InverseCell(3, 5).double()
        made.load_state_dict(given.state_dict())
        return made

    trainer = trained(model, M.TargetPropThroughTime(inverse=inverse, noise=0.0))
    x, y = data()
    h0 = plain.window(x[:, :1], None)[1]
    fed = h0.detach()
    h1 = plain.window(x[:, 1:2], fed)[1]
    top = h1.detach().requires_grad_()
    F.cross_entropy(plain.window(x[:, 2:], top)[0], y).backward()
    t1 = (top - 0.1 * 6 * top.grad).detach()
    with torch.no_grad():
        t0 = fed + given(x[:, 1:2], t1) - given(x[:, 1:2], h1)
    ((h1 - t1).square().sum() / 6 + (h0 - t0).square().sum() / 6).backward()
    ((given(x[:, 1:2], h1.detach()) - fed).square().sum() / 6).backward()
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs - 0.1 * theirs.grad, rtol=1e-10, atol=1e-12)
        for mine, theirs in zip(trainer.objectives[1].parameters(), given.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs - 0.1 * theirs.grad, rtol=1e-10, atol=1e-12)


def test_with_an_exact_inverse_targets_are_those_of_the_closed_form():
    """A cell h -> h + x has the inverse h - x: all targets are shifted by the first one's step."""

    class Adding(Recurrent):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4, dtype=torch.float64))

        def window(self, moments: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
            added = (moments * self.scale).sum(1)
            state = added if state is None else state + added
            return state, state

    class Exact(nn.Module):
        def forward(self, moments: Tensor, h: Tensor) -> Tensor:
            return h - moments.sum(1)

    torch.manual_seed(2)
    x, y = torch.randn(5, 4, 4, dtype=torch.float64), torch.arange(5) % 4
    partition = mw.TimePartition(Adding(), windows=4, example=x)
    method = M.TargetPropThroughTime(inverse=lambda site: Exact(), step_size=0.3)
    losses = mw.Trainer(partition, method, loss=F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.0)).step(
        x, y
    )
    output = x.sum(1).requires_grad_()
    F.cross_entropy(output, y).backward()
    expected = (0.3 * 5 * output.grad).square().sum() / 5
    assert [float(losses[k]) for k in range(3)] == pytest.approx([float(expected)] * 3, rel=1e-10)


class Slots(Recurrent):
    """Its state is a matrix for every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.turn, self.head = nn.Linear(3, 3), nn.Linear(6, 4)

    def window(self, moments: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        state = moments.new_zeros(len(moments), 2, 3) if state is None else state
        for moment in moments.unbind(1):
            state = torch.tanh(self.turn(state) + moment[:, None])
        return self.head(state.flatten(1)), state


@pytest.mark.parametrize("method", [M.SyntheticBPTT(width=8), M.TargetPropThroughTime()], ids=["bptt", "tptt"])
def test_a_state_of_several_axes_is_taken(method):
    torch.manual_seed(3)
    model = Slots().double()
    before = copy.deepcopy(model)
    trainer = trained(model, method)
    assert sorted(trainer.step(*data())) == [0, 1, 2]
    assert not torch.equal(model.turn.weight, before.turn.weight)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (M.SyntheticBPTT, {"width": 0}, "width=0 was given"),
        (M.TargetPropThroughTime, {"step_size": 0.0}, "step_size=0.0"),
        (M.TargetPropThroughTime, {"noise": float("nan")}, "noise=nan"),
    ],
)
def test_numbers_out_of_range_are_refused(kind, options, message):
    with pytest.raises(mw.errors.MethodError, match=message):
        kind(**options)
