"""Checkpoints: safetensors and JSON, complete or not there at all.

A checkpoint is written to a folder of its own beside the last one, flushed to disk, renamed, and only then named in
the file `latest`, which is replaced in one step. A process that dies in between leaves the last complete one.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .engine.optimizer_states import below, decoded, encoded, optimizer_facts, optimizer_tensors, restore_optimizers
from .engine.pending import pending_state, restore_pending
from .errors import CheckpointError
from .schedules import State

if TYPE_CHECKING:
    from .trainer import Trainer

__all__ = ["apart", "commit", "describe", "flush", "read", "restore", "write"]

FORMAT = 2
LATEST = "latest"
NAMES = ("model", "heads", "optimizers", "rules", "solver", "pending")


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


def _identity(trainer: Trainer) -> dict[str, Any]:
    """What must agree between the saving and the loading trainer."""
    return {
        "cuts": list(trainer.partition.cuts),
        "method": describe(trainer.method),
        "parameters": {name: list(p.shape) for name, p in trainer.partition.model.named_parameters()},
        "seed": trainer.seed,
        "accumulate": trainer.accumulate,
    }


def apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the host, none sharing memory with another."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in state.items():
        host = tensor.detach().cpu().contiguous()
        apart[name] = host.clone() if host.untyped_storage()._cdata in seen or host.dim() == 0 else host
        seen.add(host.untyped_storage()._cdata)
    return apart


def _tensors(trainer: Trainer) -> dict[str, dict[str, Tensor]]:
    rules = {id(o.rule): o.rule for o in trainer.objectives if o.rule is not None}
    return {
        "model": trainer.partition.model.state_dict(),
        "heads": {f"{i}.{n}": t for i, o in enumerate(trainer.objectives) for n, t in o.state_dict().items()},
        "optimizers": optimizer_tensors(trainer.updater),
        "rules": {f"{i}.{n}": t for i, rule in enumerate(rules.values()) for n, t in rule.state_dict().items()},
        "solver": trainer.solver.state_dict() if trainer.solver is not None else {},
        "pending": pending_state(trainer.engine),
    }


def _facts(trainer: Trainer, loader: Any) -> dict[str, Any]:
    progress = trainer.progress
    return {
        "format": FORMAT,
        "identity": _identity(trainer),
        "step": trainer.steps,
        "progress": None if progress is None else vars(progress) | {},
        **optimizer_facts(trainer.updater),
        "loader": encoded(loader.state_dict()) if hasattr(loader, "state_dict") else None,
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
    }


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(trainer: Trainer, folder: Path, *, loader: Any = None) -> None:
    """Save a trainer; see `Trainer.save`.

    Raises:
        CheckpointError: the folder holds something else, or the state cannot be written as JSON.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not _ours(folder))):
        raise CheckpointError(f"{folder} holds something else than a checkpoint; give a new or empty folder")
    commit(folder, _facts(trainer, loader), _tensors(trainer))


def commit(folder: Path, facts: dict[str, Any], tensors: Mapping[str, dict[str, Tensor]]) -> None:
    """Write plain data and groups of tensors beside the last ones, and only then name them the latest.

    Args:
        folder: where `latest` is.
        facts: for `trainer.json`.
        tensors: groups of tensors, a file each.

    Raises:
        CheckpointError: the facts are no plain data, or the disk is full; what was there before is the latest still.
    """
    try:
        text = json.dumps(facts, indent=1)
    except TypeError as error:
        raise CheckpointError(
            f"the state of a scheduler or loader is not plain data ({error}); save without it"
        ) from error
    try:
        _commit(folder, text, tensors)
    except (OSError, SafetensorError) as error:
        for draft in folder.glob(".writing-*"):
            shutil.rmtree(draft, ignore_errors=True)
        raise CheckpointError(
            f"a checkpoint could not be written to {folder} ({error}); the one before is as it was; make room and go on"
        ) from error


def _commit(folder: Path, facts: str, groups: Mapping[str, dict[str, Tensor]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(n) for path in folder.glob("state-*") if (n := path.name[6:]).isdecimal()), default=-1)
    target, draft = folder / f"state-{number:08d}", folder / f".writing-{number:08d}"
    for stale in folder.glob(".writing-*"):
        shutil.rmtree(stale, ignore_errors=True)
    draft.mkdir()
    for name, tensors in groups.items():
        save_file(apart(tensors), draft / f"{name}.safetensors")
    (draft / "trainer.json").write_text(facts)
    for path in [*draft.iterdir(), draft]:
        flush(path)
    draft.rename(target)
    flush(folder)
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


def read(folder: Path, names: Sequence[str] = NAMES) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """The latest facts and groups of tensors that were committed.

    Raises:
        CheckpointError: there are none, or they are damaged.
    """
    pointer = folder / LATEST
    if not pointer.is_file():
        raise CheckpointError(f"{folder} holds no checkpoint, expected a folder that `Trainer.save` wrote")
    path = folder
    try:
        path = folder / Path(pointer.read_text().strip()).name
        facts = json.loads((path / "trainer.json").read_text())
        tensors = {name: load_file(path / f"{name}.safetensors") for name in names}
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged or incomplete ({type(error).__name__}: {error})") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or not isinstance(facts.get("identity"), dict):
        raise CheckpointError(f"{path} is not a checkpoint of format {FORMAT}; load it with the version that wrote it")
    return facts, tensors


def _compare(trainer: Trainer, facts: dict[str, Any]) -> None:
    saved = facts["identity"]
    for name, value in json.loads(json.dumps(_identity(trainer))).items():
        if saved.get(name) != value:
            expected, given = str(saved.get(name))[:120], str(value)[:120]
            raise CheckpointError(
                f"the checkpoint is of another experiment: its {name} is {expected}, the trainer's is {given}"
            )


def restore(trainer: Trainer, folder: Path, *, loader: Any = None) -> None:
    """Load a trainer's state; see `Trainer.load`."""
    facts, tensors = read(folder)
    _compare(trainer, facts)
    before = {name: {key: t.clone() for key, t in group.items()} for name, group in _tensors(trainer).items()}
    facts_before = _facts(trainer, loader)
    try:
        _apply(trainer, facts, tensors, loader)
    except Exception as error:
        _apply(trainer, facts_before, before, loader)
        if isinstance(error, CheckpointError):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"{folder} does not fit the trainer ({reason}); make it as the saved one was") from error


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
