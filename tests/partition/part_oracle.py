"""What the tests of a partition compare with: the user's own forward with plain hooks, and a photograph of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from modulewise import Partition
from modulewise.seeding import seed_of, set_generators

STEP = 7


def seeded(seed: int = 3) -> Any:
    """enter(k) for part k, at one step of a run."""
    return lambda part: set_generators(seed_of(seed, STEP, part))


def leaves(out: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]


def ordinary(model: nn.Module, x: Any) -> Any:
    if isinstance(x, dict):
        return model(**x)
    return model(*x) if isinstance(x, tuple) else model(x)


def whole(model: nn.Module, cuts: tuple[str, ...], x: Any) -> tuple[list[Tensor], Any]:
    """One ordinary forward; forward hooks at the cuts note the boundary and set the next part's generators."""
    boundaries: list[Tensor] = []
    enter = seeded()

    def note(module: nn.Module, args: Any, out: Any) -> None:
        boundaries.append(leaves(out)[0].detach().clone())
        enter(len(boundaries))

    handles = [model.get_submodule(name).register_forward_hook(note) for name in cuts]
    try:
        enter(0)
        return boundaries, ordinary(model, x)
    finally:
        for handle in handles:
            handle.remove()


def composed(partition: Partition, x: Any) -> tuple[list[Tensor], Any]:
    """The parts, one after another, each on detached boundaries."""
    boundaries: list[Tensor] = []
    for part in range(len(partition)):
        fed = {index: boundaries[index] for index in partition.reads(x, part)}
        out = partition.run(part, x, fed, enter=seeded())
        if part < len(partition) - 1:
            boundaries.append(out.detach())
    return [boundary.clone() for boundary in boundaries], out


def identical(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(12345.0), b.nan_to_num(12345.0))


def assert_composes(partition: Partition, x: Any, *, modes: tuple[bool, ...] = (False, True)) -> None:
    """Parts equal the whole bit for bit, boundaries, outputs and buffers, in eval and in train mode."""
    model = partition.model
    for training in modes:
        model.train(training)
        with torch.no_grad():
            before = {name: buffer.clone() for name, buffer in model.named_buffers()}
            expected, expected_out = whole(model, partition.cuts, x)
            expected_buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])
            found, found_out = composed(partition, x)
        assert len(found) == len(expected) == len(partition) - 1
        for name, a, b in zip(partition.cuts, found, expected, strict=True):
            assert identical(a, b), f"boundary {name}, training={training}"
        ours, theirs = leaves(found_out), leaves(expected_out)
        assert type(found_out) is type(expected_out)
        assert len(ours) == len(theirs) > 0
        for a, b in zip(ours, theirs, strict=True):
            assert identical(a, b), f"output, training={training}"
        for name, buffer in model.named_buffers():
            assert identical(buffer, expected_buffers[name]), f"buffer {name}, training={training}"


def photograph(model: nn.Module) -> dict[str, Any]:
    """All that a library could leave on a model: attributes, hooks, modes, parameters, buffers, the generator."""
    picture: dict[str, Any] = {"keys": list(model.state_dict()), "generator": torch.get_rng_state().clone()}
    for name, module in model.named_modules():
        attributes = dict(module.__dict__)
        for key in ("_parameters", "_buffers", "_modules"):
            attributes[key] = {inner: id(value) for inner, value in attributes[key].items()}
        for key, value in attributes.items():
            picture[f"{name}|{key}"] = dict(value) if isinstance(value, dict) else value
        picture[f"{name}|training"] = module.training
        picture[f"{name}|class"] = type(module)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        picture[f"value|{name}"] = (tensor.detach().clone(), tensor.requires_grad, tensor.grad is None)
    return picture


def assert_same_picture(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for key, value in before.items():
        if key == "generator":
            assert torch.equal(value, after[key]), "the generator was advanced"
        elif key.startswith("value|"):
            assert identical(value[0], after[key][0]), key
            assert value[1:] == after[key][1:], key
        elif isinstance(value, Tensor):
            assert value is after[key], key
        else:
            assert value is after[key] or value == after[key], key


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Nothing of ours is left on the model by the block, which may fail."""
    before = photograph(model)
    try:
        yield
    finally:
        assert_same_picture(before, photograph(model))
