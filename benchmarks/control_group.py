"""A control group of Linux for one process: a cap on its memory, page cache included, and what it came to."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

__all__ = ["ControlGroup", "join"]

OLD, NEW = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


class ControlGroup:
    """A memory group that exists for the length of a `with` block; False in a condition where none can be made.

    Args:
        name: of the group, new.
        cap: bytes that its processes may use, page cache included, which is dropped as the cap comes near; 0 for none.

    Attributes:
        path: folder of the group; None where this machine or this user can make none.
    """

    def __init__(self, name: str, *, cap: int) -> None:
        self.name, self.cap = f"{name}-{os.getpid()}", cap
        self.path: Path | None = None

    def __enter__(self) -> ControlGroup:
        old = (OLD / "memory.limit_in_bytes").exists()
        path = (OLD if old else NEW) / self.name
        limit = path / ("memory.limit_in_bytes" if old else "memory.max")
        try:
            path.mkdir()
            if self.cap:
                limit.write_text(str(self.cap))
            elif not limit.exists():
                path.rmdir()
                return self
        except OSError:
            return self
        self.path = path
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.path is not None:
            self.path.rmdir()

    def anonymous(self) -> int:
        """Bytes of it that are no page cache, now."""
        if self.path is None:
            return 0
        facts = dict(line.split() for line in (self.path / "memory.stat").read_text().splitlines())
        return int(facts["rss"] if "rss" in facts else facts["anon"])

    def peak(self) -> int | None:
        """The most bytes so far, page cache included; None where there is no group, or the kernel does not say."""
        for name in ("memory.max_usage_in_bytes", "memory.peak"):
            if self.path is not None and (self.path / name).exists():
                return int((self.path / name).read_text())
        return None


def join(path: Path) -> None:
    """Move this process into a group; what it had before is not counted there."""
    (path / "cgroup.procs").write_text(str(os.getpid()))
