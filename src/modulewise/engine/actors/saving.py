"""The state of one part as tensors and plain facts: for its own checkpoint, and for the way home."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...errors import CheckpointError
from ...objective import Role
from ..plainly import decoded, encoded

if TYPE_CHECKING:
    from ...trainer import Trainer

__all__ = ["PartState", "load_part", "save_part", "state_of", "take_state"]


@dataclass(frozen=True, eq=False)
class PartState:
    """All that a part has learned.

    Args:
        tensors: parameters and buffers `model/NAME`, `heads/NAME`, `rules/NAME`, `optimizers/ROLE/INDEX/NAME`.
        facts: plain data: what of optimisers and learning rates is no tensor.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


def state_of(trainer: Trainer, part: int, *, buffers: Mapping[str, Tensor]) -> PartState:
    """A part's state.

    Args:
        trainer: whose part.
        part: which part.
        buffers: of the whole model, as they were at the start; those that have changed are the part's.
    """
    model, objective, updater = trainer.partition.model, trainer.objectives[part], trainer.updater
    tensors = {f"model/{name}": p.detach() for name, p in trainer.partition.part(part).named_parameters()}
    changed = ((name, b) for name, b in model.named_buffers() if not torch.equal(b, buffers[name]))
    tensors |= {f"model/{name}": b for name, b in changed}
    tensors |= {f"heads/{name}": t for name, t in objective.state_dict().items()}
    if objective.rule is not None:
        tensors |= {f"rules/{name}": t for name, t in objective.rule.state_dict().items()}
    optimizers = {}
    for (owner, role), optimizer in updater.optimizers.items():
        if owner != part:
            continue
        state = optimizer.state_dict()
        numbers: dict[str, dict[str, Any]] = {}
        for index, entry in state["state"].items():
            for name, value in entry.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizers/{role.value}/{index}/{name}"] = value
                else:
                    numbers.setdefault(str(index), {})[name] = value
        optimizers[role.value] = encoded({"groups": state["param_groups"], "numbers": numbers})
    schedulers = {role.value: encoded(s.state_dict()) for (k, role), s in updater.schedulers.items() if k == part}
    scaler = updater.scalers[part].state_dict() if part in updater.scalers else None
    facts = {
        "optimizers": optimizers,
        "schedulers": schedulers,
        "scaler": scaler,
        "updates": updater.steps.get(part, 0),
    }
    return PartState(tensors, facts)


def take_state(trainer: Trainer, part: int, state: PartState) -> None:
    """Put a part's state into a trainer made with the same partition, method and optimiser."""
    model, updater = trainer.partition.model, trainer.updater
    here = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, tensor in _below(state.tensors, "model/").items():
            here[name].copy_(tensor)
    objective = trainer.objectives[part]
    objective.load_state_dict(_below(state.tensors, "heads/"))
    if objective.rule is not None:
        objective.rule.load_state_dict(_below(state.tensors, "rules/"))
    for word, given in state.facts["optimizers"].items():
        optimizer, saved = updater.optimizer(part, Role(word)), decoded(given)
        assert optimizer is not None, "the part trains in this role where the state was made"
        entries = {int(index): dict(entry) for index, entry in saved["numbers"].items()}
        for name, tensor in _below(state.tensors, f"optimizers/{word}/").items():
            index, _, entry = name.partition("/")
            entries.setdefault(int(index), {})[entry] = tensor.clone()
        optimizer.load_state_dict({"state": entries, "param_groups": saved["groups"]})
        setattr(optimizer, "_opt_called", True)  # noqa: B010 - as in checkpoints: it has stepped before its schedule
    for word, given in state.facts["schedulers"].items():
        updater.schedulers[part, Role(word)].load_state_dict(decoded(given))
    if state.facts["scaler"] is not None:
        scaler = updater.scaler(part, next(model.parameters()).device.type)
        assert scaler is not None, "the part was trained in half precision"
        scaler.load_state_dict(state.facts["scaler"])
    if state.facts["updates"]:
        updater.steps[part] = state.facts["updates"]


def save_part(path: Path, state: PartState) -> None:
    """Write a part's state to one file: all of it, or what was there before."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.*"):
        stale.unlink(missing_ok=True)
    apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.tensors.items()}
    try:
        save_file(apart, draft, metadata={"facts": json.dumps(state.facts)})
        _flush(draft)
        draft.replace(path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        draft.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path} could not be written ({error}); the checkpoint before it is untouched"
        ) from error


def load_part(path: Path) -> PartState | None:
    """Read a part's state; None where there is none.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return PartState(tensors, json.loads((file.metadata() or {})["facts"]))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged or incomplete ({type(error).__name__}: {error})") from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
