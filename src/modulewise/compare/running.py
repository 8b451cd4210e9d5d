"""Run an experiment: validate everything, measure every row, then train and write down run by run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .. import registry
from ..checkpoint import describe
from ..engine.fitting import Epoch
from ..errors import ModulewiseError, NonFiniteLossError
from ..trainer import Trainer
from .aligning import Aligning
from .assembling import Workshop
from .experiment import Configuration, Experiment, Run, configurations, fingerprint, runs
from .folder import Folder
from .measuring import Measurement, measure
from .probing import probe_parts
from .results import Result, git_state, versions
from .watching import Watcher

__all__ = ["History", "Ticking", "run", "threads_set"]


class Ticking:
    """A loader that tells watchers of every batch; all else is the loader's own.

    Args:
        loader: what to iterate over.
        watchers: whom to tell.
    """

    def __init__(self, loader: Any, watchers: Sequence[Watcher]) -> None:
        self._loader, self._watchers = loader, watchers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        for _, x, y in self.with_indices():
            yield x, y

    def with_indices(self) -> Iterator[Any]:
        """Batches with the indices of their samples."""
        for item in self._loader.with_indices():
            for watcher in self._watchers:
                watcher.batch()
            yield item


class History:
    """Gathers a line after every pass; a callback of `Trainer.fit`.

    Args:
        workshop: whose data the probes use.
        trainer: what is trained.
        run: which run it is.
        watchers: told of every line.
        aligning: measures angles to end-to-end backpropagation; None for none.
    """

    def __init__(
        self,
        workshop: Workshop,
        trainer: Trainer,
        run: Run,
        watchers: Sequence[Watcher],
        *,
        aligning: Aligning | None = None,
    ) -> None:
        self._workshop, self._trainer, self._run, self._watchers = workshop, trainer, run, watchers
        self._aligning = aligning
        self.entries: list[dict[str, Any]] = []
        self._add(epoch=0, part=None, losses={}, seconds=0.0)

    def __call__(self, epoch: Epoch) -> None:
        """Note a pass."""
        self._add(epoch=epoch.epoch + 1, part=epoch.part, losses=epoch.losses, seconds=epoch.seconds)

    @property
    def updates(self) -> int:
        """Part-updates so far."""
        trainer = self._trainer
        if trainer.solver is not None:
            return trainer.steps * len(trainer.partition)
        return sum(trainer.updater.steps.values())

    def _add(self, *, epoch: int, part: int | None, losses: dict[int, float], seconds: float) -> None:
        entry = {
            "epoch": epoch,
            "part": part,
            "losses": {str(index): loss for index, loss in losses.items()},
            "probe": self._probe(),
            "seconds": seconds,
            "steps": self._trainer.steps,
            "part_updates": self.updates,
            "alignment": None if self._aligning is None else self._aligning.after(len(self.entries)),
        }
        self.entries.append(entry)
        for watcher in self._watchers:
            watcher.record(self._run, entry)

    def _probe(self) -> list[float] | None:
        material = self._workshop.material
        if material.fitted is None or material.held is None:
            return None
        plain = self._workshop.plain
        partition = self._trainer.partition
        return probe_parts(partition, plain(material.fitted), plain(material.held), classes=material.dataset.classes)


@contextmanager
def threads_set(count: int | None) -> Iterator[None]:
    """Torch's number of threads for the block; None leaves it."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def run(experiment: Experiment, *, out: str | Path | None = None, watchers: Sequence[Watcher] = ()) -> list[Result]:
    """Train every (method, parts, seed) of an experiment in this process.

    All is validated before anything is written or trained. With a folder, every finished run is on disk at once, and
    the same call goes on after an interruption: finished runs are not made again. A run whose loss is not finite is
    written down with its error; the others go on.

    Args:
        experiment: what to compare.
        out: folder for `results.jsonl`; None keeps nothing.
        watchers: told how it goes.

    Returns:
        One result a run, in the order of `runs(experiment)`.

    Raises:
        ModulewiseError: something does not exist or does not fit; `out` holds another experiment.

    >>> results = run(Experiment(methods=("dgl",), model="mlp", epochs=1, train_limit=64, batch_size=32, probe=False))
    >>> results[0].label, results[0].modular, results[0].part_updates
    ('dgl@simultaneous', 'weakly modular', 4)
    """
    try:
        with threads_set(experiment.threads):
            return _run(experiment, None if out is None else Folder(out), watchers)
    finally:
        for watcher in watchers:
            watcher.close()


def _run(experiment: Experiment, folder: Folder | None, watchers: Sequence[Watcher]) -> list[Result]:
    rows, todo = configurations(experiment), runs(experiment)
    if folder is not None:
        folder.check(experiment)
    workshop = Workshop(experiment)
    workshop.check(rows)
    if folder is not None:
        folder.begin(experiment)
    done = {} if folder is None else {result.fingerprint: result for result in folder.results()}
    keys = {one: fingerprint(experiment, one) for one in todo}
    pending = [one for one in todo if keys[one] not in done]
    known = {} if folder is None else folder.measurements()
    unmeasured = [row for row in rows if str(row) not in known and any(one.configuration == row for one in pending)]
    for watcher in watchers:
        watcher.begin(rows=len(unmeasured), runs=len(todo), finished=len(todo) - len(pending))
    if unmeasured:
        known |= _measured(workshop, unmeasured, watchers)
        if folder is not None:
            folder.keep(known)
    for one in pending:
        result = _train(workshop, one, known[str(one.configuration)], keys[one], watchers)
        done[keys[one]] = result
        if folder is not None:
            folder.append(result)
        for watcher in watchers:
            watcher.finish(one, result)
    return [done[keys[one]] for one in todo]


def _measured(workshop: Workshop, rows: Sequence[Configuration], watchers: Sequence[Watcher]) -> dict[str, Measurement]:
    def tell(row: Configuration) -> None:
        for watcher in watchers:
            watcher.measured(row)

    return {str(row): figures for row, figures in measure(workshop, rows, measured=tell).items()}


def _train(workshop: Workshop, one: Run, figures: Measurement, key: str, watchers: Sequence[Watcher]) -> Result:
    row, experiment, error = one.configuration, workshop.experiment, None
    trainer = workshop.trainer(row, seed=one.seed)
    loader = workshop.loader(row, seed=one.seed)
    passes = experiment.epochs * row.order.passes(row.parts)
    for watcher in watchers:
        watcher.start(one, batches=passes * len(loader))
    history = History(workshop, trainer, one, watchers, aligning=Aligning(workshop, trainer, row))
    try:
        trainer.fit(Ticking(loader, watchers), epochs=experiment.epochs, schedule=row.order, callbacks=[history])
    except NonFiniteLossError as problem:
        error = str(problem)
    except ModulewiseError as problem:
        raise type(problem)(f"{one}: {problem}") from problem
    # The test split is looked at here, and by watchers that score the trained model: never before the last pass.
    test = None if error else trainer.evaluate(workshop.plain(workshop.material.test))
    if error is None:
        for watcher in watchers:
            watcher.trained(one, trainer.partition, workshop)
    return _result(
        workshop,
        one,
        figures,
        history,
        key=key,
        error=error,
        accuracy=test.accuracy if test else None,
        loss=test.loss if test else None,
        method=describe(trainer.method),
    )


def _result(
    workshop: Workshop,
    one: Run,
    figures: Measurement,
    history: History,
    *,
    key: str,
    error: str | None,
    accuracy: float | None,
    loss: float | None,
    method: Any,
) -> Result:
    row, experiment = one.configuration, workshop.experiment
    return Result(
        fingerprint=key,
        method=str(row.method),
        schedule=row.schedule,
        locality=figures.locality,
        locality_audit={"ok": figures.locality_ok, "observed": figures.observed},
        modular=registry.modularity(row.locality, row.order, parts=row.parts),
        parts=row.parts,
        cuts=list(figures.cuts),
        seed=one.seed,
        model=experiment.model,
        data=experiment.data,
        test_accuracy=accuracy,
        test_loss=loss,
        error=error,
        peak_memory_bytes=figures.peak_memory_bytes,
        peak_breakdown=figures.peak_breakdown,
        step_seconds=figures.step_seconds,
        train_seconds=sum(entry["seconds"] for entry in history.entries),
        part_updates=history.updates,
        params=figures.params,
        head_params=figures.head_params,
        epochs=experiment.epochs,
        batch_size=workshop.batch_size(row),
        device=experiment.device,
        versions=versions(),
        git=git_state(),
        options=experiment.to_json() | {"lr": experiment.rate, "method": method},
        history=history.entries,
        flops=figures.flops,
    )
