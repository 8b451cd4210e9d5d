"""Checkpoints: safetensors and JSON, complete or not there at all.

A checkpoint is written to a folder of its own beside the last one, flushed to disk, renamed, and only then named in
the file `latest`, which is replaced in one step. A process that dies in between leaves the last complete one.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .engine.optimizer_states import below, optimizer_facts, optimizer_tensors, restore_optimizers
from .engine.pending import pending_state, restore_pending
from .engine.plainly import decoded, encoded
from .engine.state_files import FORMAT, NAMES, damaged, flush, read_facts, read_tensors, unwritten, write_state
from .errors import CheckpointError
from .schedules import State

if TYPE_CHECKING:
    from .trainer import Trainer

__all__ = [
    "LATEST",
    "adopt",
    "commit",
    "describe",
    "facts_of",
    "identity_of",
    "read",
    "restore",
    "tensors_of",
    "write",
]

LATEST = "latest"


def describe(value: Any) -> Any:
    """A method, function or setting as JSON that is the same in every process: no addresses, functions by name.

    >>> describe(torch.nn.functional.relu), describe((1, None))
    ('torch.nn.functional.relu', [1, None])
    """
    if hasattr(value, "__dataclass_fields__"):
        fields = {name: describe(getattr(value, name)) for name in value.__dataclass_fields__}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    if hasattr(value, "func"):
        return {"function": describe(value.func), "with": describe(value.keywords)}
    return type(value).__name__ if hasattr(value, "__dict__") else str(value)


def identity_of(trainer: Trainer) -> dict[str, Any]:
    """What must agree between the saving and the loading trainer."""
    pieces = trainer.updater.pieces
    return {
        "cuts": list(trainer.partition.cuts),
        "method": describe(trainer.method),
        "parameters": {n: list(pieces.get(p, p).shape) for n, p in trainer.partition.model.named_parameters()},
        "seed": trainer.seed,
        "accumulate": trainer.accumulate,
    }


def tensors_of(trainer: Trainer) -> dict[str, dict[str, Tensor]]:
    """All tensors of a trainer's state, by the file they are saved in."""
    rules = {id(o.rule): o.rule for o in trainer.objectives if o.rule is not None}
    return {
        "model": trainer.partition.model.state_dict(),
        "heads": {f"{i}.{n}": t for i, o in enumerate(trainer.objectives) for n, t in o.state_dict().items()},
        "optimizers": optimizer_tensors(trainer.updater),
        "rules": {f"{i}.{n}": t for i, rule in enumerate(rules.values()) for n, t in rule.state_dict().items()},
        "solver": trainer.solver.state_dict() if trainer.solver is not None else {},
        "pending": pending_state(trainer.engine),
    }


def facts_of(trainer: Trainer, loader: Any) -> dict[str, Any]:
    """Everything else of a trainer's state, as plain data."""
    progress = trainer.progress
    return {
        "format": FORMAT,
        "identity": identity_of(trainer),
        "step": trainer.steps,
        "progress": None if progress is None else vars(progress) | {},
        **optimizer_facts(trainer.updater),
        "loader": encoded(loader.state_dict()) if hasattr(loader, "state_dict") else None,
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
    }


def write(trainer: Trainer, folder: Path, *, loader: Any = None) -> None:
    """Save a trainer; see `Trainer.save`.

    Raises:
        CheckpointError: the folder holds something else, or the state cannot be written as JSON.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not _ours(folder))):
        raise CheckpointError(f"{folder} holds something else than a checkpoint; give a new or empty folder")
    commit(folder, facts_of(trainer, loader), tensors_of(trainer))


def commit(folder: Path, facts: dict[str, Any], tensors: Mapping[str, dict[str, Tensor]]) -> None:
    """Write a state beside the last one, and only then name it the latest.

    Args:
        folder: where `latest` is.
        facts: plain data.
        tensors: groups of tensors, a file each.

    Raises:
        CheckpointError: the facts are no plain data, or the disk is full; what was there before is the latest still.
    """
    number = 1 + max((int(n) for path in folder.glob("state-*") if (n := path.name[6:]).isdecimal()), default=-1)
    target = folder / f"state-{number:08d}"
    write_state(target, facts, tensors)
    pointer = folder / ".latest"
    try:
        pointer.write_text(target.name)
        flush(pointer)
        pointer.replace(folder / LATEST)
        flush(folder)
    except OSError as error:
        raise unwritten(folder, error) from error
    for old in folder.glob("state-*"):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)


def _ours(folder: Path) -> bool:
    return all(path.name.startswith((".writing-", "state-", ".latest", LATEST)) for path in folder.iterdir())


def read(folder: Path, names: Sequence[str] = NAMES) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """The latest facts and groups of tensors that were committed.

    Raises:
        CheckpointError: there are none, or they are damaged.
    """
    pointer = folder / LATEST
    if not pointer.is_file():
        raise CheckpointError(f"{folder} holds no checkpoint, expected a folder that `Trainer.save` wrote")
    try:
        path = folder / Path(pointer.read_text().strip()).name
    except (OSError, ValueError) as error:
        raise damaged(pointer, error) from error
    return read_facts(path), read_tensors(path, names)


def _compare(trainer: Trainer, facts: dict[str, Any]) -> None:
    saved = facts["identity"]
    for name, value in json.loads(json.dumps(identity_of(trainer))).items():
        if saved.get(name) != value:
            expected, given = str(saved.get(name))[:120], str(value)[:120]
            raise CheckpointError(
                f"the checkpoint is of another experiment: its {name} is {expected}, the trainer's is {given}"
            )


def restore(trainer: Trainer, folder: Path, *, loader: Any = None) -> None:
    """Load a trainer's state; see `Trainer.load`."""
    facts, tensors = read(folder)
    adopt(trainer, facts, tensors, loader=loader, where=folder)


def adopt(
    trainer: Trainer, facts: dict[str, Any], tensors: dict[str, dict[str, Tensor]], *, loader: Any, where: Path
) -> None:
    """Take a state into a trainer, wholly or not at all.

    Raises:
        CheckpointError: it is of another experiment or does not fit; nothing has been changed.
    """
    _compare(trainer, facts)
    before = {name: {key: t.clone() for key, t in group.items()} for name, group in tensors_of(trainer).items()}
    facts_before = facts_of(trainer, loader)
    try:
        _apply(trainer, facts, tensors, loader)
    except Exception as error:
        _apply(trainer, facts_before, before, loader)
        if isinstance(error, CheckpointError):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"{where} does not fit the trainer ({reason}); make it as the saved one was") from error


def _apply(trainer: Trainer, facts: dict[str, Any], tensors: dict[str, dict[str, Tensor]], loader: Any) -> None:
    trainer.partition.model.load_state_dict(tensors["model"])
    for index, objective in enumerate(trainer.objectives):
        objective.load_state_dict(below(tensors["heads"], f"{index}."))
    rules = {id(o.rule): o.rule for o in trainer.objectives if o.rule is not None}
    for index, rule in enumerate(rules.values()):
        rule.load_state_dict(below(tensors["rules"], f"{index}."))
    if trainer.solver is not None:
        trainer.solver.load_state_dict(tensors["solver"])
    first = next(trainer.partition.model.parameters(), None)
    device = first.device.type if first is not None else "cpu"
    restore_optimizers(trainer.updater, facts, tensors["optimizers"], device)
    restore_pending(trainer.engine, tensors["pending"])
    trainer.steps = facts["step"]
    trainer.progress = None if facts["progress"] is None else State(**facts["progress"])
    if loader is not None and facts["loader"] is not None:
        loader.load_state_dict(decoded(facts["loader"]))
