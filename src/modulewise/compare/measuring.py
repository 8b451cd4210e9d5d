"""Memory, time, operations and locality of one training step of every row, on fresh models, before any training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..checks.flops import counted_flops
from ..engine.features import frozen_boundaries
from ..metering import interleaved_seconds, measure_step
from ..trainer import Trainer
from .assembling import Workshop
from .experiment import Configuration

__all__ = ["Measurement", "measure"]

_AUDITED = 64
_RATE = 1e-3  # a rate at which training diverges must not keep a step from being measured
_LIVE_PARAMETERS = 100_000_000


@dataclass(frozen=True)
class Measurement:
    """One training step at the experiment's batch size.

    Args:
        peak_memory_bytes: most bytes alive at once: the allocator's figure on CUDA, the sum of storages on the CPU.
        peak_breakdown: bytes of storages by category at that moment.
        step_seconds: median; of the sequential schedule the sum over parts, each on one batch of features.
        params: trainable parameters of the model.
        head_params: trainable parameters of heads, inverses and gradient predictors.
        cuts: where the model is cut.
        locality: what the method declares on this partition.
        observed: the reach that the audit saw; None for a method with its own update.
        locality_ok: whether the audit bears the declaration out.
        flops: floating-point operations, as `checks.flops` counts them; of the sequential schedule the sum over parts,
            each on one batch of features. None where they could not be counted, or were not by an earlier version.
    """

    peak_memory_bytes: int
    peak_breakdown: Mapping[str, int]
    step_seconds: float
    params: int
    head_params: int
    cuts: tuple[str, ...]
    locality: str
    observed: str | None
    locality_ok: bool
    flops: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The measurement as plain data."""
        return asdict(self) | {"cuts": list(self.cuts)}

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Measurement:
        """The measurement that `to_json` wrote down."""
        return cls(**(facts | {"cuts": tuple(facts["cuts"])}))


@dataclass(frozen=True)
class _Piece:
    """Something to run that is measured by itself: a whole step, or one part's share of a sequential one."""

    run: Callable[[], object]
    inputs: tuple[Tensor, ...]
    part: int | None


def _pieces(trainer: Trainer, row: Configuration, x: Tensor, y: Tensor, *, kept: bool) -> Iterator[_Piece]:
    """The pieces of one step; where features are kept, those that a sequential part reads are made beforehand."""
    if row.order.passes(row.parts) == 1:
        yield _Piece(lambda: trainer.step(x, y, views=row.views), (x, y), None)
        return
    for part in range(len(trainer.partition)):
        fed, _ = trainer.prepared(x, y, views=row.views)
        reads = set(trainer.partition.plans(fed)[part].reads)
        ready = _boundaries(trainer, part, fed, reads) if kept else None

        def run(part: int = part, reads: set[int] = reads, ready: dict[int, Tensor] | None = ready) -> None:
            fed, views = trainer.prepared(x, y, views=row.views)
            boundaries = _boundaries(trainer, part, fed, reads) if ready is None else ready
            batch = trainer.batch(fed, y, views=views, boundaries=boundaries)
            with trainer.guarded():
                batch.up(part)
                batch.down()

        yield _Piece(run, (x, y, *(ready or {}).values()), part)


def _boundaries(trainer: Trainer, part: int, x: Tensor, reads: set[int]) -> dict[int, Tensor]:
    made = frozen_boundaries(trainer.partition, part, x, {})
    return {index: h for index, h in made.items() if index in reads}


def _memory(
    trainer: Trainer, pieces: Iterable[_Piece], device: torch.device, *, base: int
) -> tuple[int, dict[str, int]]:
    """Peak of the piece that needs most, its optimiser's state included; `base` is what the device held before."""
    best: tuple[int, dict[str, int]] = (-1, {})
    for piece in pieces:
        piece.run()
        report = measure_step(
            piece.run,
            model=trainer.partition.model,
            heads=trainer.objectives,
            optimizers=list(trainer.updater.optimizers.values()),
            inputs=piece.inputs,
            device=device,
        )
        peak = report.peak_bytes
        if report.allocated_bytes is not None:
            peak = report.allocated_bytes - base
        if peak > best[0]:
            best = peak, {category.value: nbytes for category, nbytes in report.at_peak.items()}
        if piece.part is not None:
            trainer.updater.release(piece.part)
    return best


def _flops(trainer: Trainer, pieces: Iterable[_Piece]) -> int | None:
    """The sum over pieces; None where one of them cannot be counted."""
    total = 0
    for piece in pieces:
        counted = counted_flops(piece.run)
        if piece.part is not None:
            trainer.updater.release(piece.part)
        if counted is None:
            return None
        total += counted
    return total


def _trainable(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters if p.requires_grad)


def measure(
    workshop: Workshop,
    rows: Sequence[Configuration],
    *,
    repeats: int = 5,
    measured: Callable[[Configuration], None] = lambda row: None,
) -> dict[Configuration, Measurement]:
    """Measure rows side by side: their steps are timed in turn, A B C A B C, where their models fit in memory together.

    Args:
        workshop: makes the models; no generator is moved and no run is touched.
        rows: what to measure.
        repeats: timed rounds, >= 1.
        measured: called with every row whose memory and locality are known.
    """
    found: dict[Configuration, Measurement] = {}
    for group in _groups(workshop, rows):
        parts = {row: _measured(workshop, row, measured) for row in group}
        steps = {str(index): timed for index, (_, timed) in enumerate(parts.values())}
        timings = interleaved_seconds(steps, warmup=2, repeats=repeats)
        for index, (row, (figures, _)) in enumerate(parts.items()):
            found[row] = Measurement(step_seconds=timings[str(index)].median, **figures)
    return found


def _groups(workshop: Workshop, rows: Sequence[Configuration]) -> Iterator[list[Configuration]]:
    size = sum(p.numel() for p in workshop.model(0).parameters()) if rows else 0
    together = max(1, _LIVE_PARAMETERS // max(1, size))
    for start in range(0, len(rows), together):
        yield list(rows[start : start + together])


def _audited(workshop: Workshop, row: Configuration, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if row.full_batch:
        return x, y
    return workshop.batch(_AUDITED, views=row.views) if row.views > 1 else (x[:_AUDITED], y[:_AUDITED])


def _measured(
    workshop: Workshop, row: Configuration, measured: Callable[[Configuration], None]
) -> tuple[dict[str, Any], Callable[[], None]]:
    """Everything but the time, and what is to be timed."""
    base = torch.cuda.memory_allocated(workshop.device) if workshop.device.type == "cuda" else 0
    x, y = workshop.batch(workshop.batch_size(row), views=row.views)
    trainer = workshop.trainer(row, seed=0, rate=min(_RATE, workshop.experiment.rate))
    trainer.partition.model.train()
    audit = checks.locality(trainer, *_audited(workshop, row, x, y), views=row.views)
    for _ in range(max((objective.delay for objective in trainer.objectives), default=0)):
        trainer.step(x, y, views=row.views)  # so that every part learns in the step that is measured
    kept = workshop.augment is None
    peak, breakdown = _memory(trainer, _pieces(trainer, row, x, y, kept=kept), workshop.device, base=base)
    figures = {
        "peak_memory_bytes": peak,
        "peak_breakdown": breakdown,
        "params": _trainable(trainer.partition.model.parameters()),
        "head_params": sum(_trainable(objective.parameters()) for objective in trainer.objectives),
        "cuts": trainer.partition.cuts,
        "locality": str(audit.declared),
        "observed": None if audit.observed is None else audit.observed.value,
        "locality_ok": bool(audit.ok),
        "flops": _flops(trainer, _pieces(trainer, row, x, y, kept=kept)),
    }
    measured(row)
    pieces = list(_pieces(trainer, row, x, y, kept=kept))

    def step() -> None:
        for piece in pieces:
            piece.run()

    return figures, step
