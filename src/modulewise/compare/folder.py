"""Where results are kept: a folder that belongs to one experiment and survives being interrupted at any moment."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import ModulewiseError
from .experiment import Experiment
from .measuring import Measurement
from .results import Result

__all__ = ["Folder"]

_DRAFT = ".draft-"


class Folder:
    """`experiment.json`, `measurements.json` and `results.jsonl` of one experiment.

    Args:
        path: a new or empty folder, or one that this experiment has been run in.

    Nothing is written before `begin`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def results_file(self) -> Path:
        """One JSON object a line and run."""
        return self.path / "results.jsonl"

    def check(self, experiment: Experiment) -> None:
        """Refuse a folder that holds something else.

        Raises:
            ModulewiseError: it is no folder, holds other files, or belongs to another experiment.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise ModulewiseError(f"{self.path} is a file, expected a new or empty folder")
        held = self._experiment()
        if held is None:
            if any(not path.name.startswith(_DRAFT) for path in self.path.iterdir()):
                raise ModulewiseError(
                    f"{self.path} holds something else than an experiment; give a new or empty folder"
                )
            return
        given = experiment.to_json()
        differing = sorted(key for key in {*held, *given} if held.get(key) != given.get(key))
        if differing:
            shown = "; ".join(f"{key} is {_short(held.get(key))}, not {_short(given.get(key))}" for key in differing)
            raise ModulewiseError(
                f"{self.path} holds another experiment ({shown}); give another folder, or that experiment's command"
            )

    def begin(self, experiment: Experiment) -> None:
        """Make the folder the experiment's own, and drop a line that was being written when it was last left.

        Raises:
            ModulewiseError: it is another's, or cannot be written.
        """
        self.check(experiment)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self._experiment() is None:
                self.write("experiment.json", json.dumps(experiment.to_json(), indent=1) + "\n")
            whole = self._whole()
            if self.results_file.exists() and len(whole) < self.results_file.stat().st_size:
                with self.results_file.open("r+b") as file:
                    file.truncate(len(whole))
        except OSError as error:
            raise ModulewiseError(f"{self.path} cannot be written: {error.strerror or error}") from error

    def experiment(self) -> Experiment:
        """The experiment that the folder belongs to.

        Raises:
            ModulewiseError: it belongs to none.
        """
        held = self._experiment()
        if held is None:
            raise ModulewiseError(f"{self.path} holds no experiment, expected a folder that `modulewise compare` wrote")
        return Experiment.from_json(held)

    def results(self) -> list[Result]:
        """Every finished run, in the order written.

        Raises:
            ModulewiseError: a line other than an unfinished last one is damaged.
        """
        found = []
        for number, line in enumerate(self._whole().splitlines(), start=1):
            try:
                found.append(Result.from_json(json.loads(line)))
            except ValueError as error:
                raise ModulewiseError(
                    f"{self.results_file}, line {number} is damaged ({error}); remove the line to have the run again"
                ) from error
        return found

    def append(self, result: Result) -> None:
        """Write one finished run, on the disk when this returns."""
        with self.results_file.open("ab") as file:
            file.write(json.dumps(result.to_json()).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def measurements(self) -> dict[str, Measurement]:
        """What was measured earlier, by row; empty where nothing was, or the file is not whole."""
        try:
            facts = json.loads((self.path / "measurements.json").read_text())
            return {key: Measurement.from_json(value) for key, value in facts.items()}
        except (OSError, ValueError, TypeError, KeyError):
            return {}

    def keep(self, measurements: dict[str, Measurement]) -> None:
        """Write measurements, so that a resumed experiment compares with the same figures."""
        self.write("measurements.json", json.dumps({k: m.to_json() for k, m in measurements.items()}, indent=1) + "\n")

    def write(self, name: str, text: str) -> Path:
        """Write a file beside its place, then put it there in one step."""
        target, draft = self.path / name, self.path / f"{_DRAFT}{name}"
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
        return target

    def _experiment(self) -> dict[str, Any] | None:
        path = self.path / "experiment.json"
        if not path.is_file():
            return None
        try:
            held = json.loads(path.read_text())
        except ValueError as error:
            raise ModulewiseError(f"{path} is damaged ({error}); give another folder") from error
        return held if isinstance(held, dict) else {}

    def _whole(self) -> bytes:
        """The lines that were written to their end: all up to the last newline."""
        if not self.results_file.is_file():
            return b""
        content = self.results_file.read_bytes()
        return content[: content.rfind(b"\n") + 1]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
