"""What every method must hold to, run on methods of this library and of anybody's own."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..method import Family, Locality, Method, Reach, Reference, SolverMethod
from ..partition.tree import tensors
from ..trainer import Trainer
from .locality import locality
from .problems import Problem, example_problem, linear_problem

__all__ = ["Check", "conformance"]


@dataclass(frozen=True)
class Check:
    """One requirement and whether it holds.

    Args:
        name: the requirement.
        passed: whether it holds.
        detail: what was seen, where it does not.
    """

    name: str
    passed: bool
    detail: str = ""


def conformance(method: Method, *, problem: Problem | None = None) -> list[Check]:
    """Run the contract suite on a method.

    Args:
        method: an instance, for 3 classes (or whatever the problem has).
        problem: a task the method can take; by default a small convolutional network, or a perceptron for a method
            with its own update.

    Returns:
        One `Check` a requirement.

    >>> import modulewise as mw
    >>> [check.name for check in mw.checks.conformance(mw.methods.Backprop()) if not check.passed]
    []
    """
    chosen = problem or (linear_problem() if isinstance(method, SolverMethod) else example_problem())
    chosen = chosen.seen(method.views)
    checks = []
    for name, requirement in _REQUIREMENTS.items():
        try:
            detail = requirement(method, chosen)
        except Exception as error:
            detail = f"{type(error).__name__}: {error}"
        checks.append(Check(name, not detail, detail))
    return checks


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def _trainer(method: Method, problem: Problem, *, whole: bool = False, **settings: Any) -> Trainer:
    partition = problem.partition(whole=whole)
    optimizer = None if isinstance(method, SolverMethod) else _sgd
    return Trainer(partition, method, loss=functional.cross_entropy, optimizer=optimizer, **settings)


def _differs(a: nn.Module, b: nn.Module) -> str:
    pairs = zip(a.state_dict().items(), b.state_dict().values(), strict=True)
    return ", ".join(name for (name, u), v in pairs if not torch.equal(u, v))


def _declared(method: Method, problem: Problem) -> str:
    if not is_dataclass(method) or not type(method).__dataclass_params__.frozen:
        return "expected a frozen dataclass of hyper-parameters"
    if not isinstance(method.family, Family) or not isinstance(method.locality, Locality):
        return "family and locality must be set"
    if not method.references or not all(isinstance(r, Reference) for r in method.references):
        return "at least one Reference is expected"
    return "" if type(method).__doc__ else "a docstring with the formula and the reference is expected"


def _learns(method: Method, problem: Problem) -> str:
    trainer = _trainer(method, problem)
    before = {name: p.detach().clone() for name, p in trainer.partition.model.named_parameters()}
    for _ in range(3):
        losses = trainer.step(problem.x, problem.y, views=problem.views)
    if sorted(losses) != list(range(len(trainer.partition))):
        return f"losses for parts {sorted(losses)}, expected one for each of {len(trainer.partition)}"
    if not all(bool(torch.isfinite(loss)) and not loss.requires_grad for loss in losses.values()):
        return "losses must be finite and detached"
    named = dict(trainer.partition.model.named_parameters())
    still = [
        name for part in trainer.partition.parts for name in part.parameter_names if named[name].equal(before[name])
    ]
    return f"parameters never move: {still}" if still else ""


def _repeats(method: Method, problem: Problem) -> str:
    models = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        trainer = _trainer(method, problem)
        for _ in range(2):
            torch.rand(disturbance)
            trainer.step(problem.x, problem.y, views=problem.views)
        models.append(trainer.partition.model)
    return _differs(*models)


def _quiet(method: Method, problem: Problem) -> str:
    trainer = _trainer(method, problem)
    state = torch.get_rng_state()
    trainer.step(problem.x, problem.y, views=problem.views)
    return "" if torch.equal(state, torch.get_rng_state()) else "the default generator has moved"


def _untouched(method: Method, problem: Problem) -> str:
    model = problem.model()
    reference = problem.model()
    identities = {name: id(p) for name, p in model.named_parameters()}
    partition = problem.partition(model)
    optimizer = None if isinstance(method, SolverMethod) else _sgd
    trainer = Trainer(partition, method, loss=functional.cross_entropy, optimizer=optimizer)
    trainer.step(problem.x, problem.y, views=problem.views)
    if {name: id(p) for name, p in model.named_parameters()} != identities:
        return "parameter names or identities have changed"
    if list(model.state_dict()) != list(reference.state_dict()):
        return "state_dict keys have changed"
    for (name, a), b in zip(model.named_modules(), reference.modules(), strict=True):
        if set(a.__dict__) != set(b.__dict__):
            return f"module {name!r} keeps {sorted(set(a.__dict__) ^ set(b.__dict__))}"
        if a._forward_hooks or a._forward_pre_hooks or a._backward_hooks:
            return f"module {name!r} keeps a hook"
    left = [name for name, p in model.named_parameters() if p.grad is not None]
    return f"gradients are left on {left}" if left else ""


def _forgets(method: Method, problem: Problem) -> str:
    trainer = _trainer(method, problem)
    under_way = max((objective.delay for objective in trainer.objectives), default=0)
    for _ in range(1 + under_way):
        trainer.step(problem.x, problem.y, views=problem.views)
    before = _with_graph()
    trainer.step(problem.x, problem.y, views=problem.views)
    after = _with_graph()
    # Batches under way have their graphs, as many after a step as before it.
    fresh = len(after) - len(before) if under_way else len(after - before)
    return f"{fresh} tensors with a graph outlive the step" if fresh else ""


def _with_graph() -> set[int]:
    gc.collect()
    return {id(o) for o in gc.get_objects() if issubclass(type(o), Tensor) and o.grad_fn is not None}


def _resumes(method: Method, problem: Problem) -> str:
    straight = _trainer(method, problem)
    for _ in range(4):
        straight.step(problem.x, problem.y, views=problem.views)
    first, second = _trainer(method, problem), _trainer(method, problem)
    for _ in range(2):
        first.step(problem.x, problem.y, views=problem.views)
    with tempfile.TemporaryDirectory() as folder:
        first.save(folder)
        second.load(folder)
    for _ in range(2):
        second.step(problem.x, problem.y, views=problem.views)
    return _differs(straight.partition.model, second.partition.model)


def _end_to_end(method: Method, problem: Problem) -> str:
    """With one part a local method is E2EBP: the last part minimises the task loss."""
    if isinstance(method, SolverMethod) or method.locality.reach in (Reach.TARGETS, Reach.DELAYED):
        return ""
    trainer = _trainer(method, problem, whole=True)
    plain = _plain(problem, trainer.seed)
    for _ in range(3):
        trainer.step(problem.x, problem.y, views=problem.views)
    if any(o.rule is not None for o in trainer.objectives):
        return ""
    return _differs(trainer.partition.model, plain)


def _plain(problem: Problem, seed: int, steps: int = 3) -> nn.Module:
    """End-to-end backpropagation in plain torch, seeded where a partition of one part is."""
    from ..seeding import seed_of, set_generators

    model = problem.model()
    optimizer = _sgd(model.parameters())
    with torch.random.fork_rng(devices=[]):
        for step in range(steps):
            set_generators(seed_of(seed, step, 0))
            loss = functional.cross_entropy(model(problem.x), problem.y.repeat(problem.views))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def _frozen(method: Method, problem: Problem) -> str:
    if isinstance(method, SolverMethod):
        return ""
    trainer = _trainer(method, problem)
    for parameter in trainer.partition.part(0).parameters():
        parameter.requires_grad_(False)
    fresh = Trainer(trainer.partition, method, loss=functional.cross_entropy, optimizer=_sgd)
    before = [p.clone() for p in fresh.partition.part(0).parameters()]
    fresh.step(problem.x, problem.y, views=problem.views)
    after = list(fresh.partition.part(0).parameters())
    return "" if all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) else "frozen parameters moved"


def _audited(method: Method, problem: Problem) -> str:
    report = locality(_trainer(method, problem), problem.x, problem.y, views=problem.views)
    return "" if report.ok else str(report)


def _lower_precision(method: Method, problem: Problem) -> str:
    if isinstance(method, SolverMethod):
        return ""
    trainer = _trainer(method, problem, precision=torch.bfloat16)
    losses = trainer.step(problem.x, problem.y, views=problem.views)
    good = all(bool(torch.isfinite(t)) for loss in losses.values() for t in tensors(loss))
    return "" if good else "a loss is not finite in bfloat16"


_REQUIREMENTS: dict[str, Callable[[Method, Problem], str]] = {
    "is a frozen dataclass with family, locality and references": _declared,
    "every part learns and reports a finite detached loss": _learns,
    "equal seeds give equal numbers whatever the caller draws": _repeats,
    "the caller's generator is left where it was": _quiet,
    "the user's model keeps its keys, identities and hooks": _untouched,
    "no graph outlives the step": _forgets,
    "saved and resumed equals straight on": _resumes,
    "one part equals end-to-end backpropagation": _end_to_end,
    "a frozen part does not move": _frozen,
    "the declared locality holds": _audited,
    "a step in bfloat16 works": _lower_precision,
}
