"""The proof that a cut is sound: composed parts equal the whole model, bit for bit, seeded at the same places."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PartitionError
from ..seeding import preserved_generators, seed_of, set_generators
from .plans import PartPlan
from .recording import Call
from .running import run_part
from .shadowing import original_call, scratch_buffers, shadowed
from .tree import batch_size, call_model, tensors

__all__ = ["compose", "same", "undisturbed", "verify", "whole"]

Enter = Callable[[int], None]


@contextmanager
def undisturbed(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Train or eval mode for the block; modes, buffers and generators are as before on exit."""
    modes = [(module, module.training) for module in model.modules()]
    with preserved_generators(), scratch_buffers(model):
        try:
            for module, _ in modes:
                module.training = training
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def whole(model: nn.Module, cuts: list[Call], x: Any, enter: Enter) -> tuple[Any, list[Tensor]]:
    """The whole model in one forward, with `enter` called where parts begin; its output and the boundaries."""
    boundaries: list[Tensor] = []

    def passing(index: int, module: nn.Module) -> Callable[..., Any]:
        run = original_call(module)

        def call(*args: Any, **kwargs: Any) -> Any:
            out = run(*args, **kwargs)
            boundaries.append(tensors(out)[0].detach().clone())
            enter(index + 1)
            return out

        if not torch.is_grad_enabled():
            return call

        def watched(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                raise PartitionError(
                    f"cut {cuts[index].name!r} is called with gradients off (reentrant checkpointing or no_grad around "
                    "it), expected them on; use torch.utils.checkpoint with use_reentrant=False, or cut elsewhere"
                )
            return call(*args, **kwargs)

        return watched

    enter(0)
    with shadowed({cut.module: passing(index, cut.module) for index, cut in enumerate(cuts)}):
        return call_model(model, x), boundaries


def compose(model: nn.Module, plans: list[PartPlan], x: Any, enter: Enter) -> tuple[Any, list[Tensor]]:
    """The parts one after another, each on the detached boundary of the one before."""
    boundaries: list[Tensor] = []
    out: Any = None
    n = batch_size(x)
    for part, plan in enumerate(plans):
        fed = {index: boundaries[index] for index in plan.reads}
        out = run_part(model, plan, part, x, fed, n=n, enter=enter)
        if part < len(plans) - 1:
            out = out.detach()
            boundaries.append(out.clone())
    return out, boundaries


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit on the CPU (not-a-number equals itself); elsewhere to rounding."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.device.type == "cpu":
        return bool(((a == b) | ((a != a) & (b != b))).all())
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


def _differences(model: nn.Module, plans: list[PartPlan], cuts: list[Call], x: Any, *, training: bool) -> list[str]:
    def enter(part: int) -> None:
        set_generators(seed_of(0, 0, part))

    results = []
    for run in (lambda: whole(model, cuts, x, enter), lambda: compose(model, plans, x, enter)):
        with undisturbed(model, training=training), torch.set_grad_enabled(training):
            out, boundaries = run()
            buffers = [(name, buffer.clone()) for name, buffer in model.named_buffers()]
            results.append((boundaries, [t.detach() for t in tensors(out)], buffers))
    (b1, o1, s1), (b2, o2, s2) = results
    for part, (a, b) in enumerate(zip(b1, b2, strict=True)):
        if not same(a, b):
            return [f"part {part} (up to {cuts[part].name!r})"]
    if len(o1) != len(o2) or not all(same(a, b) for a, b in zip(o1, o2, strict=True)):
        return [f"part {len(cuts)} (after {cuts[-1].name!r})" if cuts else "part 0"]
    return [f"buffer {name!r}" for (name, a), (_, b) in zip(s1, s2, strict=True) if not same(a, b)]


def verify(model: nn.Module, plans: list[PartPlan], cuts: list[Call], examples: list[Any]) -> None:
    """Compare composed parts with the whole model, in eval and train mode, at every example's batch size.

    Raises:
        PartitionError: they differ, naming where first.
    """
    for training in (False, True):
        for x in examples:
            different = _differences(model, plans, cuts, x, training=training)
            if different:
                mode = "train" if training else "eval"
                raise PartitionError(
                    f"composed parts differ from the whole model in {', '.join(different)} ({mode} mode, batch size "
                    f"{batch_size(x)}): something other than one tensor crosses a cut there (a value kept on a module, "
                    "or a random draw outside any part); move the cut"
                )
