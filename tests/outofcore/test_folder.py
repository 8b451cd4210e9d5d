"""The folder: what is in it, how it is refused, what a damaged or full disk does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import loader, out_of_core, plain_model
from safetensors.torch import load_file
from small_networks import CLASSES, differing, images, sgd, state

import modulewise as mw
from modulewise.errors import CheckpointError, DataError, MethodError
from modulewise.outofcore import DiskCache, HostCache, Recompute
from modulewise.outofcore.caching import DiskStore
from modulewise.outofcore.saving import locked

M = mw.methods


class TestLayout:
    def test_part_files_together_are_the_state_dict_and_the_index_says_where_what_is(self, tmp_path):
        run = out_of_core(tmp_path)
        run.fit(loader(), epochs=1)
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        keys = list(run.partition.model.state_dict())
        assert sorted(index["weight_map"]) == sorted(keys)
        for name, file in index["weight_map"].items():
            assert name in load_file(tmp_path / file)
        assert index["metadata"]["total_size"] == sum(
            t.numel() * t.element_size() for t in run.partition.model.state_dict().values()
        )

    def test_a_finished_run_can_be_opened_and_used_and_is_not_trained_again(self, tmp_path):
        first = out_of_core(tmp_path)
        first.fit(loader(), epochs=1)
        second = out_of_core(tmp_path)
        before = state(plain_model(tmp_path))
        assert second.fit(loader(), epochs=1) == []
        assert differing(before, state(plain_model(tmp_path))) == []
        x, _ = images()
        assert torch.equal(first.predict(x), plain_model(tmp_path).eval()(x))
        assert torch.equal(second.predict(x), first.predict(x))

    def test_features_on_disk_are_gone_at_the_end(self, tmp_path):
        out_of_core(tmp_path).fit(loader(), epochs=1, features=DiskCache())
        assert not (tmp_path / "features").exists()


class TestRefused:
    def test_another_run(self, tmp_path):
        out_of_core(tmp_path)
        with pytest.raises(CheckpointError, match="of another run: its seed is 4, here it is 5; give a new folder"):
            out_of_core(tmp_path, seed=5)
        with pytest.raises(CheckpointError, match="its cuts is"):
            out_of_core(tmp_path, cuts=("stem",))
        with pytest.raises(CheckpointError, match="its method is"):
            out_of_core(tmp_path, method=M.DGL(classes=CLASSES))

    def test_a_folder_with_something_else(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("x")
        with pytest.raises(CheckpointError, match="holds something else"):
            out_of_core(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_other_epochs_or_features_than_the_run_began_with(self, tmp_path):
        run = out_of_core(tmp_path)
        run.fit(loader(), epochs=1, features=Recompute())
        with pytest.raises(CheckpointError, match="began with epochs=1, here it is 2"):
            run.fit(loader(), epochs=2)
        with pytest.raises(CheckpointError, match=r"began with features=Recompute\(batches=8\), here it is HostCache"):
            run.fit(loader(), epochs=1, features=HostCache())

    def test_two_processes_at_once(self, tmp_path):
        run = out_of_core(tmp_path)
        with locked(tmp_path), pytest.raises(CheckpointError, match="another process trains in"):
            run.fit(loader(), epochs=1)

    @pytest.mark.parametrize(
        "method",
        [M.Backprop(), M.DirectFeedbackAlignment(outputs=CLASSES), M.SyntheticGradients(classes=CLASSES), M.BCD()],
        ids=lambda m: type(m).__name__,
    )
    def test_methods_that_need_all_parts(self, tmp_path, method):
        with pytest.raises(MethodError, match="needs all parts in one step, of which one is in memory"):
            out_of_core(tmp_path / "new", method=method)
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("method", [M.MAN(classes=CLASSES), M.AugLocal(classes=CLASSES)], ids=lambda m: m.name)
    def test_heads_made_of_later_layers(self, tmp_path, method):
        with pytest.raises(MethodError, match=r"later layers of the model, which have no values|meta"):
            out_of_core(tmp_path, method=method)

    def test_windows_of_time(self, tmp_path):
        x = torch.zeros(2, 1, 4, 4)
        partition = mw.TimePartition(mw.models.rnn_rows((1, 4, 4), CLASSES, width=8), windows=2, example=x)
        with pytest.raises(MethodError, match="parts over time share their parameters"):
            mw.OutOfCore(partition, M.DGL(classes=CLASSES), folder=tmp_path, loss=torch.nn.MSELoss(), optimizer=sgd)

    @pytest.mark.parametrize(
        ("features", "data", "why"),
        [
            (HostCache(limit_bytes=100), loader, r"too small: .* take \d+ bytes; give limit_bytes="),
            (DiskCache(limit_bytes=100), loader, "DiskCache"),
            (HostCache(), lambda: loader(augment=lambda x, generator: x), "the loader augments samples anew"),
            (HostCache(), lambda: loader(views=2), "several views"),
            (DiskCache(), lambda: [images()], r"the loader \(list\) does not say which samples"),
            (Recompute(batches=0), loader, "batches=0"),
        ],
    )
    def test_features_that_do_not_fit(self, tmp_path, features, data, why):
        with pytest.raises(MethodError, match=why):
            out_of_core(tmp_path).fit(data(), epochs=1, features=features)

    def test_a_batch_unlike_the_example(self, tmp_path):
        x, y = images()
        with pytest.raises(DataError, match=r"x is float32 \(8, 3, 8, 6\), expected float32 \(8, 3, 8, 8\)"):
            out_of_core(tmp_path).fit([(x[..., :6], y)], epochs=1)

    def test_no_batch_and_no_epoch(self, tmp_path):
        run = out_of_core(tmp_path)
        with pytest.raises(DataError, match="no batch"):
            run.fit([], epochs=1)
        with pytest.raises(MethodError, match="epochs=0"):
            run.fit(loader(), epochs=0)

    def test_a_part_that_is_missing_or_cut_short(self, tmp_path):
        run = out_of_core(tmp_path)
        path = tmp_path / "part-00002.safetensors"
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(CheckpointError, match=r"part-00002.safetensors is missing or damaged"):
            run.predict(images()[0])
        assert all(p.is_meta for p in run.partition.model.parameters())


class TestDiskStore:
    def filled(self, folder: Path, boundary: int = 0, store: DiskStore | None = None) -> tuple[DiskStore, list[int]]:
        """A store filled with 3 runs of 4 rows, and which runs were computed."""
        store, made = store or DiskStore(folder, 12), []

        def compute(indices: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            made.append(int(indices[0]))
            return x * (boundary + 1)

        runs = [torch.arange(start, start + 4) for start in (0, 4, 8)]
        store.advance(boundary, 12, [(i, i[:, None].float().repeat(1, 5), None) for i in runs], compute)
        return store, made

    def test_rows_come_back_from_another_process_and_nothing_is_made_twice(self, tmp_path):
        _, made = self.filled(tmp_path)
        again = DiskStore(tmp_path, 12)
        assert (made, again.index) == ([0, 4, 8], 0)
        assert torch.equal(again.rows(torch.tensor([7, 2])), torch.tensor([[7.0] * 5, [2.0] * 5]))

    def test_what_was_written_before_a_stop_is_not_made_again(self, tmp_path):
        self.filled(tmp_path)
        notes = tmp_path / "boundary-00000.jsonl"
        lines = notes.read_text().splitlines()
        notes.write_text(lines[0] + "\n" + lines[1][:30])
        store = DiskStore(tmp_path, 12)
        assert store.index == -1
        store, made = self.filled(tmp_path, store=store)
        assert made == [4, 8]
        assert torch.equal(store.rows(torch.arange(12))[:, 0], torch.arange(12.0))

    @pytest.mark.parametrize(("byte", "made_again"), [(3, [0, 4, 8]), (100, [4, 8]), (239, [8])])
    def test_a_flipped_bit_is_found_and_the_rows_from_there_are_made_again(self, tmp_path, byte, made_again):
        self.filled(tmp_path)
        rows = tmp_path / "boundary-00000.rows"
        raw = bytearray(rows.read_bytes())
        raw[byte] ^= 1
        rows.write_bytes(raw)
        store = DiskStore(tmp_path, 12)
        assert store.index == -1
        store, made = self.filled(tmp_path, store=store)
        assert made == made_again
        assert torch.equal(store.rows(torch.arange(12))[:, 0], torch.arange(12.0))

    def test_no_more_than_two_boundaries_are_there(self, tmp_path):
        store, _ = self.filled(tmp_path)
        for boundary in (1, 2):
            self.filled(tmp_path, boundary, store)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["boundary-00002.jsonl", "boundary-00002.rows"]
        assert torch.equal(store.rows(torch.tensor([2])), torch.tensor([[6.0] * 5]))

    def test_samples_out_of_order_are_refused(self, tmp_path):
        with pytest.raises(DataError, match="out of order"):
            DiskStore(tmp_path, 2).advance(0, 2, [(torch.tensor([1, 0]), torch.ones(2, 1), None)], lambda i, x: x)


FULL = """
import os, resource, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from runs import loader, out_of_core
from modulewise.errors import CheckpointError
from modulewise.outofcore import DiskCache, HostCache
folder, kind, calls = Path(sys.argv[1]), sys.argv[2], []
run = out_of_core(folder)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails, as on a full disk
def shrink(epoch):
    calls.append(epoch)
    if len(calls) == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY))
try:
    run.fit(loader(), epochs=2, features=DiskCache() if kind == "disk" else HostCache(), callbacks=[shrink])
except CheckpointError as error:
    print(error)
else:
    sys.exit("the disk was full and nothing was said")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
out_of_core(folder).fit(loader(), epochs=2)
"""


@pytest.mark.parametrize("kind", ["disk", "host"])
def test_a_full_disk_leaves_what_was_there_and_the_run_goes_on_when_there_is_room(tmp_path, kind):
    """The system refuses to write beyond some bytes of a file: in a save, in a part's own file, in the cache."""
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FULL, str(tmp_path / "run"), kind],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "could not be written" in done.stdout or "could not be kept" in done.stdout
    assert "make room" in done.stdout or "as it was" in done.stdout
    expected = out_of_core(tmp_path / "never")
    expected.fit(loader(), epochs=2, features=HostCache())
    assert differing(state(plain_model(tmp_path / "never")), state(plain_model(tmp_path / "run"))) == []
