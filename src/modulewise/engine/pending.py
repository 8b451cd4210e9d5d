"""The batches that delayed parts have yet to learn from, as tensors for a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_map_with_path

from ..errors import CheckpointError
from .local import LocalEngine
from .session import Session

__all__ = ["pending_state", "restore_pending"]


def pending_state(engine: LocalEngine) -> dict[str, Tensor]:
    """The batches under way as named tensors, for a checkpoint: inputs and messages, no graph.

    Raises:
        CheckpointError: labels are no tensor, or an input is made of other things than the partition's example.
    """
    state: dict[str, Tensor] = {}
    example = _leaves(engine.partition.example)
    for index, session in enumerate(engine.pending):
        if not isinstance(session.y, Tensor):
            raise CheckpointError(
                f"labels of type {type(session.y).__name__} wait for a delayed part; only tensors can be saved"
            )
        state[f"{index}/about"] = torch.tensor([session.step, session.views])
        state[f"{index}/y"] = session.y
        leaves = _leaves(session.x)
        if _but_tensors(leaves) != _but_tensors(example):
            given, expected = (", ".join(some) or "one tensor" for some in (leaves, example))
            raise CheckpointError(
                f"an input of {given} waits for a delayed part, the partition's example is of {expected}; only inputs "
                "like the example can be saved"
            )
        state |= {f"{index}/x/{name}": t for name, t in leaves.items() if isinstance(t, Tensor)}
        for part, (fed, _) in session.waiting.items():
            state |= {f"{index}/fed/{part}/{b}": h.detach().to(session.dtypes[b]) for b, h in fed.items()}
            state |= {f"{index}/mail/{part}/{sender}": m for sender, m in session.mail.get(part, {}).items()}
            state[f"{index}/waits/{part}"] = torch.tensor(part)
        for part, copies in session.weights.items():
            state |= {f"{index}/weights/{part}/{leaf}": t for leaf, t in enumerate(copies.values)}
    return state


def restore_pending(engine: LocalEngine, state: Mapping[str, Tensor]) -> None:
    """Put the batches of `pending_state` under way again; graphs are made anew with the weights they had."""
    engine.pending.clear()
    device = next((p.device for p in engine.partition.model.parameters()), torch.device("cpu"))
    count = len({name.partition("/")[0] for name in state})
    for index in range(count):
        own = {name.partition("/")[2]: t.to(device) for name, t in state.items() if name.startswith(f"{index}/")}
        step, views = own["about"].tolist()
        x = tree_map_with_path(
            lambda path, leaf, own=own: own[f"x/{keystr(path)}"] if isinstance(leaf, Tensor) else leaf,
            engine.partition.example,
        )
        session = Session(engine, x, own["y"], views=views, step=step)
        for part in sorted(int(t) for name, t in own.items() if name.startswith("waits/")):
            fed = _numbered(own, f"fed/{part}/")
            session.dtypes |= {below: h.dtype for below, h in fed.items()}
            session.mail[part] = _numbered(own, f"mail/{part}/")
            values = list(_numbered(own, f"weights/{part}/").values())
            session.rejoin(part, fed, values)
        engine.pending.append(session)


def _leaves(x: Any) -> dict[str, Any]:
    """What an input is made of, by where it is."""
    return {keystr(path): leaf for path, leaf in tree_flatten_with_path(x)[0]}


def _but_tensors(leaves: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(leaf, Tensor) else leaf for name, leaf in leaves.items()}


def _numbered(state: Mapping[str, Tensor], prefix: str) -> dict[int, Tensor]:
    """The tensors under a prefix by their number, in its order."""
    return dict(sorted((int(name[len(prefix) :]), t) for name, t in state.items() if name.startswith(prefix)))
