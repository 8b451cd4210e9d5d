"""The proof that a cut is sound: composed parts equal the whole model, bit for bit, seeded at the same places."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from ..errors import PartitionError
from ..seeding import preserved_generators, seed_of, set_generators
from .plans import PartPlan
from .recording import Call
from .running import run_part
from .shadowing import original_call, scratch_attributes, scratch_buffers, shadowed
from .tree import batch_size, call_model, map_tensors, tensors

__all__ = ["alone", "same", "undisturbed", "verify", "whole"]

Enter = Callable[[int], None]


@contextmanager
def undisturbed(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Train or eval mode for the block; modes, buffers, attributes and generators are as before on exit."""
    modes = [(module, module.training) for module in model.modules()]
    python, legacy = random.getstate(), numpy.random.get_state()
    with _autocast_off(), preserved_generators(), scratch_attributes(model), scratch_buffers(model):
        try:
            for module, _ in modes:
                module.training = training
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            random.setstate(python)
            numpy.random.set_state(legacy)


@contextmanager
def _autocast_off() -> Iterator[None]:
    """Boundaries are recorded in the model's own precision, whatever autocast the caller is in."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def whole(model: nn.Module, cuts: list[Call], x: Any, enter: Enter) -> tuple[Any, list[Tensor]]:
    """The whole model in one forward, with `enter` called where parts begin; its output and the boundaries."""
    boundaries: list[Tensor] = []

    def passing(index: int, module: nn.Module) -> Callable[..., Any]:
        run = original_call(module)

        def call(*args: Any, **kwargs: Any) -> Any:
            out = run(*args, **kwargs)
            h = tensors(out)[0]
            boundaries.append(h.detach().clone().requires_grad_(h.requires_grad))
            enter(index + 1)
            return out

        return call

    enter(0)
    with shadowed({cut.module: passing(index, cut.module) for index, cut in enumerate(cuts)}):
        return call_model(model, x), boundaries


def alone(model: nn.Module, plans: list[PartPlan], x: Any, boundaries: list[Tensor], enter: Enter) -> list[Any]:
    """The output of every part on the boundaries it reads.

    The last part runs first, so that it finds nothing of what a part below keeps on a module for it.
    """
    outputs: list[Any] = [None] * len(plans)
    for part in reversed(range(len(plans))):
        fed = {
            index: boundaries[index].detach().clone().requires_grad_(boundaries[index].requires_grad)
            for index in plans[part].reads
        }
        outputs[part] = run_part(model, plans[part], part, x, fed, n=batch_size(x), enter=enter)
    return outputs


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit on the CPU (not-a-number equals itself); elsewhere to rounding; on the meta device by shape."""
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    if a.is_meta:
        return True
    if a.layout is not torch.strided:
        a, b = a.to_dense(), b.to_dense()
    if a.device.type == "cpu":
        return bool(((a == b) | ((a != a) & (b != b))).all())
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


def _differences(
    model: nn.Module, plans: list[PartPlan], cuts: list[Call], x: Any, *, training: bool, trial: int
) -> str | None:
    """Where the parts differ from the whole first, if they do."""

    def enter(part: int) -> None:
        set_generators(seed_of(0, trial, part))

    def inputs() -> Any:
        return map_tensors(lambda t: t.clone(), x)

    def buffers() -> dict[str, Tensor]:
        return {name: buffer.clone() for name, buffer in model.named_buffers()}

    with undisturbed(model, training=training), torch.set_grad_enabled(training):
        out, boundaries = whole(model, cuts, inputs(), enter)
        expected = buffers()
    if len(boundaries) != len(cuts):
        raise PartitionError(
            f"a forward called {len(boundaries)} of the {len(cuts)} cuts, expected all (a layer dropped at random, "
            "or a branch around it); cut at modules that every forward calls"
        )
    nested = [cut.name for cut, h in zip(cuts, boundaries, strict=True) if h.is_nested]
    if nested:
        raise PartitionError(
            f"cut {nested[0]!r} returns a nested tensor in {'train' if training else 'eval'} mode, expected (N, ...); "
            "build the encoder with enable_nested_tensor=False, or cut around it"
        )
    places = [f"part {part} (up to {cut.name!r})" for part, cut in enumerate(cuts)] + [f"the last part ({len(cuts)})"]
    with undisturbed(model, training=training), torch.set_grad_enabled(training):
        try:
            outputs = alone(model, plans, inputs(), boundaries, enter)
        except PartitionError:
            raise
        except Exception as error:
            if not cuts:
                raise
            raise PartitionError(
                f"the model runs, but not part by part ({type(error).__name__}: {_first_line(error)}): its forward "
                "cannot go on with stand-ins for what earlier modules return; move the cut"
            ) from error
        found = buffers()
    for place, ours, theirs in zip(places, outputs, [*boundaries, out], strict=True):
        a, b = tensors(ours), tensors(theirs)
        if len(a) != len(b) or not all(same(s, t) for s, t in zip(a, b, strict=True)):
            return place
        if training and [t.requires_grad for t in a] != [t.requires_grad for t in b]:
            return f"{place}, in whether gradients are on"
    names = [name for name in expected if name not in found or not same(expected[name], found[name])]
    return f"buffer {names[0]!r}" if names else None


def verify(
    model: nn.Module, plans: list[PartPlan], cuts: list[Call], examples: Sequence[Any], *, trials: int = 1
) -> None:
    """Compare parts with the whole model, in eval and train mode, at every example's batch size.

    Args:
        model: the user's model.
        plans: how every part runs.
        cuts: where they end.
        examples: inputs of different batch sizes.
        trials: train-mode comparisons at different seeds; several where random numbers steer the forward.

    Raises:
        PartitionError: they differ, naming where first, or a part does not run by itself.
    """
    for training, trial in [(False, 0), *((True, trial) for trial in range(trials))]:
        for x in examples:
            different = _differences(model, plans, cuts, x, training=training, trial=trial)
            if different:
                mode = f"{'train' if training else 'eval'} mode, batch size {batch_size(x)}"
                raise PartitionError(
                    f"composed parts differ from the whole model in {different} ({mode}): something other than one "
                    "tensor crosses a cut there (a value kept on a module, or a random draw outside any part); "
                    "move the cut"
                )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
