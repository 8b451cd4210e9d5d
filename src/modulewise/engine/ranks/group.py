"""The process group of a trainer: joined or made, checked for agreement, and ended where it was made."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...errors import RankError
from .packets import bytes_of

__all__ = ["Group", "agree", "digest", "join", "world_around"]


class Group:
    """All ranks of a run.

    Args:
        timeout: seconds before a collective call fails.
        device: of the model on this rank.
        made: whether the default process group is ours to end.

    Attributes:
        rank: this process.
        world: how many there are.
        packets: the gloo group that host tensors and small facts travel in.
        direct: the default group, where it carries the accelerator's tensors; None where they go by the host.
    """

    def __init__(self, *, timeout: float, device: torch.device, made: bool) -> None:
        self.rank, self.world, self.made = dist.get_rank(), dist.get_world_size(), made
        # A group of our own: with our time-out, and with gloo where the user's has NCCL alone.
        self.packets: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        nccl = device.type == "cuda" and "nccl" in str(dist.get_backend_config())
        self.direct: Any = dist.group.WORLD if nccl else None
        self.device = device
        self._open = True

    def facts(self, own: Any) -> list[Any]:
        """What every rank has to say, by rank; plain data.

        Raises:
            RankError: a rank did not answer in time, or has stopped.
        """
        found: list[Any] = [None] * self.world
        try:
            dist.all_gather_object(found, own, group=self.packets)
        except RuntimeError as error:
            raise self._failed("all ranks at a common point", error) from error
        return found

    def broadcast(self, tensor: Tensor, *, source: int) -> None:
        """Overwrite a tensor with that of another rank.

        Raises:
            RankError: the other rank did not send it in time, or has stopped.
        """
        if tensor.numel() == 0:
            return
        host = tensor.detach().to("cpu", copy=True).contiguous()
        try:
            dist.broadcast(bytes_of(host), source, group=self.packets)
        except RuntimeError as error:
            raise self._failed(f"the state of rank {source}", error) from error
        if source != self.rank:
            with torch.no_grad():
                tensor.copy_(host)

    def _failed(self, what: str, error: BaseException) -> RankError:
        return RankError(
            f"rank {self.rank} waited for {what} in vain ({str(error).splitlines()[0][:160]}); read the others' own "
            "errors, or give Ranks a longer timeout"
        )

    def close(self) -> None:
        """End what was made here; a group that was there stays."""
        if self._open and dist.is_initialized():
            self._open = False
            dist.destroy_process_group(self.packets)
            if self.made:
                dist.destroy_process_group()


def world_around() -> int | None:
    """The number of ranks in the process group that is there, or that `torchrun` asks for; None for this one alone.

    Raises:
        RankError: torch was built without distributed.
    """
    if not dist.is_available():
        raise RankError("this torch has no torch.distributed; leave ranks= out or install one that has")
    if dist.is_initialized():
        return int(dist.get_world_size())
    return int(os.environ["WORLD_SIZE"]) if {"RANK", "WORLD_SIZE"} <= os.environ.keys() else None


def join(*, timeout: float, device: torch.device) -> Group:
    """The process group that is there, or the one that `torchrun` asks for.

    Raises:
        RankError: no other rank came in time.
    """
    made = False
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo"
        try:
            _init(backend, timedelta(seconds=timeout))
        except RuntimeError as error:
            raise RankError(
                f"rank {os.environ['RANK']} found no group of {os.environ['WORLD_SIZE']} ranks "
                f"({str(error).splitlines()[0][:160]}); start all of them with torchrun"
            ) from error
        made = True
    return Group(timeout=timeout, device=device, made=made)


def _init(backend: str, timeout: timedelta) -> None:
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or attempt is None:
        dist.init_process_group(backend, timeout=timeout)
        return
    # torchrun's store outlives a restart, and with it the addresses of ranks that have died: keys of one's own.
    world = int(os.environ["WORLD_SIZE"])
    agent = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world, is_master=False, timeout=timeout
    )
    store = dist.PrefixStore(f"modulewise/attempt-{attempt}", agent)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=int(os.environ["RANK"]), world_size=world, timeout=timeout)


def digest(state: Mapping[str, Tensor]) -> str:
    """A checksum of tensors, names and values.

    >>> digest({"w": torch.ones(2)}) == digest({"w": torch.zeros(2)})
    False
    """
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in state.items():
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.numel():
            found.update(bytes_of(tensor.detach().cpu().contiguous()).numpy().data)
    return found.hexdigest()


def agree(facts: Iterable[Mapping[str, Any]]) -> None:
    """Refuse ranks that were not made alike.

    Args:
        facts: for every rank what must be the same, by name.

    Raises:
        RankError: two ranks differ; the first difference is named.

    >>> agree([{"seed": 0}, {"seed": 0}])
    """
    first, *others = facts
    for rank, other in enumerate(others, 1):
        for name, value in first.items():
            if other.get(name) != value:
                mine, theirs = str(value)[:120], str(other.get(name))[:120]
                raise RankError(
                    f"rank 0 and rank {rank} differ in {name}: {mine} and {theirs}; start every rank with the same "
                    "script, versions and seeds"
                )
