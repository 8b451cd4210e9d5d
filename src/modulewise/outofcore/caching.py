"""Where the frozen parts' features come from: settings, and the two stores that keep one boundary for every sample."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine.state_files import flush
from ..errors import CheckpointError, DataError

__all__ = ["DiskCache", "DiskStore", "FeatureSource", "HostCache", "HostStore", "Recompute", "Store"]

Indexed = Iterable[tuple[Tensor, Any, Any]]
Compute = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True, kw_only=True)
class Recompute:
    """Run the frozen parts again for every batch.

    Args:
        batches: how many batches go through the frozen parts together, >= 1: each part is read once for all of them,
            and their boundaries are in memory together.
    """

    batches: int = 8


@dataclass(frozen=True, kw_only=True)
class HostCache:
    """Keep the boundary below the part in training in host memory, for every sample.

    Args:
        limit_bytes: most bytes for it and for the one it is made from.
    """

    limit_bytes: int = 4 << 30


@dataclass(frozen=True, kw_only=True)
class DiskCache:
    """Keep the boundary below the part in training in a file with checksums, for every sample.

    Args:
        limit_bytes: most bytes for it and for the one it is made from.
    """

    limit_bytes: int = 64 << 30


FeatureSource = Recompute | HostCache | DiskCache


class Store(ABC):
    """One boundary for every sample.

    Attributes:
        index: of the boundary that is complete; -1 for none.
    """

    index: int = -1

    @abstractmethod
    def advance(self, boundary: int, count: int, samples: Indexed, compute: Compute) -> None:
        """Fill with the next boundary, then let the one before go.

        Args:
            boundary: `index` + 1.
            count: number of samples.
            samples: (indices (N,), x, y) over all samples in order.
            compute: compute(indices, x) -> the boundary (N, ...).
        """

    @abstractmethod
    def rows(self, indices: Tensor) -> Tensor:
        """The complete boundary (N, ...) of some samples."""

    @abstractmethod
    def clear(self) -> None:
        """Let everything go."""


class HostStore(Store):
    """In host memory; gone with the process, and then made again."""

    def __init__(self) -> None:
        self.features: Tensor | None = None

    def advance(self, boundary: int, count: int, samples: Indexed, compute: Compute) -> None:
        """See `Store`."""
        kept: Tensor | None = None
        for indices, x, _ in samples:
            h = compute(indices, x).cpu()
            kept = torch.empty((count, *h.shape[1:]), dtype=h.dtype) if kept is None else kept
            kept[indices] = h
        self.features, self.index = kept, boundary

    def rows(self, indices: Tensor) -> Tensor:
        """See `Store`."""
        assert self.features is not None
        return self.features[indices]

    def clear(self) -> None:
        """See `Store`."""
        self.features, self.index = None, -1


class DiskStore(Store):
    """In a file of rows a boundary, with a line of JSON for every run of rows: where it begins, how many, checksum.

    What a killed process wrote is checked and gone on with. A damaged row, found when the file is opened, lets the
    rows from there on be made again.

    Args:
        folder: for these files alone.
        count: number of samples.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self.mapped: Tensor | None = None
        folder.mkdir(parents=True, exist_ok=True)
        boundaries = sorted(int(path.stem[9:]) for path in folder.glob("boundary-*.jsonl"))
        whole = [boundary for boundary in boundaries if self._intact(boundary)[1] == count]
        self.index = max(whole, default=-1)
        for boundary in boundaries:
            if boundary not in (self.index, self.index + 1):
                self._remove(boundary)
        self._map()

    def advance(self, boundary: int, count: int, samples: Indexed, compute: Compute) -> None:
        """See `Store`."""
        lines, done = self._intact(boundary)
        rows, notes = self._paths(boundary)
        notes.write_text("".join(f"{line}\n" for line in lines))
        try:
            with rows.open("r+b" if rows.exists() else "w+b") as file, notes.open("a") as noted:
                for indices, x, _ in samples:
                    start, n = _run(indices)
                    if start + n <= done:
                        continue
                    self._append(file, noted, start, compute(indices, x).cpu())
                file.flush()
                os.fsync(file.fileno())
            flush(notes)
        except OSError as error:
            raise CheckpointError(
                f"the features could not be kept in {self.folder} ({error}); make room and go on, or give Recompute()"
            ) from error
        before, self.index = self.index, boundary
        self._map()
        if before >= 0:
            self._remove(before)

    def rows(self, indices: Tensor) -> Tensor:
        """See `Store`."""
        assert self.mapped is not None
        return self.mapped[indices]

    def clear(self) -> None:
        """See `Store`."""
        self.mapped, self.index = None, -1
        shutil.rmtree(self.folder, ignore_errors=True)

    def _paths(self, boundary: int) -> tuple[Path, Path]:
        return self.folder / f"boundary-{boundary:05d}.rows", self.folder / f"boundary-{boundary:05d}.jsonl"

    def _append(self, file: Any, noted: Any, start: int, h: Tensor) -> None:
        raw = h.detach().contiguous().view(torch.uint8).numpy()
        size = raw.nbytes // len(h)
        file.seek(start * size)
        file.write(raw.data)
        file.flush()  # the rows come before the line that vouches for them
        note = {"start": start, "rows": len(h), "sum": zlib.crc32(raw.data), "size": size}
        noted.write(json.dumps(note | {"shape": list(h.shape[1:]), "dtype": str(h.dtype)[6:]}) + "\n")
        noted.flush()

    def _intact(self, boundary: int) -> tuple[list[str], int]:
        """The lines that are true, and how many rows from the first on they vouch for."""
        rows, notes = self._paths(boundary)
        lines, done = [], 0
        if rows.exists() and notes.exists():
            with rows.open("rb") as file:
                for line in notes.read_text().splitlines():
                    try:
                        note = json.loads(line)
                        file.seek(note["start"] * note["size"])
                        raw = file.read(note["rows"] * note["size"])
                        if note["start"] != done or zlib.crc32(raw) != note["sum"]:
                            break
                    except (ValueError, KeyError):
                        break
                    lines.append(line)
                    done += note["rows"]
        return lines, done

    def _map(self) -> None:
        if self.index < 0:
            return
        rows, notes = self._paths(self.index)
        note = json.loads(notes.read_text().splitlines()[0])
        shape, dtype = note["shape"], getattr(torch, note["dtype"])
        size = self.count * int(torch.Size(shape).numel())
        self.mapped = torch.from_file(str(rows), shared=True, size=size, dtype=dtype).view(self.count, *shape)

    def _remove(self, boundary: int) -> None:
        for path in reversed(self._paths(boundary)):
            path.unlink(missing_ok=True)


def _run(indices: Tensor) -> tuple[int, int]:
    """Where a run of indices begins, and its length."""
    start, n = int(indices[0]), len(indices)
    if not torch.equal(indices.cpu(), torch.arange(start, start + n)):
        raise DataError("the loader's indexed() gives samples out of order, expected the order of the split")
    return start, n
