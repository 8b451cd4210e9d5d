"""Drive objectives by hand, in the order that the contract of `Objective` gives: the smallest possible engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from modulewise.method import PartwiseMethod
from modulewise.objective import Context, Objective, Signal, Site
from modulewise.partition.boundary import Boundary

Ports = Mapping[int, Sequence[int]]


@dataclass
class Drive:
    """What one step did; gradients are left on the parameters, nothing is stepped."""

    signals: dict[int, Signal] = field(default_factory=dict)
    messages: dict[int, Mapping[int, Any]] = field(default_factory=dict)
    heard: dict[int, Signal] = field(default_factory=dict)
    contexts: dict[int, Context] = field(default_factory=dict)


def sites(
    parts: Sequence[nn.Module], x: Any, loss: Callable[..., Tensor], *, ports: Ports | None = None, axis: int = 1
) -> list[Site]:
    """A site for every part, its boundaries read off a forward pass."""
    boundaries: list[Boundary] = []
    with torch.no_grad():
        hs: list[Tensor] = []
        h = x
        for k, part in enumerate(parts[:-1]):
            h = part(h, *[hs[j] for j in (ports or {}).get(k, ())])
            hs.append(h)
            boundaries.append(Boundary(str(k), tuple(h.shape), h.dtype, axis))
    inputs: list[Boundary | None] = [None, *boundaries]
    outputs: list[Boundary | None] = [*boundaries, None]
    return [Site(k, len(parts), inputs[k], outputs[k], loss) for k in range(len(parts))]


def objectives_of(method: PartwiseMethod, at: Sequence[Site], *, seed: int = 0) -> list[Objective]:
    """Every part's objective, constructed from a seed of its own."""
    made = []
    for site in at:
        torch.manual_seed(seed + site.part)
        made.append(method.objective(site))
    return made


def drive(
    parts: Sequence[nn.Module],
    objectives: Sequence[Objective],
    x: Any,
    y: Any,
    *,
    ports: Ports | None = None,
    seed: int = 0,
) -> Drive:
    """One step: up through the parts, then down through those that waited."""
    done = Drive()
    waiting: dict[int, tuple[Context, Callable[[], Any]]] = {}
    below: list[Any] = [x]
    feedback: dict[int, dict[int, Any]] = {k: {} for k in range(len(parts))}

    def run(k: int, h: Any, read: Mapping[int, Tensor]) -> Any:
        rule = objectives[k].rule
        torch.manual_seed(seed + k)
        with rule.installed(parts[k].named_modules()) if rule else nullcontext():
            return parts[k](h, *read.values())

    def learn(k: int, context: Context) -> None:
        signal = objectives[k](context)
        done.signals[k], done.contexts[k] = signal, context
        roots = [(signal.loss, None)] if signal.loss is not None else []
        roots += [(context.h_out, signal.gradient)] if signal.gradient is not None else []
        torch.autograd.backward([root for root, _ in roots], [gradient for _, gradient in roots])
        done.messages[k] = objectives[k].messages(context)
        for receiver, payload in done.messages[k].items():
            assert 0 <= receiver < k
            feedback[receiver][k] = payload

    for k, objective in enumerate(objectives):
        h_in = below[k]
        read = {j: below[j + 1].detach() for j in (ports or {}).get(k, ())}
        if k > 0:
            h_in = h_in.detach().requires_grad_(objective.reads_input_gradient)
            read = {j: h.requires_grad_(objective.reads_input_gradient) for j, h in read.items()}
        h_out = run(k, h_in, read)
        below.append(h_out.detach() if isinstance(h_out, Tensor) else h_out)
        again = lambda h, k=k, read=read: run(k, h, read)  # noqa: E731
        context = Context(h_in, h_out, x, y, 1, k, 0, ports=read, run=again)
        if not objective.waits:
            learn(k, context)
        elif objective.recompute:
            waiting[k] = (replace(context, h_out=None), lambda h=h_in, again=again: again(h))
        else:
            waiting[k] = (context, lambda h=h_out: h)
    for k in reversed(range(len(parts))):
        if k in waiting:
            context, output = waiting[k]
            learn(k, replace(context, h_out=output(), feedback=feedback[k]))
    for k, objective in enumerate(objectives):
        if objective.hears:
            h_out = done.contexts[k].h_out.detach()
            signal = objective.hear(replace(done.contexts[k], h_out=h_out, feedback=feedback[k]))
            assert signal is not None
            assert signal.loss is not None
            done.heard[k] = signal
            signal.loss.backward()
    return done


def gradients(modules: Sequence[nn.Module]) -> list[Tensor]:
    """Copies of all gradients, in order of parameters."""
    return [p.grad.clone() for module in modules for p in module.parameters() if p.grad is not None]


def clear(modules: Sequence[nn.Module]) -> None:
    """Forget all gradients."""
    for module in modules:
        module.zero_grad(set_to_none=True)


def equal(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Whether two lists of tensors are the same, bit for bit."""
    return len(left) == len(right) > 0 and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
