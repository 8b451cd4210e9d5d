"""From a setting, or none, to the feed of a run: refused where it does not fit, planned where nothing was said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..checkpoint import describe
from ..engine.features import comes_back
from ..errors import CheckpointError, MethodError
from ..partition.tree import plain
from .caching import DiskCache, DiskStore, FeatureSource, HostCache, HostStore, Recompute
from .feeding import Cached, Feed, Frozen, Recomputed
from .holdings import placed
from .planning import Costs, cache_bytes, free_bytes, planned, seconds_of, write_seconds

__all__ = ["chosen", "feed_of"]

KINDS: dict[str, type[FeatureSource]] = {"Recompute": Recompute, "HostCache": HostCache, "DiskCache": DiskCache}


def chosen(
    given: FeatureSource | None, saved: dict[str, Any] | None, *, loader: Any, epochs: int, frozen: Frozen, folder: Path
) -> FeatureSource:
    """Where features come from: what is given, else what the run began with, else what is planned.

    Raises:
        MethodError: a cache is given for samples that do not come back unchanged, or is too small.
        CheckpointError: the run began with another setting, so that sums would be rounded otherwise.
    """
    if saved is not None:
        if given is not None and describe(given) != saved:
            raise CheckpointError(
                f"the run began with features={_said(saved)}, here it is {_said(describe(given))}; give that, or None"
            )
        return KINDS[saved["type"]](**{name: value for name, value in saved.items() if name != "type"})
    partition, method = frozen.partition, frozen.learner.method
    if not comes_back(partition, method, loader):
        if isinstance(given, HostCache | DiskCache):
            raise MethodError(
                f"features={type(given).__name__} keeps what a sample gives once, but here "
                f"{_why_not(frozen, loader)}; give Recompute()"
            )
        return given or Recompute()
    needed = cache_bytes(partition, len(loader.split))
    if given is None:
        return _planned(loader, epochs, frozen, folder, needed)
    if isinstance(given, HostCache | DiskCache) and needed > given.limit_bytes:
        raise MethodError(
            f"features={type(given).__name__}(limit_bytes={given.limit_bytes}) is too small: the largest boundary and "
            f"the one before take {needed} bytes; give limit_bytes={needed} or Recompute()"
        )
    if isinstance(given, Recompute) and given.batches < 1:
        raise MethodError(f"features=Recompute(batches={given.batches}), expected at least 1")
    return given


def _said(setting: dict[str, Any]) -> str:
    values = ", ".join(f"{name}={value}" for name, value in setting.items() if name != "type")
    return f"{setting['type']}({values})"


def _why_not(frozen: Frozen, loader: Any) -> str:
    if frozen.partition.ports:
        part, reads = next(iter(frozen.partition.ports.items()))
        return f"part {part} reads boundaries {list(reads)} by a skip, beside the one below it"
    if frozen.learner.method.makes_views or getattr(loader, "views", 1) > 1:
        return "a batch has several views of a sample"
    if not hasattr(loader, "indexed"):
        return f"the loader ({type(loader).__name__}) does not say which samples a batch holds, as mw.data.Loader does"
    return "the loader augments samples anew in every pass"


def _planned(loader: Any, epochs: int, frozen: Frozen, folder: Path, needed: int) -> FeatureSource:
    memory, disk = free_bytes(folder)
    if needed <= memory:
        return HostCache(limit_bytes=memory)
    partition, holdings, reader = frozen.partition, frozen.holdings, frozen.reader
    _, x, _ = next(iter(loader.indexed()))
    size = holdings.bytes(0)
    values = reader.take(0)
    with placed(holdings, values):
        forward = seconds_of(lambda: frozen.through(0, [plain(x)], [{}], until=1))
    outputs = [part.output for part in partition.parts]
    costs = Costs(
        samples=len(loader.split),
        batches=len(loader),
        epochs=epochs,
        boundary_bytes=[output.features * output.dtype.itemsize for output in outputs if output is not None],
        part_bytes=[holdings.bytes(part) for part in range(len(partition))],
        forward_seconds=forward,
        read_seconds=seconds_of(lambda: reader.shards.read(0)) / max(size, 1),
        write_seconds=write_seconds(folder, min(max(size, 1 << 16), 16 << 20)),
    )
    return planned(costs, needed, memory=memory, disk=disk)


def feed_of(source: FeatureSource, *, loader: Any, frozen: Frozen, folder: Path) -> Feed:
    """The feed of a setting."""
    if isinstance(source, Recompute):
        return Recomputed(loader, frozen, together=source.batches)
    if isinstance(source, HostCache):
        return Cached(loader, frozen, HostStore())
    return Cached(loader, frozen, DiskStore(folder, len(loader.split)))
