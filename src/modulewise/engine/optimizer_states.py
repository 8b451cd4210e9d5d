"""The state of an updater's optimisers as tensors and plain data, and back."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from ..objective import Role
from .plainly import decoded, encoded
from .updating import Updater

__all__ = ["below", "optimizer_facts", "optimizer_tensors", "restore_optimizers"]


def below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}


def _key(part: int, role: Role) -> str:
    return f"{part}/{role.value}"


def optimizer_tensors(updater: Updater) -> dict[str, Tensor]:
    """The tensors that the optimisers keep, by part, role, parameter and name."""
    found: dict[str, Tensor] = {}
    for (part, role), optimizer in updater.optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    found[f"{_key(part, role)}/{index}/{name}"] = value
    return found


def optimizer_facts(updater: Updater) -> dict[str, Any]:
    """All else that optimisers, learning-rate schedulers and gradient scalers keep, as plain data."""
    optimizers = {}
    for (part, role), optimizer in updater.optimizers.items():
        state = optimizer.state_dict()
        numbers = {
            str(index): {name: value for name, value in entry.items() if not isinstance(value, Tensor)}
            for index, entry in state["state"].items()
        }
        kind = type(optimizer).__qualname__
        optimizers[_key(part, role)] = encoded({"kind": kind, "groups": state["param_groups"], "numbers": numbers})
    return {
        "updates": {str(part): count for part, count in updater.steps.items()},
        "optimizers": optimizers,
        "schedulers": {_key(*key): encoded(s.state_dict()) for key, s in updater.schedulers.items()},
        "scalers": {str(part): scaler.state_dict() for part, scaler in updater.scalers.items()},
    }


def restore_optimizers(updater: Updater, facts: dict[str, Any], tensors: dict[str, Tensor], device: str) -> None:
    """Put the optimisers where they were.

    Args:
        updater: made with the same parameters and factories.
        facts: of `optimizer_facts`.
        tensors: of `optimizer_tensors`.
        device: type of the device that the parameters are on.

    Raises:
        CheckpointError: an optimiser is of another kind, or for what does not train here.
    """
    updater.steps = {int(part): count for part, count in facts["updates"].items()}
    for stale in [key for key in updater.optimizers if _key(*key) not in facts["optimizers"]]:
        del updater.optimizers[stale]
        updater.schedulers.pop(stale, None)
    for key, given in facts["optimizers"].items():
        _restore_optimizer(updater, key, decoded(given), below(tensors, f"{key}/"))
    for key, state in facts["schedulers"].items():
        part, role = key.split("/")
        updater.schedulers[int(part), Role(role)].load_state_dict(decoded(state))
    updater.scalers = {part: scaler for part, scaler in updater.scalers.items() if str(part) in facts["scalers"]}
    for part, state in facts["scalers"].items():
        scaler = updater.scaler(int(part), device)
        if scaler is None:
            raise CheckpointError(f"the checkpoint was saved in half precision: part {part} has a gradient scaler")
        scaler.load_state_dict(state)


def _restore_optimizer(updater: Updater, key: str, saved: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    part, role = key.split("/")
    optimizer = updater.optimizer(int(part), Role(role))
    if optimizer is None:
        raise CheckpointError(f"the checkpoint holds an optimizer for part {part}, role {role}; nothing trains there")
    if type(optimizer).__qualname__ != saved["kind"]:
        given = type(optimizer).__qualname__
        raise CheckpointError(f"the optimizer saved for part {part}, role {role} is {saved['kind']}, not {given}")
    state = {int(index): dict(entry) for index, entry in saved["numbers"].items()}
    for name, tensor in tensors.items():
        index, _, entry = name.partition("/")
        state.setdefault(int(index), {})[entry] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": saved["groups"]})
    # torch's schedulers warn where they step first: here the optimiser has, before it was saved.
    setattr(optimizer, "_opt_called", True)  # noqa: B010
