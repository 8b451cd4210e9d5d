"""Who is told how an experiment goes: progress bars, live curves, a log of one's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModulewiseError
from ..partition import AnyPartition
from .assembling import Workshop
from .experiment import Configuration, Run
from .results import Result

__all__ = ["TensorBoard", "Watcher"]


class Watcher:
    """Does nothing; override what is of interest."""

    def begin(self, *, rows: int, runs: int, finished: int) -> None:
        """All is valid: so many rows are to be measured, and of so many runs some are finished already."""

    def measured(self, row: Configuration) -> None:
        """A row has been measured and audited."""

    def start(self, run: Run, *, batches: int) -> None:
        """A run starts, which will see so many batches."""

    def batch(self) -> None:
        """The run takes its next batch."""

    def record(self, run: Run, entry: Mapping[str, Any]) -> None:
        """A pass has ended; the entry is a line of the result's history."""

    def trained(self, run: Run, partition: AnyPartition, workshop: Workshop) -> None:
        """A run has been trained to its end; the partition is as the last pass left it."""

    def finish(self, run: Run, result: Result) -> None:
        """A run has ended and is written down."""

    def close(self) -> None:
        """Nothing more will come, after an error too."""


class TensorBoard(Watcher):
    """Live curves: loss and probe accuracy of every part over part-updates, test accuracy at the end.

    Args:
        folder: one sub-folder a run is made in it.

    Raises:
        ModulewiseError: tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ModulewiseError(
                "live curves need tensorboard, which cannot be imported; pip install 'modulewise[tensorboard]'"
            ) from error
        self._make: Any = SummaryWriter
        self._folder = Path(folder)
        self._writer: Any = None

    def start(self, run: Run, *, batches: int) -> None:
        """Open the run's curves."""
        name = re.sub(r"[^\w@=.,()-]+", "-", str(run))
        self._writer = self._make(log_dir=str(self._folder / name))

    def record(self, run: Run, entry: Mapping[str, Any]) -> None:
        """Add a point to every curve."""
        at = entry["part_updates"]
        for part, loss in entry["losses"].items():
            self._writer.add_scalar(f"loss/part {part}", loss, at)
        for part, accuracy in enumerate(entry["probe"] or ()):
            self._writer.add_scalar(f"probe accuracy/part {part}", accuracy, at)
        self._writer.flush()

    def finish(self, run: Run, result: Result) -> None:
        """Add the test accuracy and close the run's curves."""
        if result.test_accuracy is not None:
            self._writer.add_scalar("test accuracy", result.test_accuracy, result.part_updates)
        self.close()

    def close(self) -> None:
        """Close what is open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
