"""Run one step over a partition in this process: each part learns as soon as it can, then forgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..objective import Context, Role, Signal
from ..partition.tapping import tapped
from ..partition.tree import tensors
from ..seeding import seed_of, set_generators
from .delaying import WeightCopies, due
from .local import LocalEngine, Micro
from .rehearsing import rehearse
from .updating import scale_gradients

__all__ = ["Session"]


class Session:
    """One batch on its way through the parts, and the messages on their way back.

    Args:
        engine: what to run on.
        x: input (N, ...), tuple or mapping.
        y: labels (N,), (N, T) or (N, H, W).
        views: views stacked along the batch.
        step: index of the training step, as shown to objectives and in errors.
        boundaries: boundaries at hand already, by index, where parts below are not to run.
        micro: which slice of the step this batch is.
    """

    def __init__(
        self,
        engine: LocalEngine,
        x: Any,
        y: Any,
        *,
        views: int = 1,
        step: int = 0,
        boundaries: Mapping[int, Tensor] | None = None,
        micro: Micro | None = None,
    ) -> None:
        self.engine, self.x, self.y, self.views = engine, x, y, views
        self.step, self.micro = step, micro or Micro(draw=step)
        self.device = tensors(x)[0].device.type
        self.plans = engine.partition.plans(x)
        self.readers = {index: part for part, plan in enumerate(self.plans) for index in plan.reads}
        self.boundaries: dict[int, Tensor] = dict(boundaries or {})
        self.dtypes: dict[int, torch.dtype] = {index: h.dtype for index, h in self.boundaries.items()}
        self.mail: dict[int, dict[int, Any]] = {}
        self.waiting: dict[int, tuple[dict[int, Tensor], Any]] = {}
        self.inputs: dict[int, dict[int, Tensor]] = {}
        self.weights: dict[int, WeightCopies] = {}
        self.hearing: dict[int, Context] = {}
        self.taps: dict[int, dict[str, tuple[Any, Any]]] = {}
        self.losses: dict[int, Tensor] = {}

    def up(self, part: int) -> None:
        """Run a part; let it learn unless it waits for messages."""
        objective = self.engine.objectives[part]
        fed = {index: self._leaf(index, objective.reads_input_gradient) for index in self.plans[part].reads}
        keep = not (objective.waits and objective.recompute)
        with torch.set_grad_enabled(keep), self._stale(part) if keep else nullcontext():
            h_out = self.run(part, fed)
        if part < len(self.engine.partition) - 1:
            self.boundaries[part], self.dtypes[part] = h_out.detach(), h_out.dtype
            if self.engine.crossed is not None:
                self.engine.crossed(self, part)
        if objective.waits:
            self.waiting[part] = (fed, h_out if keep else None)
            self.inputs[part] = fed
        else:
            self._learn(part, fed, h_out)
        del h_out
        self._forget(part)

    def down(self) -> None:
        """Deliver what waits, from the top part down, and end the step."""
        rehearse(self)
        if any(self.engine.objectives[part].delay for part in self.waiting):
            self.engine.pending.append(self)
        for part in sorted(self.waiting, reverse=True):
            session = due(self.engine, self, part)
            if session is not None:
                session._catch_up(part)
                self.losses.setdefault(part, session.losses[part])
        self.engine.pending = [session for session in self.engine.pending if session.waiting]
        self.inputs.clear()
        if self.micro.last:
            self.engine.updater.finish(self.step)

    def rejoin(self, part: int, fed: dict[int, Tensor], values: Sequence[Tensor]) -> None:
        """Let a part wait again after a checkpoint; its graph is made anew with the weights it had."""
        objective = self.engine.objectives[part]
        self.boundaries.update(fed)
        fed = {index: self._leaf(index, objective.reads_input_gradient) for index in fed}
        self.boundaries.clear()
        h_out = None
        if not objective.recompute:
            with torch.enable_grad(), self._stale(part, values), self.weights[part].lent():
                h_out = self.run(part, fed, recomputing=True)
        self.waiting[part] = (fed, h_out)

    def _stale(self, part: int, values: Sequence[Tensor] | None = None) -> AbstractContextManager[object]:
        """Keep copies of the weights in the graph of a part that learns when they will have changed."""
        if self.engine.objectives[part].delay == 0:
            return nullcontext()
        self.weights[part] = WeightCopies(list(self.engine.partition.part(part).parameters()), values)
        return self.weights[part].kept()

    def _catch_up(self, part: int) -> None:
        """Let a part learn from its messages, which have all arrived."""
        fed, h_out = self.waiting.pop(part)
        if h_out is None:
            with torch.enable_grad():
                h_out = self.run(part, fed, recomputing=True)
        self._learn(part, fed, h_out)
        self.weights.pop(part, None)

    def _leaf(self, index: int, reads_gradient: bool) -> Tensor:
        """A boundary without its graph; in half precision a wide copy, whose gradient is unscaled without underflow."""
        h = self.boundaries[index].detach()
        if reads_gradient and self.engine.precision is torch.float16:
            h = h.float()
        return h.requires_grad_(reads_gradient)

    def run(self, part: int, fed: Mapping[int, Tensor], *, recomputing: bool = False, again: bool = False) -> Any:
        """A part's output from the boundaries it reads; `again` leaves its taps alone."""

        def enter(index: int) -> None:
            set_generators(seed_of(self.engine.seed, self.micro.draw, index))

        names = () if again else self.engine.objectives[part].taps
        modules = {name: self.engine.partition.module(name) for name in names}
        with self.engine.rule(part), self.engine.autocast(self.device), tapped(modules) as seen:
            if not again:
                self.taps[part] = seen
            return self.engine.partition.run(
                part,
                self.x,
                {index: h.to(self.dtypes[index]) for index, h in fed.items()},
                enter=enter,
                recomputing=recomputing,
                calls=self.engine.calls[part],
                plan=self.plans[part],
                piecewise=self.engine.recompute,
            )

    def _learn(self, part: int, fed: dict[int, Tensor], h_out: Any) -> None:
        engine, objective = self.engine, self.engine.objectives[part]
        context = self.context(part, fed, h_out, self.mail.pop(part, {}), self.taps.pop(part, {}))
        overlaps = objective.overlaps and part < len(engine.partition) - 1
        set_generators(seed_of(engine.seed, self.micro.draw, part, "objective"))
        with engine.autocast(self.device):
            signal = objective(context)
        finite = self.note(part, signal)
        self.backward(part, signal, context, tuple(fed.values()), keep=overlaps)
        with engine.autocast(self.device):
            messages = objective.messages(context)
        for receiver, message in messages.items():
            self.mail.setdefault(receiver, {})[part] = message
        if objective.hears or overlaps:
            kept = h_out if overlaps else h_out.detach()
            self.hearing[part] = replace(context, h_out=kept, feedback={}, taps={})
        del context, signal, h_out, messages
        if self.micro.last and not overlaps:
            self._update(part, (Role.PART, objective.role), finite)
        self.hear(part)

    def hear(self, learned: int) -> None:
        """Let earlier parts hear, all of whose readers have learned now that part `learned` has."""
        for earlier in sorted(self.hearing, reverse=True):
            # Every reader of a boundary may send a message about it, and the last one is the last to do so.
            if self.readers[earlier] <= learned:
                self._hear(earlier)

    def context(
        self,
        part: int,
        fed: Mapping[int, Tensor],
        h_out: Any,
        feedback: Mapping[int, Any],
        taps: Mapping[str, tuple[Any, Any]],
    ) -> Context:
        """What a part's objective may look at."""

        def run(h: Any) -> Any:
            x, given = (h, fed) if part == 0 else (self.x, {**fed, part - 1: h})
            session = self if part else Session(self.engine, x, self.y, step=self.step, micro=self.micro)
            return session.run(part, given, recomputing=True, again=True)

        return Context(
            h_in=fed[part - 1] if part else self.x,
            h_out=h_out,
            x=self.x,
            y=self.engine.partition.labels(part, self.y),
            views=self.views,
            part=part,
            step=self.step,
            feedback=feedback,
            ports={index: h for index, h in fed.items() if index != part - 1},
            run=run,
            taps=taps,
            ahead=partial(self._ahead, part) if self.engine.objectives[part].looks_ahead else None,
        )

    def _ahead(self, part: int, h_out: Any) -> Any:
        """The model's output from another boundary on; what later parts read besides is as it was."""
        passed = {part: h_out}
        for later in range(part + 1, len(self.engine.partition)):
            fed = {index: passed.get(index, h.detach()) for index, h in self.inputs[later].items()}
            passed[later] = self.run(later, fed, recomputing=True, again=True)
        return passed[len(self.engine.partition) - 1]

    def note(self, part: int, signal: Signal, *, shows: bool = True) -> Tensor | None:
        """Show a part's loss and look whether it is finite."""
        shown, updater = signal.shown(), self.engine.updater
        # An overflow of scaled gradients is the scaler's to see: it leaves the step out and lowers the scale.
        scaled = signal.loss is None and updater.scaler(part, self.device) is not None
        finite = None if scaled else updater.check(part, self.step, shown)
        if shows:
            self.losses.setdefault(part, shown)
        return finite

    def backward(
        self,
        part: int,
        signal: Signal,
        context: Context,
        fed: tuple[Tensor, ...],
        *,
        keep: bool = False,
        into: Sequence[Tensor] | None = None,
    ) -> None:
        """Differentiate the signal now, outside any forward, so that the graph goes before the next part runs."""
        roots: list[Tensor] = []
        gradients: list[Tensor | None] = []
        scaler = self.engine.updater.scaler(part, self.device)
        scale = scaler.scale(torch.ones((), device=self.device)) if scaler is not None else None
        if signal.loss is not None and signal.loss.requires_grad:
            roots.append(signal.loss)
            gradients.append(None if scale is None else scale.to(signal.loss.dtype))
        if signal.gradient is not None and context.h_out.requires_grad:
            roots.append(context.h_out)
            gradients.append(signal.gradient if scale is None else signal.gradient * scale)
        if into is None and (factor := self.micro.factor(part)) != 1.0:
            for role in (Role.PART, self.engine.objectives[part].role):
                scale_gradients(self.engine.updater.parameters(part, role), factor)
        if roots and into != []:
            # Whatever the backward runs again is run with the weights that its graph was made with.
            with self.weights[part].lent() if part in self.weights else nullcontext():
                torch.autograd.backward(roots, gradients, retain_graph=keep, inputs=into)
        if scale is not None:
            for leaf in fed:
                if leaf.grad is not None:
                    leaf.grad /= scale

    def _update(self, part: int, roles: tuple[Role, ...], finite: Tensor | None) -> None:
        engine, updater, rule = self.engine, self.engine.updater, self.engine.objectives[part].rule
        # The first window of time, which learns last where windows wait, stands for all.
        owner = 0 if engine.partition.shared else part
        for role in roles if self.micro.weight != 1.0 else ():
            scale_gradients(updater.summed(part, role), self.micro.weight)
        if engine.reduced is not None:
            engine.reduced([parameter for role in roles for parameter in updater.summed(part, role)])
        if rule is not None and Role.PART in roles and part == owner:
            set_generators(seed_of(engine.seed, self.micro.draw, part, "rule"))
            rule.learn(engine.modules(part))
        updater.update(owner, roles, finite)

    def _hear(self, part: int) -> None:
        objective = self.engine.objectives[part]
        if part not in self.mail and not objective.overlaps:
            return
        context = replace(self.hearing.pop(part), feedback=self.mail.pop(part, {}))
        set_generators(seed_of(self.engine.seed, self.micro.draw, part, "hear"))
        with self.engine.autocast(self.device):
            signal = objective.hear(context)
        if signal is None and not objective.overlaps:
            return
        if signal is None:
            signal = Signal(report=self.losses[part])
        finite = self.note(part, signal)
        self.backward(part, signal, context, ())
        if self.micro.last:
            self._update(part, (Role.PART, objective.role) if objective.overlaps else (objective.role,), finite)

    def _forget(self, part: int) -> None:
        """Let go of boundaries that no later part reads."""
        for index in [index for index in self.boundaries if self.readers[index] <= part]:
            del self.boundaries[index]
