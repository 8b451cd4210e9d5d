"""Ray itself: found, started on the loopback or joined, and ended if it is ours."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ...errors import MethodError
from ...schedules import Actors

__all__ = ["started"]

_LOOPBACK = "127.0.0.1"
_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray listens on every interface where it thinks that other machines may join, which this says."""


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MethodError("actors= needs Ray, which is not installed; pip install 'modulewise[ray]'") from error
    return ray


@contextmanager
def started(actors: Actors, parts: int) -> Iterator[Any]:
    """Ray: the one that runs already, a cluster's, or one of our own that ends with the block.

    Raises:
        MethodError: Ray is missing, cannot be started or joined, or would listen beyond this machine.
    """
    with _environment({"RAY_USAGE_STATS_ENABLED": "0"} | ({} if actors.address else {_CLUSTERS: "0"})):
        ray = _ray()
        if ours := not ray.is_initialized():
            _start(ray, actors, parts)
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


def _start(ray: Any, actors: Actors, parts: int) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if actors.address is not None:
            ray.init(address=actors.address, **quiet)
            return
        with _alone():
            ray.init(
                address="local",
                num_cpus=actors.cpus or min(parts, os.cpu_count() or 1),
                object_store_memory=actors.object_store_bytes,
                include_dashboard=False,
                _node_ip_address=_LOOPBACK,
                **quiet,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise MethodError(f"Ray could not be started or joined ({str(error).splitlines()[0]})") from error
    if (listens := ray.util.get_node_ip_address()) != _LOOPBACK:
        ray.shutdown()
        raise MethodError(
            f"this version of Ray would listen on {listens}, expected {_LOOPBACK} (Ray has no authentication); start "
            "one yourself on a private network and give its address"
        )


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def _alone() -> Iterator[None]:
    """Where Ray has been imported already, it has read the variable before we set it."""
    from ray._private import ray_constants

    before = getattr(ray_constants, "ENABLE_RAY_CLUSTER", None)
    setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)  # noqa: B010 - ours for the length of the call
    try:
        yield
    finally:
        setattr(ray_constants, "ENABLE_RAY_CLUSTER", before)  # noqa: B010
