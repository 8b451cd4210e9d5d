"""The state of the part in training: written complete or not at all, taken back after a stop at any moment."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import commit, read
from ..engine.optimizer_states import optimizer_facts, optimizer_tensors, restore_optimizers
from ..engine.plainly import encoded
from ..engine.state_files import FORMAT
from ..errors import CheckpointError
from ..schedules import State
from .learning import Learner
from .shards import replace_file

__all__ = ["IDENTITY", "Saved", "StateFolder", "check_identity", "claim", "locked"]

IDENTITY = "modulewise.json"
GROUPS = ("part", "heads", "optimizers", "rules")


@dataclass(frozen=True)
class Saved:
    """What was committed last.

    Args:
        facts: plain data.
        tensors: by group: `part`, `heads`, `optimizers`, `rules`.
    """

    facts: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]

    @property
    def progress(self) -> State:
        """Where the schedule is."""
        return State(**self.facts["progress"])

    @property
    def part(self) -> int | None:
        """The part whose values are in it; None between two parts."""
        part: int | None = self.facts["part"]
        return part

    @property
    def final(self) -> bool:
        """Whether that part has learned all it will."""
        return bool(self.facts["final"])

    def restore(self, learner: Learner) -> None:
        """Put the objective and the optimisers of the part at hand where they were."""
        objective = learner.objectives[learner.objectives.at or 0]
        objective.load_state_dict(self.tensors["heads"])
        if objective.rule is not None:
            objective.rule.load_state_dict(self.tensors["rules"])
        # Copied out of the mapped file, which the next save takes away.
        optimizers = {name: tensor.clone() for name, tensor in self.tensors["optimizers"].items()}
        restore_optimizers(learner.updater, self.facts, optimizers, learner.device.type)


class StateFolder:
    """Where the state is committed.

    Args:
        folder: for it alone.
        identity: what must agree between a run and the one that goes on with it.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self.identity = folder, identity

    def write(
        self, learner: Learner, progress: State, *, part: dict[str, Tensor], position: Any, features: Any, final: bool
    ) -> None:
        """Commit the state.

        Args:
            learner: its objective, optimisers and steps.
            progress: where the schedule is.
            part: the values of the part at hand; none between two parts.
            position: the loader's state.
            features: the setting they come from, as plain data.
            final: whether the part has learned all it will.
        """
        objective = learner.objectives.objective
        rule = objective.rule if objective is not None else None
        facts = {
            "format": FORMAT,
            "identity": self.identity,
            "step": learner.steps,
            "progress": asdict(progress),
            "part": learner.objectives.at,
            "final": final,
            **optimizer_facts(learner.updater),
            "loader": encoded(position),
            "features": features,
            "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
        }
        groups = {
            "part": part,
            "heads": {} if objective is None else objective.state_dict(),
            "optimizers": optimizer_tensors(learner.updater),
            "rules": {} if rule is None else dict(rule.state_dict()),
        }
        commit(self.folder, facts, groups)

    def read(self) -> Saved | None:
        """What was committed last; None before anything was.

        Raises:
            CheckpointError: it is damaged, or of another run.
        """
        if not (self.folder / "latest").is_file():
            return None
        facts, tensors = read(self.folder, GROUPS)
        check_identity(facts["identity"], self.identity, self.folder)
        return Saved(facts, tensors)


def check_identity(saved: dict[str, Any], given: dict[str, Any], folder: Path) -> None:
    """Refuse to go on with another run's files.

    Raises:
        CheckpointError: naming the first thing that differs.
    """
    for name, value in json.loads(json.dumps(given)).items():
        if saved.get(name) != value:
            was, now = str(saved.get(name))[:120], str(value)[:120]
            raise CheckpointError(
                f"{folder} is of another run: its {name} is {was}, here it is {now}; give a new folder"
            )


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Make a folder this run's, or see that it is.

    Raises:
        CheckpointError: it holds something else, or another run.
    """
    path = folder / IDENTITY
    if path.is_file():
        try:
            saved = json.loads(path.read_text())
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged ({error}); start in a new folder") from error
        check_identity(saved, identity, folder)
        return
    if folder.exists() and (not folder.is_dir() or any(not p.name.startswith(".") for p in folder.iterdir())):
        raise CheckpointError(f"{folder} holds something else than an out-of-core run; give a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda draft: draft.write_text(json.dumps(identity, indent=1)))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a folder, for the block or until this process ends.

    Raises:
        CheckpointError: another process trains there.
    """
    try:
        import fcntl
    except ImportError:  # not on this system: the user's care
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CheckpointError(f"another process trains in {folder}; wait for it or give another folder") from error
        yield
