"""Experiments: what they come to, that runs are what a plain loop gives, and that interruption loses nothing."""

import json
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modulewise import compare
from modulewise.compare import Experiment, Folder, TensorBoard, Watcher, aligning, configurations, run, runs, summarise
from modulewise.compare.aligning import Aligning
from modulewise.compare.assembling import Workshop
from modulewise.compare.augmenting import augmentation
from modulewise.compare.experiment import Descent, RateSchedule, fingerprint
from modulewise.compare.probing import probe_accuracy, probe_parts
from modulewise.compare.results import Result, git_state
from modulewise.compare.summary import HEADINGS, cells, markdown
from modulewise.data import Compose, Crop, Cutout, Flip
from modulewise.errors import DataError, MethodError, ModulewiseError, NonFiniteLossError, PartitionError

SMALL = Experiment(
    methods=("backprop", "checkpointed", "deeply-supervised", "dgl:head=linear", "predsim@sequential"),
    model="mlp",
    parts=(2, 3),
    epochs=2,
    batch_size=32,
    train_limit=128,
)
STEPS = 2 * (112 // 32)  # epochs x whole batches of the 128 samples less the 16 held out
FIELDS = {
    *("method", "schedule", "locality", "locality_audit", "modular", "parts", "seed", "model", "data", "options"),
    *("test_accuracy", "peak_memory_bytes", "peak_breakdown", "step_seconds", "part_updates", "params", "head_params"),
    *("epochs", "device", "versions", "git", "history", "flops"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "out"
    return run(SMALL, out=folder), Folder(folder)


def by_label(results, parts):
    return {result.label: result for result in results if result.parts == parts}


def timeless(result):
    """A result without what a clock gives."""
    history = [{key: value for key, value in entry.items() if key != "seconds"} for entry in result.history]
    return replace(result, step_seconds=0.0, train_seconds=0.0, history=history)


def test_every_line_of_the_results_has_the_promised_fields(finished):
    results, folder = finished
    lines = [json.loads(line) for line in folder.results_file.read_text().splitlines()]
    assert len(lines) == len(results) == 12
    for line in lines:
        assert set(line) >= FIELDS
    assert folder.results() == results


def test_deeply_supervised_stands_for_one_row_for_every_other_method_with_heads(finished):
    results, _ = finished
    assert list(by_label(results, 3)) == [
        "backprop@simultaneous",
        "checkpointed@simultaneous",
        "deeply-supervised(dgl:head=linear)@simultaneous",
        "deeply-supervised(predsim)@simultaneous",
        "dgl:head=linear@simultaneous",
        "predsim@sequential",
    ]


def test_deeply_supervised_without_a_method_with_heads_is_refused():
    with pytest.raises(MethodError, match="none is listed"):
        configurations(replace(SMALL, methods=("backprop", "kernel-proxy", "deeply-supervised")))


def test_locality_class_and_audit_are_in_every_row(finished):
    for parts in (2, 3):
        rows = by_label(finished[0], parts)
        assert all(row.locality_audit["ok"] for row in rows.values())
        assert rows["backprop@simultaneous"].modular == "end-to-end"
        assert rows["backprop@simultaneous"].locality_audit["observed"] == "global"
        assert rows["dgl:head=linear@simultaneous"].modular == "weakly modular"
        assert rows["dgl:head=linear@simultaneous"].locality_audit["observed"] == "strict"
        assert rows["predsim@sequential"].modular == "modular"


def test_counts_are_closed_forms(finished):
    for result in finished[0]:
        assert result.part_updates == STEPS * result.parts
        assert result.params == 64 * 256 + 256 + 2 * (256 * 256 + 256) + 256 * 10 + 10
        assert sum(result.peak_breakdown.values()) == result.peak_memory_bytes
        assert result.step_seconds > 0
    heads = by_label(finished[0], 3)["dgl:head=linear@simultaneous"].head_params
    assert heads == 2 * (256 * 10 + 10)
    assert by_label(finished[0], 3)["backprop@simultaneous"].head_params == 0


def test_operations_are_those_counted_by_hand(finished):
    """64-256-256-256-10 cut at fc1 (and fc2); 2 N W forward, as much for the weights, and for inputs where one learns.

    Linear heads 256-10 are run forward, and backward to their weights and their input.
    """
    sizes, n = [64 * 256, 256 * 256, 256 * 256, 256 * 10], 2 * 32
    for parts in (2, 3):
        rows = by_label(finished[0], parts)
        whole = n * (2 * sum(sizes) + sum(sizes[1:]))
        cuts = [1 + ("fc1", "fc2", "fc3").index(name) for name in rows["backprop@simultaneous"].cuts]
        within = n * (2 * sum(sizes) + sum(sizes[layer] for layer in (1, 2, 3) if layer not in cuts))
        expected = {
            "backprop@simultaneous": whole,
            "checkpointed@simultaneous": whole + n * sum(sizes[: cuts[-1]]),
            "dgl:head=linear@simultaneous": within + (parts - 1) * n * 3 * 256 * 10,
        }
        assert {label: rows[label].flops for label in expected} == expected
        summary = {row.label: row for row in summarise(finished[0]) if row.first.parts == parts}
        for label, count in expected.items():
            assert summary[label].flops_ratio == pytest.approx(count / whole)
        assert summary["backprop@simultaneous"].flops_ratio == 1
    assert rows["predsim@sequential"].flops > rows["dgl:head=linear@simultaneous"].flops


def test_the_angle_to_backpropagation_is_measured_from_the_start_to_the_end_but_not_of_itself(finished):
    for result in finished[0]:
        found = [entry["alignment"] for entry in result.history]
        if result.method in ("backprop", "checkpointed"):
            assert found == [None] * 3
            continue
        assert all(len(part["angle"]) == len(part["ratio"]) == result.parts for part in found)
        assert result.angles == found[-1]["angle"]
        if result.label == "dgl:head=linear@simultaneous":
            assert [part["angle"][-1] for part in found] == [0, 0, 0]  # the last part minimises the task loss
            assert all(30 < angle < 150 for part in found for angle in part["angle"][:-1])


def test_measuring_angles_changes_nothing_else(finished, monkeypatch):
    monkeypatch.setattr(Aligning, "after", lambda self, passes: None)
    plain = run(replace(SMALL, methods=("dgl:head=linear", "predsim@sequential"), parts=(3,)))
    for result in plain:
        measured = by_label(finished[0], 3)[result.label]
        assert result.angles is None
        assert (result.test_loss, result.test_accuracy) == (measured.test_loss, measured.test_accuracy)
        for ours, theirs in zip(timeless(result).history, timeless(measured).history, strict=True):
            assert ours == theirs | {"alignment": None}


def test_a_moment_that_cannot_be_measured_is_none(monkeypatch):
    def fails(*_, **__):
        raise NonFiniteLossError(part=0, step=3, stepped=())

    monkeypatch.setattr(aligning.checks, "alignment", fails)
    (result,) = run(replace(SMALL, methods=("dgl:head=linear",), parts=(2,), epochs=1))
    assert [entry["alignment"] for entry in result.history] == [None, None]
    assert result.error is None


def test_history_has_a_line_before_training_and_after_every_pass_of_a_part(finished):
    for result in finished[0]:
        sequential = result.schedule == "sequential"
        assert len(result.history) == 1 + 2 * (result.parts if sequential else 1)
        assert all(len(entry["probe"]) == result.parts for entry in result.history)
        assert result.history[0]["losses"] == {}
        for entry in result.history[1:]:
            trained = [entry["part"]] if sequential else range(result.parts)
            assert list(entry["losses"]) == [str(part) for part in trained]
        assert [entry["part_updates"] for entry in result.history] == sorted(
            entry["part_updates"] for entry in result.history
        )


def test_checkpointed_gives_the_numbers_of_backprop(finished):
    for parts in (2, 3):
        rows = by_label(finished[0], parts)
        a, b = rows["backprop@simultaneous"], rows["checkpointed@simultaneous"]
        assert (a.test_loss, a.test_accuracy) == (b.test_loss, b.test_accuracy)
        assert [entry["losses"] for entry in a.history] == [entry["losses"] for entry in b.history]


def test_backprop_gives_the_numbers_of_a_plain_loop(finished):
    """The recipe, the initial weights and the order of samples are what they are said to be, to the bit."""
    workshop = Workshop(SMALL)
    row = configurations(SMALL)[0]
    model, loader = workshop.model(0), workshop.loader(row, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2)
    for _ in range(2):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        scheduler.step()
    model.eval()
    hits, total = 0, 0.0
    with torch.no_grad():
        for x, y in workshop.plain(workshop.material.test):
            logits = model(x)
            hits += int((logits.argmax(1) == y).sum())
            total += float(F.cross_entropy(logits, y)) * len(y)
    result = by_label(finished[0], 3)["backprop@simultaneous"]
    assert result.test_accuracy == hits / len(workshop.material.test)
    assert result.test_loss == total / len(workshop.material.test)


def test_a_run_does_not_depend_on_what_is_run_beside_it_nor_on_the_default_generator(finished):
    torch.manual_seed(99)
    before = torch.get_rng_state()
    (alone,) = run(replace(SMALL, methods=("dgl:head=linear",), parts=(3,)))
    assert torch.equal(torch.get_rng_state(), before)
    beside = by_label(finished[0], 3)["dgl:head=linear@simultaneous"]
    assert timeless(alone).history == timeless(beside).history
    assert (alone.test_loss, alone.fingerprint) == (beside.test_loss, beside.fingerprint)


class Stops(Watcher):
    """Ctrl-C in the middle of a run."""

    def __init__(self, after):
        self.left = after
        self.started = []

    def start(self, run, *, batches):
        self.started.append(str(run))

    def batch(self):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def test_an_interrupted_experiment_goes_on_and_ends_with_the_same_results(finished, tmp_path):
    experiment = replace(SMALL, parts=(3,))
    with pytest.raises(KeyboardInterrupt):
        run(experiment, out=tmp_path, watchers=[Stops(2 * STEPS + 1)])
    folder = Folder(tmp_path)
    kept = folder.results()
    assert [result.method for result in kept] == ["backprop", "checkpointed"]
    measured = folder.measurements()
    with folder.results_file.open("ab") as file:
        file.write(b'{"method": "half a li')
    second = Stops(10_000)
    results = run(experiment, out=tmp_path, watchers=[second])
    assert second.started == [str(one) for one in runs(experiment)[2:]]
    assert folder.measurements() == measured
    assert results[:2] == kept
    assert folder.results() == results
    whole = by_label(finished[0], 3)
    for result in results:
        ours, theirs = timeless(result), timeless(whole[result.label])
        assert (ours.history, ours.test_loss) == (theirs.history, theirs.test_loss)


def test_a_finished_experiment_trains_nothing_again(finished):
    results, folder = finished
    before = folder.results_file.read_bytes()
    watcher = Stops(0)
    assert run(SMALL, out=folder.path, watchers=[watcher]) == results
    assert watcher.started == []
    assert folder.results_file.read_bytes() == before


def test_a_folder_of_another_experiment_is_refused_and_left_as_it_was(finished):
    _, folder = finished
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    with pytest.raises(ModulewiseError, match=r"another experiment \(epochs is 2, not 3; seeds is \[0\], not \[1\]\)"):
        run(replace(SMALL, epochs=3, seeds=(1,)), out=folder.path)
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before


def test_a_folder_with_other_files_and_a_file_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(ModulewiseError, match="something else"):
        run(SMALL, out=tmp_path)
    with pytest.raises(ModulewiseError, match="is a file"):
        run(SMALL, out=tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_line_in_the_middle_is_named(finished, tmp_path):
    lines = finished[1].results_file.read_text().splitlines()
    folder = Folder(tmp_path)
    folder.results_file.write_text("\n".join([lines[0], lines[1][:50], lines[2]]) + "\n")
    with pytest.raises(ModulewiseError, match="line 2 is damaged"):
        folder.results()


@pytest.mark.parametrize(
    ("change", "error", "part"),
    [
        ({"methods": ("backprop", "dlg")}, MethodError, "did you mean 'dgl'"),
        ({"methods": ("dgl@sequental",)}, MethodError, "unknown schedule"),
        ({"methods": ("dgl", "backprop@sequential")}, MethodError, "backprop@simultaneous"),
        ({"methods": ("dgl", "bcd@sequential"), "model": "mlp"}, MethodError, "bcd@simultaneous"),
        ({"methods": ("dgl", "bcd"), "model": "cnn"}, MethodError, "bcd"),
        ({"methods": ("bcd",), "augment": ("flip",)}, ModulewiseError, "leave --augment out"),
        ({"model": "mpl"}, ModulewiseError, "did you mean 'mlp'"),
        ({"data": "digit"}, DataError, "did you mean 'digits'"),
        ({"cuts": ("fc9",)}, PartitionError, "did you mean 'fc"),
        ({"parts": (2, 40)}, PartitionError, "40 parts"),
        ({"augment": ("crp",)}, DataError, "did you mean 'crop'"),
        ({"device": "gpu"}, ModulewiseError, "expected cpu, cuda"),
        ({"train_limit": 1}, DataError, "too few"),
    ],
)
def test_all_is_validated_before_anything_is_written(tmp_path, change, error, part):
    with pytest.raises(error) as caught:
        run(replace(SMALL, **change), out=tmp_path / "out")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_refused():
    with pytest.raises(ModulewiseError, match="has none"):
        run(replace(SMALL, device="cuda"))


@pytest.mark.parametrize(
    "change",
    [
        {"parts": (0,)},
        {"parts": ()},
        {"methods": ()},
        {"seeds": ()},
        {"epochs": 0},
        {"batch_size": 0},
        {"train_limit": 0},
        {"threads": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
    ],
)
def test_values_out_of_range_are_refused_at_construction(change):
    with pytest.raises(ModulewiseError, match=r"expected|needs"):
        replace(SMALL, **change)


def test_a_diverging_run_is_written_down_and_the_others_go_on(tmp_path):
    experiment = replace(SMALL, methods=("backprop", "bcd"), parts=(2,), lr=1e30)
    results = run(experiment, out=tmp_path)
    assert "not finite" in results[0].error
    assert results[0].test_accuracy is None
    assert results[1].error is None
    assert results[1].part_updates == 2 * 2  # a sweep is one step
    rows = summarise(Folder(tmp_path).results())
    assert cells(rows[0])[2] == "failed"
    assert "declared" in cells(rows[1])[6]
    assert results[1].flops > 0
    assert [entry["alignment"] is None for entry in results[1].history] == [False, True, True]


def test_experiments_survive_json_and_fingerprints_tell_them_apart():
    experiment = replace(
        SMALL,
        optimizer=Descent.ADAM,
        schedule_lr=RateSchedule.CONSTANT,
        precision=torch.bfloat16,
        cuts=("fc1",),
        augment=("flip",),
    )
    assert Experiment.from_json(json.loads(json.dumps(experiment.to_json()))) == experiment
    assert experiment.rate == 0.001
    one = runs(SMALL)[0]
    key = fingerprint(SMALL, one)
    assert fingerprint(replace(SMALL, methods=("backprop",), parts=(2,)), one) == key
    assert fingerprint(replace(SMALL, lr=0.1), one) != key
    assert len({fingerprint(SMALL, other) for other in runs(replace(SMALL, seeds=(0, 1)))}) == 24


def test_runs_are_ordered_seed_by_seed():
    assert [one.seed for one in runs(replace(SMALL, seeds=(3, 1)))] == [3] * 12 + [1] * 12


def test_named_cuts_are_used_and_give_the_number_of_parts():
    experiment = replace(SMALL, methods=("dgl",), cuts=("fc1", "fc3"), epochs=1)
    (result,) = run(experiment)
    assert (result.parts, list(result.cuts)) == (3, ["fc1", "fc3"])


def test_held_out_samples_are_training_samples_that_no_run_trains_on():
    material = Workshop(SMALL).material
    assert (len(material.train), len(material.held), len(material.fitted)) == (112, 16, 112)
    everything = {row.numpy().tobytes() for row in material.dataset.train.x}
    held = {row.numpy().tobytes() for row in material.held.x}
    assert held <= everything
    assert not held & {row.numpy().tobytes() for row in material.train.x}


@pytest.mark.parametrize("features", [5, 60])
def test_the_probe_is_ridge_regression(features):
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, features)) * 3 + 1, rng.integers(0, 4, 40)
    x_held, y_held = rng.normal(size=(200, features)) * 3 + 1, rng.integers(0, 4, 200)
    scaler = StandardScaler().fit(x)
    ridge = Ridge(alpha=0.01 * 40).fit(scaler.transform(x), np.eye(4)[y])
    expected = (ridge.predict(scaler.transform(x_held)).argmax(1) == y_held).mean()
    as_tensors = [(torch.from_numpy(a), torch.from_numpy(b)) for a, b in ((x, y), (x_held, y_held))]
    assert probe_accuracy(*as_tensors, classes=4) == pytest.approx(expected)


def test_a_dead_feature_does_not_disturb_the_probe():
    x, y = torch.tensor([[0.0, 7.0], [1.0, 7.0]]), torch.tensor([0, 1])
    assert probe_accuracy((x, y), (torch.tensor([[0.1, 900.0], [0.9, -900.0]]), y), classes=2) == 1.0


def test_probing_changes_nothing():
    workshop = Workshop(replace(SMALL, model="cnn", probe=True))
    trainer = workshop.trainer(configurations(SMALL)[0], seed=0)
    model = trainer.partition.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    material = workshop.material
    found = probe_parts(trainer.partition, workshop.plain(material.fitted), workshop.plain(material.held), classes=10)
    assert len(found) == 2
    assert all(0 <= accuracy <= 1 for accuracy in found)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_augmentations_by_name_take_sizes_from_the_image_or_a_number():
    assert augmentation(["crop", "cutout"], shape=(3, 32, 32)) == Compose((Crop(padding=4), Cutout(size=16)))
    assert augmentation(["crop:2", "flip:0.25"], shape=(3, 32, 32)) == Compose((Crop(padding=2), Flip(p=0.25)))
    assert augmentation([], shape=(3, 32, 32)) is None
    with pytest.raises(DataError, match="crop:NUMBER"):
        augmentation(["crop:x"], shape=(3, 32, 32))
    with pytest.raises(DataError, match="probability"):
        augmentation(["flip:3"], shape=(3, 32, 32))


def test_an_augmented_sequential_experiment_in_bfloat16_with_recomputation_runs():
    experiment = replace(
        SMALL, methods=("dgl@sequential",), parts=(2,), augment=("crop:1",), precision=torch.bfloat16, recompute=True
    )
    (result,) = run(replace(experiment, probe=False, threads=1))
    assert result.part_updates == 2 * 2 * (128 // 32)
    assert result.history[-1]["probe"] is None


def fake(accuracy, *, method="dgl", seed=0, memory=200, seconds=0.1):
    return Result(
        fingerprint=f"{method}{seed}",
        method=method,
        schedule="simultaneous",
        locality="strict",
        locality_audit={"ok": method != "liar", "observed": "strict"},
        modular="weakly modular",
        parts=2,
        cuts=["a"],
        seed=seed,
        model="m",
        data="d",
        test_accuracy=accuracy,
        test_loss=0.0,
        error=None,
        peak_memory_bytes=memory,
        peak_breakdown=MappingProxyType({}),
        step_seconds=seconds,
        train_seconds=1.0,
        part_updates=12_345,
        params=1_500_000,
        head_params=10,
        epochs=1,
        batch_size=1,
        device="cpu",
        versions={},
        git=None,
        options={},
        history=[],
    )


def test_rows_give_mean_sample_deviation_and_ratios_to_backprop():
    results = [fake(0.9), fake(0.8, seed=1), fake(0.95, method="backprop", memory=400, seconds=0.2)]
    rows = summarise(results)
    assert rows[0].accuracy == pytest.approx(0.85)
    assert rows[0].spread == pytest.approx(((0.05**2 + 0.05**2) / 1) ** 0.5)
    assert (rows[0].memory_ratio, rows[0].time_ratio) == (0.5, 0.5)
    shown = dict(zip(HEADINGS, cells(rows[0]), strict=True))
    assert shown["accuracy"] == "85.00 ± 7.07 %"
    assert shown["peak memory"] == "200 B (0.50x)"
    assert shown["step time"] == "100 ms (0.50x)"
    assert shown["FLOPs"] == "-"
    assert shown["params"] == "1.5 M"
    assert shown["locality"] == "strict, audit ok"
    assert summarise(results[:1])[0].memory_ratio is None
    assert summarise(results[:1])[0].spread is None
    assert markdown(rows).count("\n") == 3


def test_time_and_operations_are_compared_by_the_sample():
    """A step of a method with its own update takes the whole training set; a sample of it costs 0.2 / 8 and 60 / 8."""
    control = replace(fake(0.9, method="backprop", seconds=0.1, memory=100), flops=30, batch_size=2)
    solver = replace(fake(0.9, seconds=0.2, memory=50), flops=60, batch_size=8)
    row = summarise([control, solver])[1]
    assert (row.time_ratio, row.flops_ratio, row.memory_ratio) == (0.5, 0.5, 0.5)
    assert cells(row)[5] == "60 FLOP (0.50x)"
    assert summarise([control])[0].flops_ratio == summarise([control])[0].time_ratio == 1
    assert summarise([replace(control, flops=None), solver])[1].flops_ratio is None
    assert cells(summarise([solver])[0])[5] == "60 FLOP"


def test_a_violated_locality_is_shown():
    assert "VIOLATED" in cells(summarise([fake(0.5, method="liar")])[0])[6]


def test_the_commit_is_recorded_in_a_checkout():
    state = git_state()
    assert state is None or (len(state["commit"]) == 40 and isinstance(state["dirty"], bool))


def test_live_curves_are_written_where_tensorboard_is_installed(tmp_path):
    pytest.importorskip("tensorboard")
    run(replace(SMALL, methods=("dgl",), parts=(2,), epochs=1), watchers=[TensorBoard(tmp_path)])
    (folder,) = tmp_path.iterdir()
    assert "dgl" in folder.name
    assert any(path.stat().st_size > 100 for path in folder.iterdir())


def test_live_curves_without_tensorboard_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModulewiseError, match=r"modulewise\[tensorboard\]"):
        TensorBoard(tmp_path)


def test_public_names_exist():
    assert all(hasattr(compare, name) for name in compare.__all__)


def test_locality_is_that_of_the_options_not_of_the_class():
    """Without overlap the units of `local-updates` are strictly local, and may be trained one after another."""
    plain, overlapping = (
        configurations(Experiment(methods=(text,)))[0].locality
        for text in ("local-updates:overlap=no@sequential", "local-updates")
    )
    assert (str(plain), str(overlapping)) == ("strict", "window(2)")
    with pytest.raises(MethodError, match=r"local-updates@sequential.*window\(2\)"):
        configurations(Experiment(methods=("local-updates@sequential",)))
