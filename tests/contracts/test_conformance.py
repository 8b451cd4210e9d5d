"""Every method of the library through the contract suite, and no two methods the same."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import MISSING, fields
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import modulewise as mw
from modulewise.checks import Problem, conformance, example_problem, linear_problem, recurrent_problem
from modulewise.checks.conformance import _REQUIREMENTS
from modulewise.method import Method, SolverMethod

CLASSES = 3
ARGUMENTS: dict[str, Any] = {
    "classes": CLASSES,
    "outputs": CLASSES,
    "method": mw.methods.DGL(classes=CLASSES),
}
# The same updates by design: they differ in what is kept for the backward, which no update shows.
EQUAL_BY_DESIGN = {frozenset({"Backprop", "Checkpointed"})}


def gated_problem() -> Problem:
    """A gated linear network of three parts; 3 classes."""

    def make() -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return mw.models.gln((1, 2, 3), CLASSES, widths=(4, 3), contexts=2)

    x = torch.randn(12, 1, 2, 3, generator=torch.Generator().manual_seed(11))
    return Problem(make, ("layer1", "layer2"), x, torch.arange(12) % CLASSES)


def leaky_problem() -> Problem:
    """A perceptron whose parts above the first have exact inverses; 3 classes."""

    def make() -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            hidden = [torch.nn.Sequential(torch.nn.Linear(n, 8), torch.nn.LeakyReLU(0.1)) for n in (5, 8)]
            return torch.nn.Sequential(*hidden, torch.nn.Linear(8, CLASSES))

    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(11))
    return Problem(make, ("0", "1"), x, torch.arange(12) % CLASSES)


# Methods that train a model of their own and take no other.
PROBLEMS = {
    "SyntheticBPTT": recurrent_problem,
    "TargetPropThroughTime": recurrent_problem,
    "GatedLinearNetwork": gated_problem,
    "GaitProp": leaky_problem,
}


def make(name: str) -> Method:
    """The method with its defaults; what every method needs to know of the task is given by name."""
    kind = getattr(mw.methods, name)
    required = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING and f.init}
    assert required <= set(ARGUMENTS), f"{name} needs {required - set(ARGUMENTS)}: name it in ARGUMENTS"
    return kind(**{f.name: ARGUMENTS[f.name] for f in fields(kind) if f.name in ARGUMENTS})


@pytest.mark.parametrize("name", mw.methods.__all__)
def test_every_method_meets_every_requirement(name):
    checks = conformance(make(name), problem=PROBLEMS[name]() if name in PROBLEMS else None)
    assert [check.name for check in checks] == list(_REQUIREMENTS)
    assert {check.name: check.detail for check in checks if not check.passed} == {}


@pytest.mark.parametrize("name", mw.methods.__all__)
def test_supervised_methods_take_as_many_views_as_the_caller_stacks(name):
    """Two views of every sample are a batch of twice as many samples with labels, unless the method compares views."""
    method = make(name)
    if isinstance(method, SolverMethod) or method.views > 1 or method.makes_views:
        pytest.skip(f"{name} decides itself what a view is")
    problem, states = PROBLEMS.get(name, example_problem)().seen(2), []
    for y, views in ((problem.y, 2), (problem.y.repeat(2), 1)):
        partition = problem.partition()
        trainer = mw.Trainer(partition, method, loss=F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.01))
        trainer.step(problem.x, y, views=views)
        states.append(partition.model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


def moved(name: str, problem: Problem) -> torch.Tensor:
    """What three steps do to the parameters of a problem's model."""
    method, model = make(name), problem.model()
    problem = problem.seen(method.views)
    optimizer = None if isinstance(method, SolverMethod) else lambda p: torch.optim.SGD(p, lr=0.01)
    trainer = mw.Trainer(problem.partition(model), method, loss=F.cross_entropy, optimizer=optimizer)
    for _ in range(3):
        trainer.step(problem.x, problem.y, views=problem.views)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture(scope="module")
def updates() -> dict[str, dict[str, torch.Tensor]]:
    """What every method does to a perceptron and to a convolutional network, where it takes them."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name in mw.methods.__all__:
        found[name] = {}
        for problem in (linear_problem, example_problem, recurrent_problem):
            with suppress(mw.errors.MethodError):
                found[name][problem.__name__] = moved(name, problem())
    return found


@pytest.mark.parametrize("pair", list(combinations(mw.methods.__all__, 2)), ids="-".join)
def test_no_two_methods_have_equal_updates(updates, pair):
    """Methods with equal updates would be one method with two settings."""
    first, second = updates[pair[0]], updates[pair[1]]
    common = first.keys() & second.keys()
    if not common:
        pytest.skip(f"no model that both take: {pair[0]} {sorted(first)}, {pair[1]} {sorted(second)}")
    equal = all(torch.allclose(first[key], second[key], rtol=1e-6, atol=1e-8) for key in common)
    assert equal == (frozenset(pair) in EQUAL_BY_DESIGN)


def test_nearly_every_method_takes_both_models(updates):
    """The comparison above would say nothing of methods that take neither."""
    assert {name for name, found in updates.items() if not found} <= set(PROBLEMS)


@pytest.mark.parametrize("problem", [example_problem, linear_problem, gated_problem])
def test_a_problem_is_the_same_every_time(problem):
    a, b = problem(), problem()
    assert torch.equal(a.x, b.x)
    pairs = zip(a.model().state_dict().values(), b.model().state_dict().values(), strict=True)
    assert all(torch.equal(u, v) for u, v in pairs)


class _Wrong(mw.Objective):
    """Breaks several requirements at once: no part but the last learns, and graphs are kept."""

    kept: list[torch.Tensor] = []  # noqa: RUF012 - shared on purpose: that is the leak

    def __init__(self, site: mw.Site) -> None:
        super().__init__()
        self.loss, self.last = site.loss, site.last

    def forward(self, context: mw.Context) -> mw.Signal:
        self.kept.append(context.h_out)
        return mw.Signal(loss=self.loss(context.h_out, context.y) if self.last else context.h_out.square().mean() * 0)


class Wrong(mw.PartwiseMethod):
    family, locality = mw.Family.PROXY, mw.Locality(mw.Reach.STRICT)
    references = ()

    def objective(self, site: mw.Site) -> mw.Objective:
        return _Wrong(site)


def test_the_suite_fails_a_method_that_breaks_its_contract():
    failed = {check.name for check in conformance(Wrong()) if not check.passed}
    assert failed == {
        "is a frozen dataclass with family, locality and references",
        "every part learns and reports a finite detached loss",
        "no graph outlives the step",
    }


class WrongAlone(Wrong):
    """The last part minimises twice the task loss, so that one part is not end-to-end backpropagation."""

    def objective(self, site: mw.Site) -> mw.Objective:
        objective = _Wrong(site)
        objective.loss = lambda output, y: 2 * site.loss(output, y)
        return objective


def test_the_suite_sees_that_one_part_is_not_end_to_end():
    failed = {check.name for check in conformance(WrongAlone()) if not check.passed}
    assert "one part equals end-to-end backpropagation" in failed
