"""What a few-labels experiment came to: rows, and the folder that keeps them and what they were made from."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ...compare.results import field_values
from ...errors import ModulewiseError
from .settings import FewLabels

__all__ = ["HEADINGS", "LabelFolder", "LabelRow", "table_rows"]

HEADINGS = ("arm", "labels a class", "labels", "draws", "mean", "standard deviation", "min", "max")
_ROWS, _SETTINGS, _LOCK, _DRAFT = "labels.jsonl", "settings.json", "in-use", ".draft-"


@dataclass(frozen=True, kw_only=True)
class LabelRow:
    """One arm with one number of labels.

    Args:
        arm: its name.
        seen: which labels it has read, in words.
        per_class: n; None for all training labels.
        labels: class labels that the last stage read.
        accuracies: of every draw, on the test split, 0 to 1.
        seconds: of training and scoring all draws, the network's own training apart.
        network_seconds: of training the network that the arm starts from; None where it starts from none.
        seed: the experiment's.
        device: where it ran, with the name of the GPU or the number of threads.
        versions: of what it was made with.
        git: commit and dirty flag; None outside a checkout.
        settings: the experiment.
    """

    arm: str
    seen: str
    per_class: int | None
    labels: int
    accuracies: tuple[float, ...]
    seconds: float
    network_seconds: float | None
    seed: int
    device: str
    versions: Mapping[str, str]
    git: Mapping[str, Any] | None
    settings: Mapping[str, Any]

    @property
    def mean(self) -> float:
        """Mean accuracy over draws."""
        return statistics.fmean(self.accuracies)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over draws, of a sample; None for one draw."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None

    def to_json(self) -> dict[str, Any]:
        """The row as plain data."""
        return asdict(self) | {"accuracies": list(self.accuracies)}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> LabelRow:
        """The row that `to_json` wrote down.

        Raises:
            ModulewiseError: a field is missing.
        """
        values = field_values(cls, facts, what="row of labels")
        return cls(**(values | {"accuracies": tuple(values["accuracies"])}))


def table_rows(rows: Sequence[LabelRow]) -> list[tuple[str, ...]]:
    """Cells below `HEADINGS`, in percent."""
    found: list[tuple[str, ...]] = []
    for row in rows:
        spread = "" if row.deviation is None else f"{100 * row.deviation:.2f}"
        per_class = "all" if row.per_class is None else str(row.per_class)
        figures = (f"{100 * value:.2f}" for value in (row.mean, min(row.accuracies), max(row.accuracies)))
        mean, least, most = figures
        found.append((row.arm, per_class, str(row.labels), str(len(row.accuracies)), mean, spread, least, most))
    return found


class LabelFolder:
    """`settings.json`, `labels.jsonl` and the networks of one experiment; survives being stopped at any moment.

    Args:
        path: a new or empty folder, or one that this experiment has been run in.

    Nothing is written before `opened`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def rows_file(self) -> Path:
        """One JSON object a line: an arm with one number of labels."""
        return self.path / _ROWS

    def check(self, settings: FewLabels) -> None:
        """Refuse a folder that holds something else.

        Raises:
            ModulewiseError: it is no folder, holds other files, or belongs to another experiment.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise ModulewiseError(f"{self.path} is a file, expected a new or empty folder")
        place = self.path / _SETTINGS
        if not place.is_file():
            if any(file.name != _LOCK and not file.name.startswith(_DRAFT) for file in self.path.iterdir()):
                raise ModulewiseError(f"{self.path} holds something else; give a new or empty folder")
            return
        try:
            held = json.loads(place.read_text())
        except ValueError as error:
            raise ModulewiseError(f"{place} is damaged ({error}); give another folder") from error
        given = settings.to_json()
        differing = sorted(key for key in {*held, *given} if held.get(key) != given.get(key))
        if differing:
            shown = "; ".join(f"{key} is {held.get(key)}, not {given.get(key)}" for key in differing)
            raise ModulewiseError(
                f"{self.path} holds another experiment ({shown}); give another folder, or that experiment's command"
            )

    @contextmanager
    def opened(self, settings: FewLabels) -> Iterator[None]:
        """The folder as this process's alone, for the block.

        Raises:
            ModulewiseError: another process is at work in it, it holds something else, or it cannot be written.
        """
        self.check(settings)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with (self.path / _LOCK).open("a") as lock:
                if not _locked(lock.fileno()):
                    raise ModulewiseError(
                        f"{self.path} is in use by another process; wait for it or give another --out"
                    )
                self.check(settings)
                if not (self.path / _SETTINGS).is_file():
                    self.write(_SETTINGS, (json.dumps(settings.to_json(), indent=1) + "\n").encode())
                self._cut_short()
                yield
        except OSError as error:
            raise ModulewiseError(f"{self.path} cannot be written: {error.strerror or error}") from error

    def rows(self) -> list[LabelRow]:
        """Every finished row, in the order written.

        Raises:
            ModulewiseError: a line other than an unfinished last one is damaged.
        """
        found = []
        for number, line in enumerate(self._whole().splitlines(), start=1):
            try:
                found.append(LabelRow.from_json(json.loads(line)))
            except ValueError as error:
                raise ModulewiseError(
                    f"{self.rows_file}, line {number} is damaged ({error}); remove the line to have it made again"
                ) from error
        return found

    def append(self, row: LabelRow) -> None:
        """Write a finished row, on the disk when this returns."""
        with self.rows_file.open("ab") as file:
            file.write(json.dumps(row.to_json()).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def write(self, name: str, content: bytes) -> Path:
        """Write a file beside its place, then put it there in one step."""
        target, draft = self.path / name, self.path / f"{_DRAFT}{name}"
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
        return target

    def keep(self, name: str, model: nn.Module, *, seconds: float) -> None:
        """Save a trained network, and how long it took."""
        from safetensors.torch import save

        state = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
        self.write(f"{name}.safetensors", save(state, metadata={"seconds": repr(seconds)}))

    def kept(self, name: str, model: nn.Module) -> float | None:
        """Put a saved network's weights into a model, and say how long they took; None where none are saved.

        Raises:
            ModulewiseError: the file is damaged or of another model; the model is untouched.
        """
        from safetensors import SafetensorError, safe_open

        path = self.path / f"{name}.safetensors"
        if not path.is_file():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
                seconds = float((file.metadata() or {})["seconds"])
            own = model.state_dict()
            if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in state.items()}:
                raise ValueError("its tensors are those of another model")
            model.load_state_dict(state)
        except (SafetensorError, KeyError, ValueError) as error:
            raise ModulewiseError(
                f"{path} is damaged ({error}); remove it to have the network trained again"
            ) from error
        return seconds

    def _whole(self) -> bytes:
        """The lines that were written to their end: all up to the last newline."""
        if not self.rows_file.is_file():
            return b""
        content = self.rows_file.read_bytes()
        return content[: content.rfind(b"\n") + 1]

    def _cut_short(self) -> None:
        whole = self._whole()
        if self.rows_file.exists() and len(whole) < self.rows_file.stat().st_size:
            with self.rows_file.open("r+b") as file:
                file.truncate(len(whole))


def _locked(descriptor: int) -> bool:
    """Whether the lock of a file could be had; the system gives it back when the process ends. Unknown: yes."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
