"""What was reached: a line for every finished run, kept in one file that survives being interrupted."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..compare import Experiment
from ..compare.results import field_values
from ..errors import ModulewiseError
from .recipe import Recipe, Row

__all__ = ["Book", "Record", "fingerprint", "setting"]

_APART = frozenset({"data", "seeds", "threads", "device"})
_ALWAYS = frozenset(
    {
        *("methods", "model", "parts", "cuts", "epochs", "batch_size", "optimizer", "lr", "last_lr", "momentum"),
        *("weight_decay", "schedule_lr", "milestones", "decay", "augment", "normalize", "precision", "train_limit"),
        *("test_limit", "balance", "recompute", "probe"),
    }
)
"""Fields of an experiment that were there with the first record; later ones count where they are set, so that a new
field leaves older records theirs."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run of one row of a recipe.

    Args:
        recipe: its name.
        data: name of the set.
        measure: unit of the figure.
        method: the row, as typed.
        role: `end-to-end`, or `method` for what is read against it.
        seed: of everything random.
        quick: a run with fewer examples and epochs, never mixed with full ones.
        epochs: that were run, per part.
        paper_epochs: the paper's; None where not known.
        short: fewer epochs than the paper's.
        device: where it ran.
        threads: of torch on the CPU.
        test_accuracy: share of the test split that the network's own classifier gets right; None where it failed.
        probe_accuracy: that of a linear probe on the last hidden part; None where not asked for.
        neighbours_accuracy: that of k-NN there; None where not asked for.
        figure: in the recipe's unit, %; None where training failed.
        published: the paper's, in the same unit; None where not known.
        error: why training stopped early; None where it did not.
        parts: K.
        seconds: wall time of training.
        peak_memory_bytes: of one training step.
        step_seconds: of one training step.
        versions: of everything, and the machine.
        git: commit, and whether the tree was dirty; None outside a checkout.
        setting: what identifies the row's setting on this kind of device, whatever the seed.
        fingerprint: what identifies the run.
        shared: the recipe that ran it, where another one has the very same row; None for its own run.
        flops: floating-point operations of one training step, as `checks.flops` counts them; this and what follows is
            None in records that were written before it was measured.
        batch_size: samples of that step.
        params: trainable parameters of the model.
        head_params: trainable parameters of heads, inverses and gradient predictors.
        angles: of every part's update to end-to-end backpropagation's gradient as last measured, in degrees; None where
            it was not, as in end-to-end rows.
    """

    recipe: str
    data: str
    measure: str
    method: str
    role: str
    seed: int
    quick: bool
    epochs: int
    paper_epochs: int | None
    short: bool
    device: str
    threads: int
    test_accuracy: float | None
    probe_accuracy: float | None
    neighbours_accuracy: float | None
    figure: float | None
    published: float | None
    error: str | None
    parts: int
    seconds: float
    peak_memory_bytes: int
    step_seconds: float
    versions: Mapping[str, str]
    git: Mapping[str, Any] | None
    setting: str
    fingerprint: str
    shared: str | None = None
    flops: int | None = None
    batch_size: int | None = None
    params: int | None = None
    head_params: int | None = None
    angles: Sequence[float | None] | None = None

    def to_json(self) -> dict[str, Any]:
        """The record as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Record:
        """The record that `to_json` wrote down.

        Raises:
            ModulewiseError: a field is missing.
        """
        return cls(**field_values(cls, facts, what="record"))


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()


def setting(recipe: Recipe, row: Row, *, experiment: Experiment, quick: bool, device: str) -> str:
    """What identifies a row's setting: all that its figure follows from but the seed, as 16 hexadecimal digits.

    The recipe's name is not in it, so that recipes with the same end-to-end row share its runs, and neither are the
    place of the data, the index of the GPU and the number of threads, which only changes the order of sums. Code is not
    seen: a record has its commit, and a network that changes gets another name.
    """
    plain = Experiment(methods=experiment.methods).to_json()
    facts = {
        key: value
        for key, value in experiment.to_json().items()
        if key not in _APART and (key in _ALWAYS or value != plain[key])
    }
    facts |= {"data": recipe.data, "quick": quick, "device": device.partition(":")[0]}
    return _digest(facts | {"evaluation": row.evaluation.value})


def fingerprint(key: str, *, seed: int) -> str:
    """What identifies a run of a setting.

    >>> fingerprint("a", seed=0) != fingerprint("a", seed=1)
    True
    """
    return _digest({"setting": key, "seed": seed})


class Book:
    """The file of records, JSON lines.

    Args:
        path: need not exist; nothing is written before the first record.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def records(self) -> list[Record]:
        """Every record, in the order written; a line that was being written when it was last left is none.

        Raises:
            ModulewiseError: another line is damaged.
        """
        found = []
        for number, line in enumerate(self._whole().splitlines(), start=1):
            try:
                found.append(Record.from_json(json.loads(line)))
            except (ValueError, TypeError, AttributeError) as error:
                raise ModulewiseError(
                    f"{self.path}, line {number} is damaged ({error}); remove the line to have the run again"
                ) from error
        return found

    def append(self, record: Record) -> None:
        """Write one record, on the disk when this returns; what is left of an unfinished line is cut off first.

        Raises:
            ModulewiseError: the file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file, _alone(file):
                file.truncate(len(self._whole()))
                file.write(json.dumps(record.to_json()).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ModulewiseError(f"{self.path} cannot be written: {error.strerror or error}") from error

    def _whole(self) -> bytes:
        if not self.path.exists():
            return b""
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise ModulewiseError(f"{self.path} cannot be read: {error.strerror or error}") from error
        return content[: content.rfind(b"\n") + 1]


@contextmanager
def _alone(file: BinaryIO) -> Iterator[None]:
    """No other process of this machine appends in the block, where the system can lock files."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
