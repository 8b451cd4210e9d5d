"""The locality audit: intervene on one part, run a step, see which parts' updates change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..method import Locality, Reach
from ..objective import Context, Signal
from ..trainer import Trainer
from .state import Snapshot

__all__ = ["LocalityReport", "locality"]

Influence = Mapping[tuple[int, int], frozenset[str]]


@dataclass(frozen=True)
class LocalityReport:
    """What an audit found.

    Args:
        declared: the locality that the trainer states.
        observed: the locality seen; None for a method with its own update, whose parts cannot be told apart.
        influence: for every (changed part, part whose update changed), which changes did it: `loss`, `labels`, `head`
            of any other part, `weights` of a later one.
        violations: why declared and observed disagree, one line each.
    """

    declared: Locality
    observed: Reach | None
    influence: Influence
    violations: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the declaration holds."""
        return not self.violations

    def __str__(self) -> str:
        observed = "not audited" if self.observed is None else self.observed.value
        return f"declared {self.declared}, observed {observed}" + "".join(f"; {v}" for v in self.violations)


def locality(trainer: Trainer, x: Any, y: Any, *, views: int = 1) -> LocalityReport:
    """Audit a trainer by intervention; its state is as before afterwards.

    From one saved state, after one step of warming up, the loss, the labels, the head or the weights of part j are
    changed and a step is run. An update of part k != j that changes is an influence of j on k. Weights of part j change
    what later parts receive in any method, so of them only influence on earlier parts counts.

    Args:
        trainer: with a partition of K parts.
        x: input (views N, ...).
        y: labels (N, ...), of at least two classes.
        views: views of every sample stacked along the batch of x.

    >>> import modulewise as mw
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> trainer = mw.Trainer(
    ...     mw.Partition(model, cuts=["1"], example=torch.randn(2, 4)),
    ...     mw.methods.Backprop(),
    ...     loss=torch.nn.functional.cross_entropy,
    ...     optimizer=torch.optim.SGD,
    ... )
    >>> print(mw.checks.locality(trainer, torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])))
    declared global, observed global
    """
    if trainer.solver is not None:
        return LocalityReport(trainer.locality, None, {}, ())
    start = Snapshot(trainer)
    try:
        for _ in range(_window(trainer)):
            trainer.step(x, y, views=views)
        warm = Snapshot(trainer)
        base = _updates(trainer, x, y, views, nullcontext())
        influence: dict[tuple[int, int], set[str]] = {}
        for changed in range(len(trainer.partition)):
            for kind, intervention in _INTERVENTIONS.items():
                warm.restore()
                updates = _updates(trainer, x, y, views, intervention(trainer, changed))
                for part, (a, b) in enumerate(zip(base, updates, strict=True)):
                    counts = part < changed if kind == "weights" else part != changed
                    if counts and not _same(a, b):
                        influence.setdefault((changed, part), set()).add(kind)
        return _judge(trainer, {pair: frozenset(kinds) for pair, kinds in influence.items()})
    finally:
        start.restore()


def _window(trainer: Trainer) -> int:
    """Steps in which whatever is going to influence a part has done so."""
    return 1 + max((objective.delay for objective in trainer.objectives), default=0)


def _owned(trainer: Trainer, part: int) -> list[Tensor]:
    return [*trainer.partition.part(part).parameters(), *trainer.objectives[part].parameters()]


def _updates(
    trainer: Trainer, x: Any, y: Any, views: int, intervention: AbstractContextManager[None]
) -> list[list[Tensor]]:
    """By how much every part's parameters move under an intervention, and the gradients left for the next step.

    A leak may come too late for this step's update: its gradient then lies in wait on the parameters.
    """
    parts = range(len(trainer.partition))
    with intervention:
        before = [[t.detach().clone() for t in _owned(trainer, part)] for part in parts]
        for _ in range(_window(trainer)):
            trainer.step(x, y, views=views)
        moves = [[t.detach() - b for t, b in zip(_owned(trainer, part), before[part], strict=True)] for part in parts]
    return [moves[part] + [t.grad for t in _owned(trainer, part) if t.grad is not None] for part in parts]


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(u, v) for u, v in zip(a, b, strict=True))


@contextmanager
def _other_loss(trainer: Trainer, part: int) -> Iterator[None]:
    def scaled(_: Any, __: Any, signal: Signal) -> Signal:
        loss = None if signal.loss is None else 3 * signal.loss
        return replace(signal, loss=loss, gradient=None if signal.gradient is None else 3 * signal.gradient)

    handle = trainer.objectives[part].register_forward_hook(scaled)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _other_labels(trainer: Trainer, part: int) -> Iterator[None]:
    objective = trainer.objectives[part]

    def relabelled(function: Callable[[Context], Any]) -> Callable[[Context], Any]:
        def call(context: Context) -> Any:
            y = context.y
            return function(replace(context, y=y.roll(1, 0) if isinstance(y, Tensor) else y))

        return call

    names = ("forward", "messages", "hear", "rehearse", "rehearsed")
    try:
        for name in names:
            objective.__dict__[name] = relabelled(getattr(objective, name))
        yield
    finally:
        for name in names:
            objective.__dict__.pop(name, None)


@contextmanager
def _moved(tensors: list[Tensor]) -> Iterator[None]:
    with torch.no_grad():
        for tensor in tensors:
            if tensor.is_floating_point():
                tensor.mul_(1.25).add_(0.01)
    yield


def _other_head(trainer: Trainer, part: int) -> AbstractContextManager[None]:
    return _moved([*trainer.objectives[part].parameters(), *trainer.objectives[part].buffers()])


def _other_weights(trainer: Trainer, part: int) -> AbstractContextManager[None]:
    return _moved(list(trainer.partition.part(part).parameters()))


_INTERVENTIONS: dict[str, Callable[[Trainer, int], AbstractContextManager[None]]] = {
    "loss": _other_loss,
    "labels": _other_labels,
    "head": _other_head,
    "weights": _other_weights,
}


def _judge(trainer: Trainer, influence: Influence) -> LocalityReport:
    declared, parts = trainer.locality, len(trainer.partition)
    signals = {pair for pair, kinds in influence.items() if kinds - {"weights"}}
    weights = {pair for pair, kinds in influence.items() if "weights" in kinds} - signals
    observed = _observed(trainer, signals, bool(weights))
    violations = []
    reach = declared.reach
    if reach in (Reach.STRICT, Reach.PORT):
        # With messages a part may read what an earlier one sends along with its output; nothing comes back down.
        sent = {(a, b) for a, b in signals if declared.messages and a < b}
        violations += [_sentence(pair, influence[pair]) for pair in sorted(signals - sent)]
    if reach is Reach.STRICT:
        violations += [_sentence(pair, influence[pair]) for pair in sorted(weights)]
    if reach is Reach.PORT and not weights and not trainer.partition.ports and not signals and parts > 1:
        violations.append("no part reads a neighbour: it is strict")
    if reach is Reach.WINDOW:
        violations += [_sentence(p, influence[p]) for p in sorted(signals) if abs(p[0] - p[1]) >= declared.window]
    if declared.sends_feedback and not signals and parts > 1:
        violations.append(f"no part's signal reaches another: it is {observed.value}, not {declared}")
    if reach in (Reach.GLOBAL, Reach.DELAYED) and signals:
        trained = _trained(trainer)
        violations += [f"part {k} does not learn from the last part" for k in trained if (parts - 1, k) not in signals]
    return LocalityReport(declared, observed, influence, tuple(violations))


def _observed(trainer: Trainer, signals: set[tuple[int, int]], weights: bool) -> Reach:
    declared, last = trainer.locality, len(trainer.partition) - 1
    if signals and declared.messages and all(a < b for a, b in signals):
        return Reach.PORT
    if not signals:
        if last == 0:
            return declared.reach
        return Reach.PORT if weights or trainer.partition.ports else Reach.STRICT
    if declared.reach is Reach.WINDOW and all(abs(a - b) < declared.window for a, b in signals):
        return Reach.WINDOW
    if declared.reach in (Reach.TARGETS, Reach.GRADIENTS, Reach.DELAYED):
        return declared.reach
    return Reach.GLOBAL if all((last, part) in signals for part in _trained(trainer)) else Reach.GRADIENTS


def _trained(trainer: Trainer) -> list[int]:
    """The parts before the last with parameters to train: of windows of time the first, which stands for all."""
    parts = [trainer.partition.part(part) for part in range(len(trainer.partition) - 1)]
    return [part.index for part in parts if any(p.requires_grad for p in part.parameters())]


def _sentence(pair: tuple[int, int], kinds: frozenset[str]) -> str:
    return f"the {' and '.join(sorted(kinds))} of part {pair[0]} changes the update of part {pair[1]}"
