"""A trainer's parts on the ranks of a group: who owns what, one batch on this rank, and what the ranks do together."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from ... import checkpoint
from ...errors import CheckpointError, ModulewiseError, NonFiniteBoundaryError, RankError
from ...partition import Partition
from ...partition.tree import map_tensors
from ..batches import Slice, sliced
from ..evaluating import Evaluation, evaluate
from ..local import Micro
from ..session import Session
from .gathering import gather
from .group import Group
from .packets import blank, finite
from .reducing import add_up
from .saving import adopt_pieces, drop_newer, newest, of_parts, write_piece
from .settings import Ranks, Seat
from .sharding import Shards
from .timeline import Doing, Recorder, Timeline
from .traffic import traffic
from .transport import Inbox, Kind, Lane, Outbox, Wire

if TYPE_CHECKING:
    from ...trainer import Trainer

__all__ = ["Crew"]


class Crew:
    """The ranks of a trainer, seen from one of them.

    Args:
        trainer: this rank's.
        partition: its parts.
        settings: how they are laid out.
        group: all ranks.
        places: the seat of every rank.

    Attributes:
        seat: what this rank does.
        recorder: its own spans of work.
        stale: whether parts of other ranks are behind on this one, until `gather`.
    """

    def __init__(
        self, trainer: Trainer, partition: Partition, settings: Ranks, group: Group, places: Sequence[Seat]
    ) -> None:
        self._trainer = weakref.ref(trainer)
        self.partition, self.settings, self.group, self.places = partition, settings, group, places
        self.seat = seat = places[group.rank]
        self.recorder = Recorder(seat.rank, limit=settings.spans)
        self.stale = False
        self.shares = [place.own for place in places if place.slice == 0]
        readers = {i: k for k, plan in enumerate(partition.plans(partition.example)) for i in plan.reads}
        self.traffic = traffic(trainer.objectives, seat.own, shares=self.shares, readers=readers)
        self._wires()
        self._load: Mapping[str, Any] = {}
        trainer.engine.crossed = self._crossed
        if settings.data > 1:
            mesh = init_device_mesh(
                "cpu" if group.direct is None else "cuda",
                (len(self.shares), settings.data),
                mesh_dim_names=("part", "data"),
            )
            self._data = mesh.get_group("data")
            trainer.engine.reduced = self._reduce
        self.shards = Shards(trainer, partition, seat.own, mesh["data"]) if settings.shard else None

    @property
    def trainer(self) -> Trainer:
        """This rank's trainer."""
        found = self._trainer()
        assert found is not None, "the trainer is there while it trains"
        return found

    def _wires(self) -> None:
        """The ends of all wires of this rank."""
        seat, data, flow = self.seat, self.settings.data, self.traffic
        above, below = seat.rank + data, seat.rank - data
        last = seat.share == len(self.shares) - 1
        self.up = None if last else Outbox(self._wire(above, Lane.UP))
        self.feeds = [Outbox(self._wire(d, Lane.FEED)) for d in range(1, data)] if seat.reads else []
        source = (below, Lane.UP) if seat.share else (0, Lane.FEED)
        self.inbox = None if seat.reads else Inbox(self._wire(*source))
        self.mail_up = Outbox(self._wire(above, Lane.BESIDE)) if flow.mail_to_above else None
        self.mail_in = Inbox(self._wire(below, Lane.BESIDE)) if flow.mail_from_below else None
        self.down = Outbox(self._wire(below, Lane.DOWN)) if flow.mail_to_below else None
        self.back = Inbox(self._wire(above, Lane.DOWN)) if flow.mail_from_above else None

    def _wire(self, peer: int, lane: Lane) -> Wire:
        group = self.group
        return Wire(group.packets, group.direct, group.device, peer, lane, str(self.seat), str(self.places[peer]))

    @property
    def outboxes(self) -> list[Outbox]:
        """Every sending end of this rank."""
        return [box for box in (self.up, self.mail_up, self.down, *self.feeds) if box is not None]

    def dealt(self, x: Any, y: Any, views: int) -> dict[str, Any]:
        """This rank's slice of a batch that was read here; the others' are sent to them."""
        whole = sliced(x, y, views=views, count=self.settings.data)
        for box, piece in zip(self.feeds, whole[1:], strict=True):
            box.send(Kind.BATCH, self.trainer.steps, self._packed(piece, whole))
        return self._packed(whole[0], whole)

    @staticmethod
    def _packed(piece: Slice, whole: Sequence[Slice]) -> dict[str, Any]:
        rows = sum(other.rows for other in whole)
        return {"x": piece.x, "y": piece.y, "views": piece.views, "rows": piece.rows, "of": rows, "boundaries": {}}

    def received(self) -> dict[str, Any] | None:
        """The next batch from the rank that this one reads from; None at the end of a pass."""
        assert self.inbox is not None
        with self.recorder.span(Doing.WAIT, self.seat.own.start, self.trainer.steps):
            packet = self.inbox.next()
        if packet.step != self.trainer.steps:
            raise RankError(
                f"{self.seat} is at step {self.trainer.steps} and was sent step {packet.step} by "
                f"{self.inbox.wire.there}; every rank must make the same calls of step and fit"
            )
        if packet.kind is Kind.END:
            return None
        load: dict[str, Any] = packet.tree
        return load

    def ended(self) -> None:
        """Tell the ranks that read from this one that a pass is over."""
        for box in (self.up, *self.feeds):
            if box is not None:
                box.send(Kind.END, self.trainer.steps, None)

    def opened(self, load: Mapping[str, Any]) -> Session:
        """A batch on this rank, with what was said to its parts on the way."""
        trainer, self._load = self.trainer, load
        self.stale = self.group.world > 1
        data, step = self.settings.data, trainer.steps
        micro = Micro(draw=step * data + self.seat.slice, rows=load["rows"], weight=load["rows"] / load["of"])
        if self.shards is not None:
            self.shards.summed.weight = micro.weight
            self.shards.spread()
        session = Session(
            trainer.engine,
            load["x"],
            load["y"],
            views=load["views"],
            step=step,
            boundaries=load["boundaries"],
            micro=micro,
        )
        if self.mail_in is not None:
            self._hear(session, self.mail_in)
        return session

    def run(self, session: Session, part: int) -> None:
        """One part on a batch, up to its learning or waiting."""
        with self.recorder.span(Doing.COMPUTE, part, session.step):
            session.up(part)

    def closed(self, session: Session) -> dict[int, Tensor]:
        """Exchange messages with the ranks above and below, let waiting parts learn, and end the step."""
        own, step = self.seat.own, session.step
        if self.mail_up is not None:
            self._tell(self.mail_up, session, range(own.stop, len(self.partition)))
        if self.down is not None and not self.traffic.chained:
            self._tell(self.down, session, range(own.start))
        if self.back is not None:
            self._hear(session, self.back)
        with self.recorder.span(Doing.COMPUTE, own.start, step):
            session.hear(len(self.partition) - 1)
            session.down()
        if self.down is not None and self.traffic.chained:
            self._tell(self.down, session, range(own.start))
        if self.shards is not None:
            self.shards.check()
        self._load = {}
        return dict(sorted(session.losses.items()))

    def _tell(self, box: Outbox, session: Session, receivers: range) -> None:
        mail = {part: session.mail.pop(part) for part in receivers if part in session.mail}
        with self.recorder.span(Doing.SEND, self.seat.own.start, session.step):
            box.send(Kind.MAIL, session.step, mail)

    def _hear(self, session: Session, box: Inbox) -> None:
        with self.recorder.span(Doing.WAIT, self.seat.own.start, session.step):
            packet = box.next()
        for receiver, mail in packet.tree.items():
            session.mail.setdefault(receiver, {}).update(mail)

    def _crossed(self, session: Session, part: int) -> None:
        """Send what later ranks read, as soon as it is there: before the part learns."""
        if part != self.seat.own.stop - 1 or self.up is None:
            return
        load, later = self._load, range(part + 1, len(self.partition))
        objectives = self.trainer.objectives
        read = any(session.plans[k].reads_batch or objectives[k].reads_x for k in later)
        boundaries = {i: h for i, h in session.boundaries.items() if session.readers[i] > part}
        if self.settings.finite:
            for index in self.seat.own:
                if index in boundaries and not finite(boundaries[index]):
                    raise NonFiniteBoundaryError(boundary=index, step=session.step)
        x = load["x"] if read else map_tensors(blank, load["x"])
        with self.recorder.span(Doing.SEND, part, session.step):
            self.up.send(Kind.BATCH, session.step, {**load, "x": x, "boundaries": boundaries})

    def _reduce(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add gradients up over the ranks that hold the same parts; each has its slice's share of the mean."""
        with self.recorder.span(Doing.REDUCE, self.seat.own.start, self.trainer.steps):
            add_up(parameters, group=self._data, seat=self.seat)

    def gather(self) -> None:
        """Bring every part to every rank; all must call this."""
        if self.stale:
            if self.shards is not None:
                self.shards.join()
            first = [place for place in self.places if place.slice == 0]
            owners = [place.rank for part in range(len(self.partition)) for place in first if part in place.own]
            gather(self.group, self.partition, self.trainer.objectives, owners)
            self.stale = False

    def evaluate(self, loader: Iterable[Any]) -> Evaluation:
        """Loss and accuracy of the whole model, by the rank that reads data; all must call this."""
        self.gather()
        found: Evaluation | str = ""
        if self.seat.reads:
            try:
                found = evaluate(self.partition.model, loader, self.trainer.loss)
            except ModulewiseError as error:
                found = str(error)
        answer: Evaluation | str = self.group.facts(found)[0]
        if isinstance(answer, str):
            raise RankError(f"rank 0 could not evaluate: {answer}")
        return answer

    def save(self, folder: Path, *, loader: Any) -> None:
        """Write this rank's parts, where it is the first that holds them; all must call this."""
        tensors = checkpoint.tensors_of(self.trainer)
        if self.shards is not None:
            tensors = self.shards.gathered(tensors)
        if self.seat.slice == 0:
            with self.recorder.span(Doing.SAVE, self.seat.own.start, self.trainer.steps):
                write_piece(
                    self.trainer,
                    tensors,
                    folder,
                    own=self.seat.own,
                    share=self.seat.share,
                    shares=len(self.shares),
                    loader=loader if self.seat.reads else None,
                )

    def load(self, folder: Path, *, loader: Any) -> None:
        """Take this rank's parts from the newest step that all ranks have saved, or from one process's checkpoint."""
        # Rank 0 decides, once every rank has written what it was going to write.
        self.group.facts(None)
        if self.shards is not None:
            self.shards.join()
        found = self.group.facts(newest(folder))[0]
        self.stale, own = self.group.world > 1, self.seat.own
        loader = loader if self.seat.reads else None
        if found is None:
            if not (folder / checkpoint.LATEST).is_file():
                raise CheckpointError(f"{folder} holds no checkpoint that all ranks have written; start anew")
            facts, tensors = checkpoint.read(folder)
            facts, kept = of_parts(self.trainer, own, facts, tensors)
            present = checkpoint.tensors_of(self.trainer)
            merged = {**kept, **{n: {**present[n], **kept[n]} for n in ("model", "heads")}}
            checkpoint.adopt(self.trainer, facts, merged, loader=loader, where=folder)
            return
        step, shares = found
        adopt_pieces(self.trainer, folder, own=own, shares=shares, step=step, loader=loader)
        if self.seat.slice == 0:
            drop_newer(folder, share=self.seat.share, shares=len(self.shares), step=step)

    def timeline(self) -> Timeline:
        """The spans of all ranks; all must call this."""
        spans = [span for own in self.group.facts(list(self.recorder.spans)) for span in own]
        return Timeline(sorted(spans, key=lambda span: span.start))

    def stop(self, error: BaseException) -> None:
        """Tell the ranks around why this one stops."""
        known = isinstance(error, RankError)
        reason = str(error) if known else f"{self.seat} stopped: {type(error).__name__}: {error}"
        for box in self.outboxes:
            box.stop(" ".join(reason.split())[:400])

    def close(self) -> None:
        """End the process group, where it was made here."""
        if self.inbox is None or not self.inbox.fetching:
            self.group.close()
