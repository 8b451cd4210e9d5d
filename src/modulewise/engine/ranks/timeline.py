"""Who computed, waited and sent: spans of every rank, their shares, and a trace that a browser shows."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from time import perf_counter, time

__all__ = ["Doing", "Recorder", "Share", "Span", "Timeline"]


class Doing(StrEnum):
    """What a rank does in a span."""

    COMPUTE = "compute"
    WAIT = "wait"
    SEND = "send"
    REDUCE = "reduce"
    SAVE = "save"


@dataclass(frozen=True)
class Span:
    """One stretch of a rank's time.

    Args:
        rank: whose.
        doing: what it does.
        part: index of the part, or the first of several.
        step: index of the training step.
        start: seconds since the epoch, by the rank's own clock.
        seconds: how long.
        inner: seconds of it that are spans of their own.
    """

    rank: int
    doing: Doing
    part: int
    step: int
    start: float
    seconds: float
    inner: float = 0.0


class Recorder:
    """Notes spans of one rank.

    Args:
        rank: whose.
        limit: most spans kept, the latest ones.
    """

    def __init__(self, rank: int, *, limit: int) -> None:
        self.rank, self.spans = rank, deque[Span](maxlen=limit)
        self._inside: list[float] = []
        # One reading of the day's clock, so that a correction of it bends no span.
        self._base = time() - perf_counter()

    @contextmanager
    def span(self, doing: Doing, part: int, step: int) -> Iterator[None]:
        """Note the block."""
        start = perf_counter()
        self._inside.append(0.0)
        try:
            yield
        finally:
            taken, whole = self._inside.pop(), perf_counter() - start
            if self._inside:
                self._inside[-1] += whole
            self.spans.append(Span(self.rank, doing, part, step, self._base + start, whole, taken))


@dataclass(frozen=True)
class Share:
    """What one rank did with its time, as shares of the whole timeline (0 to 1).

    Args:
        rank: whose.
        part: its first part.
        compute: own work.
        wait: waiting for boundaries, labels or feedback.
        send: waiting for room on the wire.
        reduce: adding gradients up over the data axis.
        save: writing checkpoints.
    """

    rank: int
    part: int
    compute: float
    wait: float
    send: float
    reduce: float
    save: float


@dataclass(frozen=True)
class Timeline:
    """The spans of all ranks, in order of their start.

    >>> spans = [Span(0, Doing.COMPUTE, 0, 0, 0.0, 1.0), Span(1, Doing.WAIT, 1, 0, 0.0, 1.0)]
    >>> timeline = Timeline([*spans, Span(1, Doing.COMPUTE, 1, 0, 1.0, 1.0)])
    >>> [(share.rank, share.compute, share.wait) for share in timeline.shares()]
    [(0, 0.5, 0.0), (1, 0.5, 0.5)]
    """

    spans: Sequence[Span]

    @property
    def seconds(self) -> float:
        """From the first start to the last end."""
        if not self.spans:
            return 0.0
        return max(s.start + s.seconds for s in self.spans) - min(s.start for s in self.spans)

    def shares(self) -> list[Share]:
        """What every rank did with the time."""
        whole = self.seconds or 1.0
        found = []
        for rank in sorted({span.rank for span in self.spans}):
            own = [span for span in self.spans if span.rank == rank]
            of = {doing: sum(s.seconds - s.inner for s in own if s.doing is doing) / whole for doing in Doing}
            found.append(Share(rank, min(s.part for s in own), *(of[doing] for doing in Doing)))
        return found

    def slow(self, *, over: float = 1.2) -> list[str]:
        """One line for every rank whose own work takes `over` times the mean of all: the others wait for it."""
        shares = self.shares()
        mean = sum(share.compute for share in shares) / len(shares) if shares else 0.0
        return [
            f"rank {share.rank} (from part {share.part}) computes {share.compute / mean:.2f} x the mean of all ranks, "
            f"{100 * share.compute:.0f} % of the time; move its cuts with balance=mw.balance.time"
            for share in shares
            if mean > 0 and share.compute > over * mean
        ]

    def write_trace(self, path: str | Path) -> None:
        """Write a Chrome trace (chrome://tracing, Perfetto): one row a rank, microseconds."""
        first = min((span.start for span in self.spans), default=0.0)
        events = [
            {
                "name": f"{span.doing.value} part {span.part}",
                "cat": span.doing.value,
                "ph": "X",
                "pid": 0,
                "tid": span.rank,
                "ts": round(1e6 * (span.start - first), 1),
                "dur": round(1e6 * span.seconds, 1),
                "args": {"step": span.step},
            }
            for span in self.spans
        ]
        names = [
            {"name": "thread_name", "ph": "M", "pid": 0, "tid": rank, "args": {"name": f"rank {rank}"}}
            for rank in sorted({span.rank for span in self.spans})
        ]
        Path(path).write_text(json.dumps({"traceEvents": names + events, "displayTimeUnit": "ms"}))
