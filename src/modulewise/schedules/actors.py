"""Where the parts of an asynchronous schedule run, where they are processes: settings alone, Ray is not imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import MethodError

__all__ = ["Actors"]


@dataclass(frozen=True, kw_only=True)
class Actors:
    """One Ray actor a part, in processes of their own (extra `ray`). Ray is unauthenticated: a private network only.

    Memory: the object store holds batches on their way, the process of the buffers `capacity` batches a boundary and,
    where parts are checkpointed, up to `every` more: what a part has taken since its checkpoint is kept for it.

    Args:
        address: of a Ray cluster; None for a Ray of our own on this machine, listening on 127.0.0.1.
        cpus: CPUs of a Ray of our own, >= 1; None: one a part, as far as the machine has them.
        object_store_bytes: memory for batches on their way, of a Ray of our own (>= 80 MB, default 256 MB).
        folder: where every part checkpoints on its own; on a cluster a folder that all machines see. None: parts
            are not checkpointed, and one that dies ends the run.
        every: updates of a part between its checkpoints, >= 1; it is saved at the end of every pass as well.
        restarts: how often an actor that has died is started again, >= 0.
        timeout: seconds in which a part must have finished an update, starting again included, > 0; else the run ends
            with the part's name.
        share: CPUs that Ray sets aside for a part, 0 for none.
        gpus: GPUs that Ray sets aside for a part, where the model is on one; a fraction lets parts share one.
        threads: of torch in the process of a part, >= 1.

    Raises:
        MethodError: a number is out of range.
    """

    address: str | None = None
    cpus: int | None = None
    object_store_bytes: int = 256_000_000
    folder: Path | None = None
    every: int = 16
    restarts: int = 3
    timeout: float = 300.0
    share: float = 0.0
    gpus: float = 0.0
    threads: int = 1

    def __post_init__(self) -> None:
        if self.every < 1 or self.restarts < 0 or self.timeout <= 0 or self.object_store_bytes < 80_000_000:
            raise MethodError(
                f"every={self.every}, restarts={self.restarts}, timeout={self.timeout} and object_store_bytes="
                f"{self.object_store_bytes}, expected >= 1, >= 0, > 0 and >= 80000000"
            )
        if (self.cpus is not None and self.cpus < 1) or self.threads < 1 or self.share < 0 or self.gpus < 0:
            raise MethodError(
                f"cpus={self.cpus}, threads={self.threads}, share={self.share} and gpus={self.gpus}, expected at least "
                "1, 1, 0 and 0"
            )
