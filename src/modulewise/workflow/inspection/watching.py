"""A watcher of comparisons that looks inside every run when it has been trained."""

from __future__ import annotations

from pathlib import Path

from ...compare import Run, Watcher
from ...compare.assembling import Workshop
from ...compare.experiment import fingerprint
from ...methods import Backprop
from ...partition import AnyPartition
from .boundaries import Reading, read
from .diagnose import part_states
from .pictured import keep_features
from .recording import Record, append_to
from .runs import place_of, samples_of
from .states import Measures

__all__ = ["Looking"]


class Looking(Watcher):
    """Writes the last state of every run of a comparison into its folder; `modulewise inspect` shows it.

    Backpropagation is the twin of the runs that follow it with the same number of parts and the same seed: list it
    first. Objectives, gradients and costs are not in it, which need the trainer.

    Args:
        folder: of the comparison.
        measures: what to measure with.
    """

    def __init__(self, folder: Path, *, measures: Measures | None = None) -> None:
        self._folder, self._measures = folder, measures or Measures()
        self._twins: dict[tuple[int, int], Reading] = {}

    def trained(self, run: Run, partition: AnyPartition, workshop: Workshop) -> None:
        """Look at a run that has been trained to its end."""
        fitted, held, held_out = samples_of(workshop)
        row, reading = run.configuration, read(partition, workshop.plain(held))
        twin = self._twins.get((row.parts, run.seed))
        if issubclass(row.method.type, Backprop):
            self._twins[row.parts, run.seed] = reading
        states = part_states(
            read(partition, workshop.plain(fitted)),
            reading,
            boundaries=[part.output for part in partition.parts],
            twin=twin,
            measures=self._measures,
        )
        passes = workshop.experiment.epochs * row.order.passes(row.parts)
        record = Record(
            passes=passes, part=None, step=passes, losses={}, states=states, held_out=held_out, samples=len(reading)
        )
        place = place_of(self._folder, fingerprint(workshop.experiment, run))
        place.mkdir(parents=True, exist_ok=True)
        keep_features(place, reading, partition)
        append_to(place, record)
