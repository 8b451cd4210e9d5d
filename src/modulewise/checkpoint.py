"""Checkpoints: safetensors and JSON, complete or not there at all.

A checkpoint is written to a folder of its own beside the last one, flushed to disk, renamed, and only then named in
the file `latest`, which is replaced in one step. A process that dies in between leaves the last complete one.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .engine.pending import pending_state, restore_pending
from .engine.plainly import decoded, encoded
from .engine.state_files import FORMAT, commit, damaged, flush, read_facts, read_tensors
from .errors import CheckpointError
from .objective import Role
from .schedules import State

if TYPE_CHECKING:
    from .trainer import Trainer

__all__ = [
    "LATEST",
    "adopt",
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
    return {
        "cuts": list(trainer.partition.cuts),
        "method": describe(trainer.method),
        "parameters": {name: list(p.shape) for name, p in trainer.partition.model.named_parameters()},
        "seed": trainer.seed,
        "accumulate": trainer.accumulate,
    }


def _key(part: int, role: Role) -> str:
    return f"{part}/{role.value}"


def tensors_of(trainer: Trainer) -> dict[str, dict[str, Tensor]]:
    """All tensors of a trainer's state, by the file they are saved in."""
    optimizers: dict[str, Tensor] = {}
    for (part, role), optimizer in trainer.updater.optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    optimizers[f"{_key(part, role)}/{index}/{name}"] = value
    rules = {id(o.rule): o.rule for o in trainer.objectives if o.rule is not None}
    return {
        "model": trainer.partition.model.state_dict(),
        "heads": {f"{i}.{n}": t for i, o in enumerate(trainer.objectives) for n, t in o.state_dict().items()},
        "optimizers": optimizers,
        "rules": {f"{i}.{n}": t for i, rule in enumerate(rules.values()) for n, t in rule.state_dict().items()},
        "solver": trainer.solver.state_dict() if trainer.solver is not None else {},
        "pending": pending_state(trainer.engine),
    }


def facts_of(trainer: Trainer, loader: Any) -> dict[str, Any]:
    """Everything else of a trainer's state, as plain data."""
    optimizers = {}
    for (part, role), optimizer in trainer.updater.optimizers.items():
        state = optimizer.state_dict()
        numbers = {
            str(index): {name: value for name, value in entry.items() if not isinstance(value, Tensor)}
            for index, entry in state["state"].items()
        }
        kind = type(optimizer).__qualname__
        optimizers[_key(part, role)] = encoded({"kind": kind, "groups": state["param_groups"], "numbers": numbers})
    progress = trainer.progress
    return {
        "format": FORMAT,
        "identity": identity_of(trainer),
        "step": trainer.steps,
        "updates": {str(part): count for part, count in trainer.updater.steps.items()},
        "progress": None if progress is None else vars(progress) | {},
        "optimizers": optimizers,
        "schedulers": {_key(*key): encoded(s.state_dict()) for key, s in trainer.updater.schedulers.items()},
        "scalers": {str(part): scaler.state_dict() for part, scaler in trainer.updater.scalers.items()},
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
    number = 1 + max((int(n) for path in folder.glob("state-*") if (n := path.name[6:]).isdecimal()), default=-1)
    target = folder / f"state-{number:08d}"
    commit(target, facts_of(trainer, loader), tensors_of(trainer))
    pointer = folder / ".latest"
    pointer.write_text(target.name)
    flush(pointer)
    pointer.replace(folder / LATEST)
    flush(folder)
    for old in folder.glob("state-*"):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)


def _ours(folder: Path) -> bool:
    return all(path.name.startswith((".writing-", "state-", ".latest", LATEST)) for path in folder.iterdir())


def read(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """The facts and tensors of the last checkpoint in a folder.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    pointer = folder / LATEST
    if not pointer.is_file():
        raise CheckpointError(f"{folder} holds no checkpoint, expected a folder that `Trainer.save` wrote")
    try:
        path = folder / Path(pointer.read_text().strip()).name
    except (OSError, ValueError) as error:
        raise damaged(pointer, error) from error
    return read_facts(path), read_tensors(path)


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
        objective.load_state_dict(_below(tensors["heads"], f"{index}."))
    rules = {id(o.rule): o.rule for o in trainer.objectives if o.rule is not None}
    for index, rule in enumerate(rules.values()):
        rule.load_state_dict(_below(tensors["rules"], f"{index}."))
    if trainer.solver is not None:
        trainer.solver.load_state_dict(tensors["solver"])
    _restore_optimizers(trainer, facts, tensors["optimizers"])
    restore_pending(trainer.engine, tensors["pending"])
    trainer.steps = facts["step"]
    trainer.updater.steps = {int(part): count for part, count in facts["updates"].items()}
    trainer.progress = None if facts["progress"] is None else State(**facts["progress"])
    if loader is not None and facts["loader"] is not None:
        loader.load_state_dict(decoded(facts["loader"]))


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}


def _restore_optimizers(trainer: Trainer, facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    updater = trainer.updater
    for stale in [key for key in updater.optimizers if _key(*key) not in facts["optimizers"]]:
        del updater.optimizers[stale]
        updater.schedulers.pop(stale, None)
    for key, given in facts["optimizers"].items():
        saved = decoded(given)
        part, role = key.split("/")
        optimizer = updater.optimizer(int(part), Role(role))
        if optimizer is None:
            raise CheckpointError(
                f"the checkpoint holds an optimizer for part {part}, role {role}; nothing trains there"
            )
        if type(optimizer).__qualname__ != saved["kind"]:
            given = type(optimizer).__qualname__
            raise CheckpointError(f"the optimizer saved for part {part}, role {role} is {saved['kind']}, not {given}")
        state = {int(index): dict(entry) for index, entry in saved["numbers"].items()}
        for name, tensor in _below(tensors, f"{key}/").items():
            index, _, entry = name.partition("/")
            state.setdefault(int(index), {})[entry] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": saved["groups"]})
        # torch's schedulers warn where they step first: here the optimiser has, before it was saved.
        setattr(optimizer, "_opt_called", True)  # noqa: B010
    for key, state in facts["schedulers"].items():
        part, role = key.split("/")
        updater.schedulers[int(part), Role(role)].load_state_dict(decoded(state))
    updater.scalers = {part: scaler for part, scaler in updater.scalers.items() if str(part) in facts["scalers"]}
    first = next(trainer.partition.model.parameters(), None)
    for part, state in facts["scalers"].items():
        scaler = updater.scaler(int(part), first.device.type if first is not None else "cpu")
        if scaler is None:
            raise CheckpointError(f"the checkpoint was saved in half precision: part {part} has a gradient scaler")
        scaler.load_state_dict(state)
