"""Progress bars: one over runs, one over the batches of the present run; nothing where nobody looks."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..compare import Configuration, Result, Run, Watcher

__all__ = ["Bars"]


class Bars(Watcher):
    """Progress bars on standard error.

    Args:
        console: where they are drawn, if it is a terminal.
    """

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._measuring: TaskID | None = None
        self._runs: TaskID | None = None
        self._batches: TaskID | None = None

    def begin(self, *, rows: int, runs: int, finished: int) -> None:
        """Draw the bars."""
        self._progress.start()
        self._measuring = self._progress.add_task("measuring", total=rows, visible=rows > 0)
        self._runs = self._progress.add_task("runs", total=runs, completed=finished)
        self._batches = self._progress.add_task("", total=1, visible=False)

    def measured(self, row: Configuration) -> None:
        """One row more is measured."""
        if self._measuring is not None:
            self._progress.advance(self._measuring)

    def start(self, run: Run, *, batches: int) -> None:
        """Begin the bar of a run."""
        if self._measuring is not None and self._batches is not None:
            self._progress.update(self._measuring, visible=False)
            self._progress.reset(self._batches, total=batches, description=str(run), visible=True)

    def batch(self) -> None:
        """One batch more."""
        if self._batches is not None:
            self._progress.advance(self._batches)

    def finish(self, run: Run, result: Result) -> None:
        """One run more."""
        if self._runs is not None:
            self._progress.advance(self._runs)

    def close(self) -> None:
        """Take the bars away."""
        self._progress.stop()
