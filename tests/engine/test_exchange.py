"""What actors are made of, without Ray: parcels, shelves that hand out again, a part's state in a file."""

from __future__ import annotations

import asyncio
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import CUTS, Residual, differing, images, seeded, state, trainer_of
from torch import Tensor

import modulewise as mw
from modulewise.buffers import Buffer, Entry, OldestFirst
from modulewise.engine.actors import saving
from modulewise.engine.actors.exchange import Exchange
from modulewise.engine.actors.packing import Flat, flat, kept, opened, packed
from modulewise.engine.actors.saving import load_part, save_part, state_of, take_state
from modulewise.engine.alone import Cargo, hollow
from modulewise.errors import CheckpointError, MethodError, NonFiniteLossError
from modulewise.schedules import Actors, Asynchronous
from modulewise.wires import Float8, Int8, Packet

CPU = torch.device("cpu")


def cargo(version: int = 0) -> Cargo:
    h = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(version))
    packets = {0: Float8().encode(h)[0], 2: Int8().encode(h)[0], 3: Packet({"h": h.bfloat16()}, (4, 3, 2), h.dtype)}
    x = {"a": hollow(h), "b": (torch.arange(4), "word")}
    return Cargo(packets, x, torch.tensor([True, False, True, True]), torch.arange(4) + 4 * version, 1)


def same(a: Any, b: Any) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.float(), b.float())


@pytest.mark.parametrize("way", [lambda p: p, lambda p: pickle.loads(pickle.dumps(p)), kept])
def test_a_parcel_opens_to_the_batch_it_was_packed_from(way: Any) -> None:
    """Every type, also those that numpy lacks; a tensor of one number's memory stays one."""
    before, after = cargo(), opened(way(packed(cargo())), CPU)
    for index, packet in before.packets.items():
        other = after.packets[index]
        assert (packet.shape, packet.dtype) == (other.shape, other.dtype)
        assert all(same(packet.tensors[name], other.tensors[name]) for name in packet.tensors)
    assert same(before.x["a"], after.x["a"])
    assert after.x["a"].stride() == (0, 0, 0)
    assert same(before.x["b"][0], after.x["b"][0])
    assert after.x["b"][1] == "word"
    assert same(before.y, after.y)
    assert same(before.ids, after.ids)
    assert before.bytes == after.bytes


def test_boundaries_are_read_in_place_and_the_rest_is_copied_from_memory_that_cannot_be_written() -> None:
    parcel = packed(cargo())
    for tensors, _, _ in parcel.packets.values():
        for item in tensors.values():
            item.array.flags.writeable = False
    parcel.y.array.flags.writeable = False
    after = opened(parcel, CPU)
    assert after.packets[3].tensors["h"].data_ptr() == parcel.packets[3][0]["h"].array.ctypes.data
    after.y.zero_()  # would end the process where the object store's memory is written to
    assert opened(parcel, CPU).y.any()


def test_arrays_go_out_of_band_and_not_element_by_element() -> None:
    """Pickle protocol 5 hands the bytes over as buffers, as the object store wants them."""
    buffers: list[pickle.PickleBuffer] = []
    item = flat(torch.randn(1000))
    frame = pickle.dumps(item, protocol=5, buffer_callback=buffers.append)
    assert len(frame) < 400
    assert sum(buffer.raw().nbytes for buffer in buffers) == 4000
    assert isinstance(pickle.loads(frame, buffers=buffers), Flat)


def entry(version: int) -> Entry:
    return Entry(version=version, epoch=0, batch=version)


def test_a_reader_that_comes_back_is_handed_the_same_batches_in_the_same_order() -> None:
    """Until it has settled them; what a writer says twice is there once; the ledger counts neither twice."""

    async def story() -> None:
        exchange = Exchange({1: Buffer(capacity=3, reuse=2)})
        for version in range(3):
            await exchange.put(1, entry(version), packed(cargo(version)))
        first = [await exchange.take(1, number) for number in range(4)]
        await exchange.put(1, entry(1), packed(cargo(1)))  # the writer has come back as well
        again = [await exchange.take(1, number) for number in range(4)]
        assert [item[0] for item in first] == [item[0] for item in again]
        assert all(a[1] is b[1] for a, b in zip(first, again, strict=True))
        await exchange.settle(1, 3)
        assert list(exchange.shelves[1].handed) == [3]
        report = await exchange.report(1)
        report.ledger.verify(epoch=0, samples=range(12))
        assert report.ledger.most_used <= 2
        assert sum(report.ledger.uses.values()) == 4

    asyncio.run(asyncio.wait_for(story(), timeout=20))


def test_who_finds_no_room_or_nothing_waits_and_two_that_ask_for_one_number_get_one_entry() -> None:
    """A dead reader's question is still there when its successor asks the same."""

    async def story() -> None:
        exchange = Exchange({0: Buffer(capacity=1, policy=OldestFirst())})
        dead, alive = (asyncio.ensure_future(exchange.take(0, 0)) for _ in range(2))
        await asyncio.sleep(0)
        assert not dead.done()
        await exchange.put(0, entry(0), packed(cargo(0)))
        assert (await dead)[0] == (await alive)[0] == replace(entry(0), uses=1)
        await exchange.put(0, entry(1), packed(cargo(1)))
        blocked, twice = (asyncio.ensure_future(exchange.put(0, entry(2), packed(cargo(2)))) for _ in range(2))
        await asyncio.sleep(0.01)
        assert not blocked.done()
        assert (await exchange.ages())[0][1]
        taken = await exchange.take(0, 1)
        assert taken is not None
        await asyncio.gather(blocked, twice)
        assert [e.version for e in exchange.shelves[0].buffer.entries] == [2]
        await exchange.close(0)
        assert (await exchange.take(0, 2))[0].version == 2
        assert await exchange.take(0, 3) is None

    asyncio.run(asyncio.wait_for(story(), timeout=20))


def trained() -> mw.Trainer:
    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=1e-2)

    trainer = trainer_of(seeded(Residual), mw.methods.DGL(classes=4), CUTS, images()[0], optimizer=adam)
    for seed in range(2):
        trainer.step(*images(8, seed))
    return trainer


def test_a_parts_state_comes_back_from_its_file_bit_for_bit(tmp_path: Path) -> None:
    """Parameters, statistics, head and optimiser of all parts one by one make the trainer it was; so it goes on."""
    trainer, other = (
        trained(),
        trainer_of(
            seeded(Residual, 9),
            mw.methods.DGL(classes=4),
            CUTS,
            images()[0],
            optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        ),
    )
    none = {name: torch.full_like(b, -7) for name, b in trainer.partition.model.named_buffers()}
    for part in range(4):
        save_part(tmp_path / f"{part}", state_of(trainer, part, buffers=none))
        loaded = load_part(tmp_path / f"{part}")
        assert loaded is not None
        take_state(other, part, loaded)
    other.steps = trainer.steps
    for one in (trainer, other):
        one.step(*images(8, 5))
    one, two = (state(t.partition.model, *t.objectives) for t in (trainer, other))
    assert differing(one, two) == []
    assert trainer.updater.steps == other.updater.steps


def test_a_full_disk_leaves_the_checkpoint_before_it_and_a_damaged_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, path = trained(), tmp_path / "part"
    buffers: dict[str, Tensor] = dict(trainer.partition.model.named_buffers())
    save_part(path, state_of(trainer, 0, buffers=buffers))
    before = path.read_bytes()

    def full(tensors: Any, draft: Path, **_: Any) -> None:
        draft.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "save_file", full)
    with pytest.raises(CheckpointError, match="untouched"):
        save_part(path, state_of(trainer, 0, buffers=buffers))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["part"]
    path.write_bytes(before[:-9])
    with pytest.raises(CheckpointError, match="damaged"):
        load_part(path)
    assert load_part(tmp_path / "nothing") is None


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    trainer = trained()
    with pytest.raises(MethodError, match=r"pip install 'modulewise\[ray\]'"):
        trainer.fit([images()], epochs=1, schedule=Asynchronous(actors=Actors()))


def test_a_loss_that_is_not_finite_says_so_from_another_process() -> None:
    error = pickle.loads(pickle.dumps(NonFiniteLossError(part=2, step=7, stepped=(0, 1))))
    assert (type(error), error.part, error.step, error.stepped) == (NonFiniteLossError, 2, 7, (0, 1))
    assert "part 2 is not finite at step 7" in str(error)
