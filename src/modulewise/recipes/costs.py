"""What a row costs beside its end-to-end row: operations, time and memory of a step, and what is trained beside it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .records import Record

__all__ = ["Cost", "relative"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Costs of a method; None where they are not known.

    Args:
        flops: operations of a step, for every sample of it, relative to end-to-end backpropagation's.
        seconds: time of a step, likewise; the median over seeds.
        memory: peak bytes of a step, relative to end-to-end backpropagation's.
        auxiliary: trainable parameters of heads, inverses and predictors, relative to the model's.
        angles: of every part to end-to-end backpropagation after training, in degrees, as a mean over seeds; None for a
            part that has none.
    """

    flops: float | None = None
    seconds: float | None = None
    memory: float | None = None
    auxiliary: float | None = None
    angles: tuple[float | None, ...] | None = None

    def texts(self) -> tuple[str, str, str]:
        """Operations, time and memory, with dashes where they are not known.

        >>> Cost(flops=1.0, memory=0.456).texts()
        ('1.00', '-', '0.46')
        """
        flops, seconds, memory = (
            "-" if ratio is None else f"{ratio:.2f}" for ratio in (self.flops, self.seconds, self.memory)
        )
        return flops, seconds, memory


def relative(mine: Sequence[Record], theirs: Sequence[Record], *, same_batches: bool = True) -> Cost:
    """The costs of a row's runs beside those of its end-to-end row.

    Steps are compared on the same kind of device alone; time and operations by the sample, since a step of some methods
    takes the whole training set.

    Args:
        mine: runs of the row, over seeds.
        theirs: runs of the end-to-end row; none where there are none, which leaves what needs no comparison.
        same_batches: whether steps whose records have no batch size, as earlier ones, were on batches of the same size;
            if not, their time is not compared.
    """
    if not mine:
        return Cost()
    first = mine[0]
    auxiliary = first.head_params / first.params if first.params and first.head_params is not None else None
    angles = _mean_angles([record.angles for record in mine if record.angles is not None])
    if not theirs or _device(first) != _device(theirs[0]):
        return Cost(auxiliary=auxiliary, angles=angles)
    other = theirs[0]
    samples: float | None = 1.0 if same_batches else None
    if first.batch_size is not None and other.batch_size is not None:
        samples = other.batch_size / first.batch_size
    return Cost(
        flops=samples * first.flops / other.flops if samples and first.flops and other.flops else None,
        seconds=samples * _median_seconds(mine) / _median_seconds(theirs) if samples else None,
        memory=first.peak_memory_bytes / other.peak_memory_bytes,
        auxiliary=auxiliary,
        angles=angles,
    )


def _device(record: Record) -> str:
    return record.device.partition(":")[0]


def _median_seconds(records: Sequence[Record]) -> float:
    return statistics.median(record.step_seconds for record in records)


def _mean_angles(runs: Sequence[Sequence[float | None]]) -> tuple[float | None, ...] | None:
    if not runs:
        return None
    parts = ([angle for angle in part if angle is not None] for part in zip(*runs, strict=True))
    return tuple(statistics.fmean(known) if known else None for known in parts)
