"""One state on disk: a folder of safetensors and JSON that is whole or not there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import CheckpointError

__all__ = ["FORMAT", "NAMES", "apart", "damaged", "flush", "read_facts", "read_tensors", "unwritten", "write_state"]

FORMAT = 2
NAMES = ("model", "heads", "optimizers", "rules", "solver", "pending")


def apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the host, none sharing memory with another."""
    seen: set[int] = set()
    found = {}
    for name, tensor in state.items():
        host = tensor.detach().cpu().contiguous()
        found[name] = host.clone() if host.untyped_storage()._cdata in seen or host.dim() == 0 else host
        seen.add(host.untyped_storage()._cdata)
    return found


def flush(path: Path) -> None:
    """Put a file or folder on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_state(target: Path, facts: dict[str, Any], tensors: Mapping[str, dict[str, Tensor]]) -> None:
    """Write a state to a folder of its own that appears whole, on disk, or not at all; one that is there is replaced.

    Raises:
        CheckpointError: the facts are not plain data, or the disk is full; other states are as they were.
    """
    try:
        text = json.dumps(facts, indent=1)
    except TypeError as error:
        raise CheckpointError(
            f"the state of a scheduler or loader is not plain data ({error}); save without it"
        ) from error
    folder = target.parent
    try:
        _write(target, text, tensors)
    except (OSError, SafetensorError) as error:
        for draft in folder.glob(".writing-*"):
            shutil.rmtree(draft, ignore_errors=True)
        raise unwritten(folder, error) from error


def _write(target: Path, facts: str, tensors: Mapping[str, dict[str, Tensor]]) -> None:
    folder = target.parent
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".writing-*"):
        shutil.rmtree(stale, ignore_errors=True)
    draft = folder / f".writing-{target.name[6:]}"
    draft.mkdir()
    for name, group in tensors.items():
        save_file(apart(group), draft / f"{name}.safetensors")
    (draft / "trainer.json").write_text(facts)
    for path in [*draft.iterdir(), draft]:
        flush(path)
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
    flush(folder)


def read_facts(path: Path) -> dict[str, Any]:
    """What `facts_of` gave, from the folder of one state.

    Raises:
        CheckpointError: damaged, or of another format.
    """
    try:
        facts = json.loads((path / "trainer.json").read_text())
    except (OSError, ValueError) as error:
        raise damaged(path, error) from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or not isinstance(facts.get("identity"), dict):
        raise CheckpointError(f"{path} is not a checkpoint of format {FORMAT}; load it with the version that wrote it")
    return facts


def read_tensors(path: Path, names: Sequence[str] = NAMES) -> dict[str, dict[str, Tensor]]:
    """What `tensors_of` gave, from the folder of one state.

    Raises:
        CheckpointError: damaged or incomplete.
    """
    try:
        return {name: load_file(path / f"{name}.safetensors") for name in names}
    except (OSError, ValueError, SafetensorError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> CheckpointError:
    """What is said of a state that cannot be read."""
    return CheckpointError(f"{path} is damaged or incomplete ({type(error).__name__}: {error})")


def unwritten(folder: Path, error: Exception) -> CheckpointError:
    """What is said where there was no room for a state, or for its name."""
    return CheckpointError(
        f"a checkpoint could not be written to {folder} ({error}); the one before is as it was; make room and go on"
    )
