"""How parts are laid out on ranks, and how long one waits for another."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import RankError

__all__ = ["Ranks", "Seat", "seats"]


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Put a trainer's parts on the processes of a group, as `torchrun` starts them.

    A process group that exists is joined; else one is made where `torchrun` says so (RANK and WORLD_SIZE in the
    environment), with gloo, and NCCL beside it for a model on a GPU; else the trainer trains all parts in this
    process. Rank d + data * p trains the consecutive parts of share p on slice d of every batch.

    Args:
        parts: how many parts each share owns, lowest first; None to deal them out evenly.
        data: ranks that hold the same parts, each with a slice of the batch, >= 1.
        shard: of those, each holds a piece of the weights, gradients and optimiser states (torch's `fully_shard`).
        timeout: seconds that a rank waits for another before it stops with an error, > 0.
        finite: look whether a boundary is finite before it is sent; one more pass over it.
        spans: most spans of work kept for the timeline, the latest ones; 0 for none.

    Raises:
        RankError: a value is out of range.

    >>> Ranks(data=2).timeout
    600.0
    """

    parts: tuple[int, ...] | None = None
    data: int = 1
    shard: bool = False
    timeout: float = 600.0
    finite: bool = True
    spans: int = 100_000

    def __post_init__(self) -> None:
        if self.data < 1 or not self.timeout > 0 or self.spans < 0:
            raise RankError(
                f"data={self.data}, timeout={self.timeout}, spans={self.spans}; expected data >= 1, timeout > 0 and "
                "spans >= 0"
            )
        if self.shard and self.data == 1:
            raise RankError("shard=True was given with data=1, expected data > 1: one rank alone has the whole part")


@dataclass(frozen=True)
class Seat:
    """What one rank does.

    Args:
        rank: in the whole group.
        share: index of its share of the parts.
        slice: which slice of every batch is its own.
        own: its parts.
    """

    rank: int
    share: int
    slice: int
    own: range

    @property
    def reads(self) -> bool:
        """Whether this is the rank that reads the data."""
        return self.share == 0 and self.slice == 0

    def __str__(self) -> str:
        words = f"part {self.own.start}" if len(self.own) == 1 else f"parts {self.own.start} to {self.own.stop - 1}"
        return f"rank {self.rank} ({words}{f', slice {self.slice}' if self.slice else ''})"


def seats(settings: Ranks, *, parts: int, world: int) -> list[Seat]:
    """The seat of every rank.

    Args:
        settings: how parts are dealt out.
        parts: K.
        world: number of ranks.

    Raises:
        RankError: ranks and parts do not come out even.

    >>> [str(seat) for seat in seats(Ranks(), parts=3, world=2)]
    ['rank 0 (parts 0 to 1)', 'rank 1 (part 2)']
    """
    shares, rest = divmod(world, settings.data)
    if rest or shares == 0:
        raise RankError(f"{world} ranks do not divide into data={settings.data} slices; start a multiple of it")
    if shares > parts:
        raise RankError(
            f"{shares} ranks were started for {parts} parts, expected {parts} at most; cut the model into more parts, "
            "start fewer ranks, or give several ranks a part with Ranks(data=...)"
        )
    counts = settings.parts or tuple(parts // shares + (i < parts % shares) for i in range(shares))
    if len(counts) != shares or sum(counts) != parts or min(counts) < 1:
        raise RankError(
            f"parts={counts} was given for {parts} parts on {shares} ranks, expected {shares} numbers >= 1 that add up"
        )
    starts = [sum(counts[:i]) for i in range(shares)]
    return [
        Seat(share * settings.data + d, share, d, range(start, start + count))
        for share, (start, count) in enumerate(zip(starts, counts, strict=True))
        for d in range(settings.data)
    ]
