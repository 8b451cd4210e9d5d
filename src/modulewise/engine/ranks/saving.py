"""Checkpoints of trainers on ranks: every share writes its own parts, and a step counts once all have.

A folder holds `share-P-of-N/state-STEP`, each complete or not there at all. The newest step that all N shares have is
the checkpoint; a share removes older ones of its own when it sees a newer one complete.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ... import checkpoint
from ...errors import CheckpointError
from ..state_files import read_facts, read_tensors, write_state
from .gathering import own_names

if TYPE_CHECKING:
    from ...trainer import Trainer

__all__ = ["adopt_pieces", "complete", "drop_newer", "load_anywhere", "newest", "of_parts", "write_piece"]

_SHARE = re.compile(r"share-(\d+)-of-(\d+)")


def complete(folder: Path) -> dict[int, list[int]]:
    """For every number of shares the steps that all of them have saved, in order.

    >>> complete(Path("not-there"))
    {}
    """
    steps: dict[int, dict[int, set[int]]] = {}
    for path in folder.glob("share-*") if folder.is_dir() else ():
        found = _SHARE.fullmatch(path.name)
        if found:
            share, shares = map(int, found.groups())
            there = {int(state.name[6:]) for state in path.glob("state-*") if state.name[6:].isdecimal()}
            steps.setdefault(shares, {})[share] = there
    return {
        shares: sorted(set.intersection(*own.values())) if len(own) == shares else [] for shares, own in steps.items()
    }


def newest(folder: Path) -> tuple[int, int] | None:
    """The newest step that all shares have saved, and how many shares there were; None for no such step."""
    return max(((steps[-1], shares) for shares, steps in complete(folder).items() if steps), default=None)


def load_anywhere(trainer: Trainer, folder: Path, *, loader: Any) -> None:
    """Load a checkpoint of one process or of ranks, in one process or on ranks; see `Trainer.load`."""
    found = newest(folder)
    if trainer.crew is not None:
        trainer.crew.load(folder, loader=loader)
    elif found is not None:
        own = range(len(trainer.partition))
        adopt_pieces(trainer, folder, own=own, shares=found[1], step=found[0], loader=loader)
    else:
        checkpoint.restore(trainer, folder, loader=loader)


def of_parts(
    trainer: Trainer, parts: Iterable[int], facts: dict[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """What a state holds of some parts: weights, buffers, heads, optimisers and what goes with them."""
    own = list(parts)
    names = own_names(trainer.partition, own)  # type: ignore[arg-type]
    words = tuple(f"{part}." for part in own), tuple(f"{part}/" for part in own)
    kept = {name: dict(group) for name, group in tensors.items()}
    kept["model"] = {name: t for name, t in kept["model"].items() if name in names}
    kept["heads"] = {name: t for name, t in kept["heads"].items() if name.startswith(words[0])}
    kept["optimizers"] = {name: t for name, t in kept["optimizers"].items() if name.startswith(words[1])}
    facts = dict(facts)
    for name in ("optimizers", "schedulers"):
        facts[name] = {key: value for key, value in facts[name].items() if key.startswith(words[1])}
    for name in ("updates", "scalers"):
        facts[name] = {key: value for key, value in facts[name].items() if int(key) in own}
    return facts, kept


def write_piece(
    trainer: Trainer,
    tensors: Mapping[str, Mapping[str, Tensor]],
    folder: Path,
    *,
    own: range,
    share: int,
    shares: int,
    loader: Any,
) -> None:
    """Save one share's parts at the trainer's present step.

    Args:
        trainer: this rank's.
        tensors: of `checkpoint.tensors_of`, each as a whole.
        folder: of the run.
        own: the parts.
        share: their index.
        shares: how many there are.
        loader: saved along, or None.

    Raises:
        CheckpointError: the folder holds something else, or the state cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or not all(_SHARE.fullmatch(path.name) for path in folder.iterdir())):
        raise CheckpointError(f"{folder} holds something else than a checkpoint of ranks; give a new or empty folder")
    facts, tensors = of_parts(trainer, own, checkpoint.facts_of(trainer, loader), tensors)
    facts["share"] = {"parts": list(own), "of": len(trainer.partition)}
    if trainer.progress is not None:
        whole = replace(trainer.progress, parts=len(trainer.partition), first=0, part=0)
        facts["progress"] = asdict(whole)
    target = folder / f"share-{share}-of-{shares}" / f"state-{trainer.steps:08d}"
    write_state(target, facts, tensors)
    last = max(complete(folder).get(shares, []), default=-1)
    for path in target.parent.glob("state-*"):
        if int(path.name[6:]) < last:
            shutil.rmtree(path, ignore_errors=True)


def drop_newer(folder: Path, *, share: int, shares: int, step: int) -> None:
    """Remove a share's states after the step that a run goes on from; they will be made again."""
    for path in (folder / f"share-{share}-of-{shares}").glob("state-*"):
        if int(path.name[6:]) > step:
            shutil.rmtree(path, ignore_errors=True)


def adopt_pieces(trainer: Trainer, folder: Path, *, own: range, shares: int, step: int, loader: Any) -> None:
    """Take the state of some parts out of the pieces of a checkpoint; every other part stays as it is.

    Raises:
        CheckpointError: damaged, or of another experiment; nothing has been changed.
    """
    facts: dict[str, Any] = {}
    tensors = {name: dict(group) for name, group in checkpoint.tensors_of(trainer).items()}
    tensors["optimizers"] = {}
    for share in range(shares):
        path = folder / f"share-{share}-of-{shares}" / f"state-{step:08d}"
        piece = read_facts(path)
        parts = [part for part in piece["share"]["parts"] if part in own]
        if not facts:
            facts = {**piece, **{name: {} for name in ("optimizers", "schedulers", "updates", "scalers")}}
        if not parts:
            continue
        some, kept = of_parts(trainer, parts, piece, read_tensors(path))
        for name in ("optimizers", "schedulers", "updates", "scalers"):
            facts[name].update(some[name])
        for name, group in kept.items():
            tensors[name].update(group)
    checkpoint.adopt(trainer, facts, tensors, loader=loader, where=folder)
