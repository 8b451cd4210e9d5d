"""Checkpoints: resumed equals straight on, bit for bit; complete or not there at all; nothing foreign is taken in."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from resuming import HALF, TRAINERS, adam, chain, data_of, end, fit, resume, tiny
from safetensors.torch import load_file, save_file
from small_networks import CLASSES, CUTS, Residual, differing, images, perceptron, rows, seeded, sgd, state, trainer_of
from torch import nn

import modulewise as mw
from modulewise.errors import CheckpointError

M = mw.methods


class Stop(Exception):  # noqa: N818 - no error
    """As good as a power cut."""


def broken_off(name: str, folder: Path, *, after: int) -> None:
    """Fit, saving every two steps, and stop when so many steps are saved."""
    trainer, data = TRAINERS[name](), data_of(name)
    save = trainer.save

    def saving(where: Any, *, loader: Any = None) -> None:
        save(where, loader=loader)
        if trainer.steps == after:
            raise Stop

    trainer.save = saving
    with pytest.raises(Stop):
        fit(name, trainer, data, checkpoint=folder, every=2)


def straight(name: str) -> dict[str, torch.Tensor]:
    trainer = TRAINERS[name]()
    fit(name, trainer, data_of(name))
    return end(trainer)


class TestResuming:
    def test_in_a_new_process_in_the_middle_of_an_epoch(self, tmp_path):
        """Order, augmentation, dropout, momentum, rates and features: all go on as if nothing had been."""
        for name in TRAINERS:
            broken_off(name, tmp_path / name, after=HALF)
        program = str(Path(__file__).with_name("resuming.py"))
        done = subprocess.run(
            [sys.executable, "-W", "error", program, str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        ends = {name: load_file(tmp_path / f"{name}.end") for name in TRAINERS}
        expected = {name: straight(name) for name in TRAINERS}
        found = {n: differing(expected[n], {key: ends[n][key] for key in expected[n]}) for n in TRAINERS}
        assert {name: names for name, names in found.items() if names} == {}

    @pytest.mark.parametrize("name", ["DGL", "sequential"])
    @pytest.mark.parametrize("after", [2, 6, 8, 12, 18, 22, 24])
    def test_at_any_step_also_the_last_of_a_pass(self, name, after, tmp_path):
        """Passes have 6 batches: at 6, 12, 18 and 24 steps the loader stands at the next, the schedule does not yet."""
        broken_off(name, tmp_path, after=after)
        assert differing(straight(name), resume(name, tmp_path)) == []

    def test_fifty_steps_and_fifty_more_equal_a_hundred(self, tmp_path):
        batches = [images(8, seed) for seed in range(100)]
        once, first, second = (TRAINERS["DGL"]() for _ in range(3))
        for x, y in batches:
            once.step(x, y)
        for x, y in batches[:50]:
            first.step(x, y)
        first.save(tmp_path)
        second.load(tmp_path)
        for x, y in batches[50:]:
            second.step(x, y)
        assert differing(end(once), end(second)) == []
        assert second.steps == 100
        assert second.updater.steps == once.updater.steps == dict.fromkeys(range(4), 100)

    def test_after_every_epoch_where_nothing_else_is_said(self, tmp_path):
        trainer, data, seen = TRAINERS["DGL"](), data_of("DGL"), []
        save = trainer.save
        trainer.save = lambda folder, loader=None: (seen.append(trainer.steps), save(folder, loader=loader))
        fit("DGL", trainer, data, checkpoint=tmp_path)
        assert seen == [6, 12, 18, 24]
        assert differing(end(trainer), resume("DGL", tmp_path)) == [], "what is finished is not begun again"

    def test_callbacks_and_rates_of_an_epoch_that_ended_with_the_checkpoint(self, tmp_path):
        broken_off("DGL", tmp_path, after=6)
        trainer, data = TRAINERS["DGL"](), data_of("DGL")
        trainer.load(tmp_path, loader=data)
        history = fit("DGL", trainer, data)
        assert [(e.epoch, e.steps) for e in history] == [(0, 6), (1, 12), (2, 18), (3, 24)]
        assert [sorted(e.losses) for e in history] == [[], [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]

    def test_a_loader_without_a_state_is_read_from_its_start(self, tmp_path):
        """A list comes in the same order, so the batches that were seen are left out."""
        batches = [rows(8, seed) for seed in range(5)]
        once, first, second = (tiny() for _ in range(3))
        once.fit(batches, epochs=3)
        first.save = partial(_saving_until, first, first.save, 7)
        with pytest.raises(Stop):
            first.fit(batches, epochs=3, checkpoint=tmp_path, every=1)
        second.load(tmp_path).fit(batches, epochs=3)
        assert differing(end(once), end(second)) == []
        assert second.steps == 15

    def test_a_loader_that_was_not_put_back_is_noticed(self, tmp_path):
        broken_off("DGL", tmp_path, after=HALF)
        trainer = TRAINERS["DGL"]().load(tmp_path)
        with pytest.raises(CheckpointError, match="saved after 4 batches of a pass, the loader stands after 0"):
            fit("DGL", trainer, data_of("DGL"))

    def test_a_method_with_its_own_update(self, tmp_path):
        x, y = rows(12)
        ends = []
        for stop in (None, 2):
            trainer = mw.Trainer(mw.Partition(chain(), cuts=["1"], example=x), M.BCD(), loss=F.cross_entropy)
            for step in range(5):
                if step == stop:
                    trainer.save(tmp_path)
                    partition = mw.Partition(chain(), cuts=["1"], example=x)
                    trainer = mw.Trainer(partition, M.BCD(), loss=F.cross_entropy).load(tmp_path)
                trainer.step(x, y)
            ends.append(state(trainer.partition.model))
        assert differing(*ends) == []

    def test_into_a_trainer_that_has_trained_already(self, tmp_path):
        """Nothing of what it did before is left: not its momentum, not its count."""
        first, second, used = tiny(), tiny(), tiny()
        first.save(tmp_path)
        for _ in range(3):
            used.step(*rows(8, 9))
        used.load(tmp_path)
        for trainer in (second, used):
            trainer.step(*rows())
        assert differing(end(second), end(used)) == []
        assert used.steps == 1

    def test_parameters_that_are_views_of_one_storage_are_written_once(self, tmp_path):
        """Parameters that are views of one storage are written apart, once each."""
        model = seeded(perceptron)
        flat = torch.cat([p.detach().flatten() for p in model.parameters()])
        offset = 0
        for parameter in model.parameters():
            parameter.data = flat[offset : offset + parameter.numel()].view_as(parameter)
            offset += parameter.numel()
        trainer = trainer_of(model, M.DGL(classes=CLASSES), ("0", "1"), rows()[0])
        trainer.step(*rows())
        trainer.save(tmp_path)
        saved = next(tmp_path.glob("state-*")) / "model.safetensors"
        assert differing(state(model), {f"0.{n}": t for n, t in _ordered(load_file(saved), model).items()}) == []
        assert saved.stat().st_size < 2 * 4 * flat.numel()


def _ordered(tensors: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensors[name] for name in model.state_dict()}


def _saving_until(trainer: mw.Trainer, save: Any, after: int, folder: Any, *, loader: Any = None) -> None:
    save(folder, loader=loader)
    if trainer.steps == after:
        raise Stop


def _save_for_ever(folder: str) -> None:
    torch.set_num_threads(1)
    trainer = tiny()
    while True:
        trainer.step(*rows())
        trainer.save(folder)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_at_twenty_random_moments_leaves_the_last_complete_checkpoint(tmp_path):
    """Killed while it saves as fast as it can, again and again into one folder; loadable after every kill."""
    context, draw = multiprocessing.get_context("forkserver"), random.Random(0)  # a process without threads is forked
    context.set_forkserver_preload(["torch", "modulewise"])
    folder, steps, drafts = tmp_path / "run", [], 0
    for _ in range(20):
        process = context.Process(target=_save_for_ever, args=(str(folder),))
        process.start()
        deadline = time.monotonic() + 60
        mark = (folder / "latest").read_text() if (folder / "latest").exists() else None
        while not (folder / "latest").exists() or (folder / "latest").read_text() == mark:
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        trainer = tiny().load(folder)
        steps.append(trainer.steps)
        drafts += len(list(folder.iterdir())) > 2
        reference = tiny()
        for _ in range(trainer.steps):
            reference.step(*rows())
        assert differing(end(reference), end(trainer)) == []
    assert min(steps) >= 1
    assert drafts > 0, "no kill fell into a save: the test has shown nothing"


class TestWriting:
    def test_a_folder_holds_one_checkpoint(self, tmp_path):
        trainer = tiny()
        for _ in range(3):
            trainer.step(*rows())
            trainer.save(tmp_path)
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ["latest", "state-00000002"]
        assert (tmp_path / "latest").read_text() == "state-00000002"

    def test_nothing_is_pickled(self, tmp_path):
        """Weights are safetensors, all else JSON; torch's own files begin with a zip or a pickle header."""
        trainer = TRAINERS["SyntheticGradients"]()
        trainer.step(*images())
        trainer.save(tmp_path, loader=data_of("DGL"))
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert {path.suffix for path in files} == {".safetensors", ".json", ""}
        assert len(files) == 8
        for path in files:
            start = path.read_bytes()[:4]
            assert not start.startswith((b"PK", b"\x80"))
        json.loads(next(tmp_path.rglob("trainer.json")).read_text())
        for path in tmp_path.rglob("*.safetensors"):
            load_file(path)

    def test_no_module_of_the_package_loads_a_pickle(self):
        source = Path(mw.__file__).parent
        words = ("import pickle", "torch.load(", "torch.save(", "allow_pickle=True", "joblib")
        found = [(p.name, w) for p in source.rglob("*.py") for w in words if w in p.read_text()]
        assert found == []

    def test_saving_changes_nothing(self, tmp_path):
        once, saved = tiny(), tiny()
        for _ in range(3):
            once.step(*rows())
            saved.step(*rows())
            saved.save(tmp_path)
        assert differing(end(once), end(saved)) == []

    @pytest.mark.parametrize("kind", ["a folder with something in it", "a file"])
    def test_nothing_foreign_is_written_over(self, kind, tmp_path):
        target = tmp_path / "mine"
        if kind == "a file":
            target.write_text("precious")
        else:
            target.mkdir()
            (target / "thesis.txt").write_text("precious")
        with pytest.raises(CheckpointError, match="holds something else than a checkpoint"):
            tiny().save(target)
        kept = target if target.is_file() else target / "thesis.txt"
        assert kept.read_text() == "precious"
        assert len(list(tmp_path.rglob("*"))) == (1 if kind == "a file" else 2)

    def test_a_state_that_is_not_plain_data(self, tmp_path):
        class Loader:
            def state_dict(self) -> dict[str, Any]:
                return {"position": object()}

        with pytest.raises(CheckpointError, match="not plain data"):
            tiny().save(tmp_path / "run", loader=Loader())
        assert not (tmp_path / "run").exists()

    def test_a_save_that_fails_leaves_the_last_one(self, tmp_path, monkeypatch):
        trainer = tiny()
        trainer.save(tmp_path)
        trainer.step(*rows())
        full = "modulewise.engine.state_files.save_file"
        monkeypatch.setattr(full, lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(CheckpointError, match=r"disk full.*the one before is as it was"):
            trainer.save(tmp_path)
        assert tiny().load(tmp_path).steps == 0
        monkeypatch.undo()
        trainer.save(tmp_path)
        assert tiny().load(tmp_path).steps == 1
        assert len(list(tmp_path.iterdir())) == 2


def latest(folder: Path) -> Path:
    return folder / (folder / "latest").read_text()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edited(folder: Path, change: Any) -> None:
    path = latest(folder) / "trainer.json"
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))


def other_tensors(folder: Path, name: str, change: Any) -> None:
    path = latest(folder) / f"{name}.safetensors"
    save_file(change(load_file(path)), path)


DAMAGE: dict[str, tuple[Any, str]] = {
    "no folder": (shutil.rmtree, "holds no checkpoint"),
    "no latest": (lambda f: (f / "latest").unlink(), "holds no checkpoint"),
    "latest names nothing": (lambda f: (f / "latest").write_text("state-00000077"), "damaged or incomplete"),
    "latest is empty": (lambda f: (f / "latest").write_text(""), "damaged or incomplete"),
    "latest is not text": (lambda f: (f / "latest").write_bytes(b"\xff\xfe\x00"), "damaged or incomplete"),
    "latest leads elsewhere": (lambda f: (f / "latest").write_text("../../etc"), "damaged or incomplete"),
    "model truncated": (lambda f: truncated(latest(f) / "model.safetensors"), "damaged or incomplete"),
    "optimizers truncated": (lambda f: truncated(latest(f) / "optimizers.safetensors"), "damaged or incomplete"),
    "heads missing": (lambda f: (latest(f) / "heads.safetensors").unlink(), "damaged or incomplete"),
    "json truncated": (lambda f: truncated(latest(f) / "trainer.json"), "damaged or incomplete"),
    "json empty": (lambda f: (latest(f) / "trainer.json").write_text(""), "damaged or incomplete"),
    "json a list": (lambda f: (latest(f) / "trainer.json").write_text("[1]"), "not a checkpoint of format 2"),
    "json of something else": (lambda f: (latest(f) / "trainer.json").write_text('{"a": 1}'), "not a checkpoint"),
    "a later format": (lambda f: edited(f, lambda facts: facts.update(format=3)), "not a checkpoint of format 2"),
    "no identity": (lambda f: edited(f, lambda facts: facts.pop("identity")), "not a checkpoint"),
    "no step": (lambda f: edited(f, lambda facts: facts.pop("step")), "does not fit the trainer"),
    "odd progress": (lambda f: edited(f, lambda facts: facts.update(progress={"x": 1})), "does not fit"),
    "odd optimiser": (lambda f: edited(f, lambda facts: facts["optimizers"].update({"0/wing": {}})), "does not fit"),
    "an optimiser too many": (
        lambda f: edited(f, lambda facts: facts["optimizers"].update({"2/head": facts["optimizers"]["2/part"]})),
        "nothing trains there",
    ),
    "groups of another optimiser": (
        lambda f: edited(f, lambda facts: facts["optimizers"]["2/part"].update(groups=[])),
        "does not fit",
    ),
    "a weight missing": (
        lambda f: other_tensors(f, "model", lambda t: {n: v for n, v in t.items() if n != "2.bias"}),
        "does not fit",
    ),
    "a head's weight too many": (
        lambda f: other_tensors(f, "heads", lambda t: t | {"0.x": torch.ones(1)}),
        "does not fit",
    ),
    "a head of another shape": (
        lambda f: other_tensors(f, "heads", lambda t: {n: torch.cat([v, v]) for n, v in t.items()}),
        "does not fit",
    ),
}


def perceptron_with(method: Any, cuts: Any = ("0", "1"), **settings: Any) -> Any:
    return lambda: trainer_of(seeded(perceptron), method, cuts, rows()[0], **settings)


DGL = M.DGL(classes=CLASSES)
FOREIGN: dict[str, tuple[Any, str]] = {
    "cuts": (perceptron_with(DGL, ("0",)), "its cuts is"),
    "method": (perceptron_with(M.PredSim(classes=CLASSES)), "its method is"),
    "a setting": (perceptron_with(M.DGL(classes=CLASSES, head=mw.heads.linear)), "its method is"),
    "seed": (perceptron_with(DGL, seed=1), "its seed is"),
    "slices": (perceptron_with(DGL, accumulate=2), "its accumulate is"),
    "model": (lambda: trainer_of(seeded(Residual), DGL, CUTS, images()[0]), "another experiment"),
}


def everything(trainer: mw.Trainer) -> dict[str, Any]:
    updater = trainer.updater
    return {
        "steps": (trainer.steps, dict(updater.steps), trainer.progress),
        "optimizers": {key: str(o.state_dict()) for key, o in updater.optimizers.items()},
        "schedulers": {key: str(s.state_dict()) for key, s in updater.schedulers.items()},
        "tensors": {name: t.tolist() for name, t in end(trainer).items()},
    }


class TestRefused:
    def saved(self, folder: Path) -> Path:
        trainer = tiny()
        trainer.step(*rows(8, 3))
        trainer.save(folder)
        return folder

    @pytest.mark.parametrize("kind", DAMAGE)
    def test_damage_is_named_and_the_trainer_left_as_it_was(self, kind, tmp_path):
        folder = self.saved(tmp_path / "run")
        damage, message = DAMAGE[kind]
        damage(folder)
        trainer, other = tiny(), tiny()
        trainer.step(*rows())
        other.step(*rows())
        before = everything(trainer)
        with pytest.raises(CheckpointError, match=message) as caught:
            trainer.load(folder)
        assert "\n" not in str(caught.value)
        assert everything(trainer) == before
        for one in (trainer, other):
            one.step(*rows())
        assert differing(end(trainer), end(other)) == []

    @pytest.mark.parametrize("kind", FOREIGN)
    def test_another_experiment_is_named_and_the_trainer_left_as_it_was(self, kind, tmp_path):
        folder = self.saved(tmp_path / "run")
        make, message = FOREIGN[kind]
        trainer = make()
        before = everything(trainer)
        with pytest.raises(CheckpointError, match=message) as caught:
            trainer.load(folder)
        assert "\n" not in str(caught.value)
        assert everything(trainer) == before

    def test_another_optimiser(self, tmp_path):
        """Adam's state is not SGD's: two moments and a count cannot be taken for a momentum."""
        source = trainer_of(seeded(perceptron), M.DGL(classes=CLASSES), ("0", "1"), rows()[0], optimizer=adam)
        source.step(*rows())
        source.save(tmp_path)
        trainer = tiny()
        trainer.step(*rows())
        before = everything(trainer)
        with pytest.raises(CheckpointError, match="optimizer"):
            trainer.load(tmp_path)
        assert everything(trainer) == before

    def test_a_loader_of_other_data(self, tmp_path):
        """The loader is refused last of all; the trainer and the loader are as before all the same."""
        source, data = TRAINERS["DGL"](), data_of("DGL")
        source.step(*next(iter(data)))
        source.save(tmp_path, loader=data)
        trainer, other = TRAINERS["DGL"](), mw.data.Loader(mw.data.Split(*images(40)), batch_size=8)
        next(iter(other))
        before, position = everything(trainer), other.state_dict()
        with pytest.raises(CheckpointError, match="the saved loader had samples=46"):
            trainer.load(tmp_path, loader=other)
        assert everything(trainer) == before
        assert other.state_dict() == position

    def test_something_else_than_a_checkpoint(self, tmp_path):
        (tmp_path / "notes.txt").write_text("x")
        with pytest.raises(CheckpointError, match="holds no checkpoint"):
            tiny().load(tmp_path)

    def test_a_run_without_a_schedule_of_rates(self, tmp_path):
        """Saved with one, loaded without: said, not guessed."""
        source = TRAINERS["DGL"]()
        source.step(*images())
        source.save(tmp_path)
        trainer = trainer_of(
            seeded(lambda: Residual(dropout=0.2)), M.DGL(classes=CLASSES), CUTS, images()[0], seed=4, optimizer=sgd
        )
        with pytest.raises(CheckpointError, match="does not fit the trainer"):
            trainer.load(tmp_path)
        assert trainer.steps == 0
        assert trainer.updater.optimizers == {}
