"""The few-labels experiment on the digits: every arm against its own steps by hand, labels that it must not read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression

import modulewise as mw
from modulewise import losses
from modulewise.cli import main
from modulewise.data import Split
from modulewise.errors import DataError, MethodError, ModulewiseError
from modulewise.report.label_curve import label_picture
from modulewise.workflow import FewLabels, drawn_pairs, label_curve, train_head
from modulewise.workflow.labels.arms import (
    Arm,
    Network,
    Outputs,
    output_features,
    outputs,
    scratch,
    trained,
    with_new_output,
    with_probe,
)
from modulewise.workflow.labels.curve import verdict
from modulewise.workflow.labels.rows import HEADINGS, LabelFolder, LabelRow, table_rows
from modulewise.workflow.labels.settings import Ingredients, OutputLoss, output_layer, quicker

TINY = FewLabels(
    model="mlp",
    per_class=(1, 5),
    draws=2,
    epochs=2,
    scratch_draws=1,
    scratch_steps=8,
    train_limit=400,
    test_limit=200,
    lr=0.1,
)


@pytest.fixture(scope="module")
def made():
    return Ingredients(TINY)


@pytest.fixture(scope="module")
def networks(made):
    return {network: trained(network, made) for network in Network}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder and rows of one whole run."""
    folder = tmp_path_factory.mktemp("labels") / "out"
    return folder, label_curve(TINY, out=folder)


def found(rows, arm, per_class):
    (row,) = [row for row in rows if (row.arm, row.per_class) == (arm.value, per_class)]
    return row


def correct_share(model, made):
    loader = made.plain(made.test)
    return (
        mw.Trainer(
            mw.Partition(model, parts=1, example=torch.zeros(2, *made.shape)),
            mw.methods.Backprop(),
            loss=losses.classification,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        )
        .evaluate(loader)
        .accuracy
    )


def test_there_is_a_row_for_every_arm_and_number_of_labels(run):
    """With as many accuracies as draws; one draw of all labels; what it was made with beside it."""
    _, rows = run
    assert [(row.arm, row.per_class) for row in rows] == [(arm.value, n) for arm in Arm for n in (1, 5, None)]
    for row in rows:
        assert len(row.accuracies) == (1 if row.per_class is None or row.arm == Arm.SCRATCH.value else 2)
        assert row.labels == (400 if row.per_class is None else 10 * row.per_class)
        assert row.versions["torch"] == torch.__version__
        assert row.settings == TINY.to_json()
        assert row.device.startswith("cpu (")
    assert found(rows, Arm.PAIRS, 1).network_seconds > 0
    assert found(rows, Arm.SCRATCH, 1).network_seconds is None


def test_the_arm_of_pairs_is_the_model_with_the_new_output_layer_in_it(run, made, networks):
    """The head is put into the model itself, which is then evaluated as any other: stage 2 trained nothing else."""
    model, partition = networks[Network.PAIRS]
    hidden = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("head")}
    for draw in range(2):
        chosen = made.draw(5, draw)
        h = output_features(
            model, output_layer(partition), made.plain(Split(made.train.x[chosen], made.train.y[chosen]))
        )
        head = train_head(
            torch.nn.functional.normalize(h, dim=1), made.train.y[chosen], classes=10, bias=False, penalty=TINY.penalty
        )
        with torch.no_grad():
            model.head.weight.copy_(head.weight)
            model.head.bias.zero_()
        assert found(run[1], Arm.PAIRS, 5).accuracies[draw] == pytest.approx(correct_share(model, made), abs=1e-9)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in hidden.items())


def test_the_probe_is_scikit_learns_on_the_features_of_pairs(run, made, networks):
    model, partition = networks[Network.PAIRS]
    features = outputs(model, partition, made)
    chosen = made.draw(5, 1)
    probe = LogisticRegression(max_iter=1000).fit(features.train[chosen].numpy(), made.train.y[chosen].numpy())
    score = probe.score(features.test.numpy(), made.test.y.numpy())
    assert found(run[1], Arm.PROBE, 5).accuracies[1] == pytest.approx(score)


def test_a_probe_that_does_not_converge_says_nothing(made):
    """A warning would be an error here; features of very different size need more iterations than there are."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 30, generator=generator) * torch.logspace(-3, 3, 30)
    hard = Outputs(x, x[:200], 0.0)
    assert 0 <= with_probe(hard, made, made.draw(None, 0)) <= 1


def test_with_all_labels_the_arm_from_scratch_is_plain_backpropagation(run, made):
    """The same seeds in a loop of plain PyTorch give the same accuracy."""
    model = made.model(TINY.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=TINY.lr, momentum=0.9, weight_decay=TINY.weight_decay)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=TINY.epochs)
    loader = made.loader(made.train, seed=TINY.seed, batch_size=TINY.batch_size)
    for _ in range(TINY.epochs):
        for x, y in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        cosine.step()
    assert found(run[1], Arm.SCRATCH, None).accuracies[0] == pytest.approx(correct_share(model, made), abs=0.0051)


def test_backpropagation_with_a_new_output_starts_from_its_own_network(run, made, networks):
    features = outputs(*networks[Network.BACKPROP], made)
    value = with_new_output(features, made, made.draw(1, 0), loss=losses.classification, penalty=TINY.penalty)
    assert found(run[1], Arm.RETRAINED, 1).accuracies[0] == value
    assert found(run[1], Arm.RETRAINED, 5).accuracies != found(run[1], Arm.PAIRS, 5).accuracies


def with_wrong_labels(made, kept):
    """The same ingredients, with wrong labels for all training samples but those kept."""
    other = Ingredients(TINY)
    y = (made.train.y + 1) % 10
    y[kept] = made.train.y[kept]
    other.train = Split(made.train.x, y)
    return other


def test_training_from_scratch_reads_no_label_but_those_drawn(made):
    chosen = made.draw(1, 0)
    assert scratch(with_wrong_labels(made, chosen), chosen, draw=0) == scratch(made, chosen, draw=0)


def test_a_pair_list_is_all_that_stage_1_reads(made):
    """Wrong class labels everywhere change no weight."""
    models = []
    for given in (made, with_wrong_labels(made, torch.arange(0))):
        settings, given.pairs = given.settings, drawn_pairs(made.train.y, count=300)
        models.append(trained(Network.PAIRS, given)[0].state_dict())
        given.pairs, given.settings = None, settings
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_draws_differ_and_are_the_same_for_every_arm(made):
    assert torch.equal(made.draw(5, 0), Ingredients(TINY).draw(5, 0))
    assert not torch.equal(made.draw(5, 0), made.draw(5, 1))
    assert torch.equal(made.draw(None, 0), torch.arange(400))


def test_held_out_samples_are_the_last_training_samples_and_nothing_trains_on_them():
    """And the test split is not looked at."""
    dataset = mw.data.load("digits")
    held = Ingredients(replace(TINY, held_out=300, train_limit=None, test_limit=None))
    assert torch.equal(held.test.x, dataset.train.x[-300:])
    assert torch.equal(held.train.x, dataset.train.x[:-300])
    with pytest.raises(DataError, match="held_out=1437 of 1437"):
        Ingredients(replace(TINY, held_out=1437))


def test_features_are_what_enters_the_layer_and_the_hook_comes_off(made, networks):
    model, partition = networks[Network.PAIRS]
    model.train()
    layer = output_layer(partition)
    h = output_features(model, layer, made.plain(made.test))
    assert not layer._forward_pre_hooks
    assert model.training
    assert h.shape == (200, 256)
    with pytest.raises(RuntimeError):
        output_features(model, layer, [(torch.zeros(1, 3), None)])
    assert not layer._forward_pre_hooks


def test_a_stopped_run_goes_on_to_the_same_rows(run, tmp_path):
    """Stopped inside a line, with one network lost: finished rows stay as they are, the others come out alike."""
    folder, rows = run
    lines = (folder / "labels.jsonl").read_text().splitlines(keepends=True)
    out = tmp_path / "out"
    out.mkdir()
    for name in ("settings.json", "backprop.safetensors"):
        (out / name).write_bytes((folder / name).read_bytes())
    (out / "labels.jsonl").write_text("".join(lines[:5]) + lines[5][:40])
    again = label_curve(TINY, out=out)
    assert [row.accuracies for row in again] == [row.accuracies for row in rows]
    assert (out / "labels.jsonl").read_text().splitlines(keepends=True)[:5] == lines[:5]
    assert len(LabelFolder(out).rows()) == len(rows)


def test_a_run_on_a_pair_list_says_so(tmp_path):
    """From the file to the rows; the pairs are of the whole training split."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pairs = drawn_pairs(mw.data.load("digits").train.y, count=200)
    columns = {name: getattr(pairs, name).numpy() for name in ("first", "second", "same")}
    parquet.write_table(arrow.table(columns), tmp_path / "pairs.parquet")
    settings = quicker(replace(TINY, pairs=str(tmp_path / "pairs.parquet"), train_limit=None, per_class=(1,)))
    rows = label_curve(settings, out=tmp_path / "out")
    assert found(rows, Arm.PAIRS, 1).seen.startswith("same or not for the 200 pairs of a list")
    assert found(rows, Arm.PAIRS, None).labels == 1437
    assert found(rows, Arm.PAIRS, 1).accuracies != found(rows, Arm.RETRAINED, 1).accuracies


def test_a_finished_run_trains_nothing(run, monkeypatch):
    folder, rows = run
    monkeypatch.setattr("modulewise.workflow.labels.curve.trained", None)
    assert label_curve(TINY, out=folder) == rows


class TestFolder:
    """What is refused, and that nothing is written then."""

    def test_another_experiment(self, run):
        with pytest.raises(ModulewiseError, match="draws is 2, not 3"):
            label_curve(replace(TINY, draws=3), out=run[0])

    def test_other_files_and_a_file(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(ModulewiseError, match="something else"):
            label_curve(TINY, out=tmp_path)
        with pytest.raises(ModulewiseError, match="is a file"):
            label_curve(TINY, out=tmp_path / "notes.txt")
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    def test_one_in_use(self, tmp_path):
        with LabelFolder(tmp_path).opened(TINY):
            second = LabelFolder(tmp_path).opened(TINY)
            with pytest.raises(ModulewiseError, match="in use"):
                second.__enter__()
        with LabelFolder(tmp_path).opened(TINY):
            pass

    def test_a_damaged_line_and_a_damaged_network(self, run, tmp_path):
        folder = LabelFolder(tmp_path)
        line = (run[0] / "labels.jsonl").read_text().splitlines()[0]
        folder.rows_file.write_text(line + "\n{}\n" + line + "\n")
        with pytest.raises(ModulewiseError, match="line 2 is damaged"):
            folder.rows()
        (tmp_path / "pairs.safetensors").write_bytes(b"none")
        with pytest.raises(ModulewiseError, match=r"pairs\.safetensors is damaged"):
            folder.kept("pairs", torch.nn.Linear(2, 2))

    def test_a_network_of_another_shape(self, tmp_path):
        folder, other = LabelFolder(tmp_path), torch.nn.Linear(3, 2)
        folder.keep("pairs", torch.nn.Linear(2, 2), seconds=1.5)
        before = other.weight.clone()
        with pytest.raises(ModulewiseError, match="another model"):
            folder.kept("pairs", other)
        assert torch.equal(other.weight, before)
        same = torch.nn.Linear(2, 2)
        assert folder.kept("pairs", same) == 1.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draws": 0}, "draws=0"),
        ({"batch_size": 2}, "batch_size=2"),
        ({"pairs_lr": -1.0}, "rates"),
        ({"penalty": -1.0}, "penalty"),
        ({"per_class": (5, 1)}, "increasing"),
        ({"per_class": (0, 1)}, "at least 1"),
        ({"pairs": "pairs.parquet"}, "whole training split"),
        ({"per_class": (1, 5000)}, "5000 examples per class"),
        ({"proxy": "dgl"}, "reads more than pairs"),
        ({"proxy": "kernel-prxy"}, "kernel-proxy"),
        ({"cuts": ("fc2",)}, "one linear layer"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_written(change, message, tmp_path):
    with pytest.raises(ModulewiseError, match=message) as caught:
        label_curve(replace(TINY, **change), out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_place_to_cut_is_refused():
    with pytest.raises(MethodError, match="no place to cut"):
        Ingredients(replace(TINY, model=f"{__name__}:only_linear"))


def only_linear():
    return torch.nn.Linear(8, 10)


def test_the_hinge_is_another_output_layer(made, networks):
    features = outputs(*networks[Network.PAIRS], made)
    chosen = made.draw(5, 0)
    cross, hinge = (
        with_new_output(features, made, chosen, loss=loss.criterion, penalty=1e-3)
        for loss in (OutputLoss.CROSS_ENTROPY, OutputLoss.HINGE)
    )
    assert OutputLoss.HINGE.criterion is losses.multi_margin
    assert abs(cross - hinge) < 0.2


def row(arm, per_class, accuracies):
    return LabelRow(
        arm=arm.value,
        seen="",
        per_class=per_class,
        labels=10,
        accuracies=accuracies,
        seconds=1.0,
        network_seconds=None,
        seed=0,
        device="",
        versions={},
        git=None,
        settings={},
    )


def test_cells_are_percent_with_the_spread_of_a_sample():
    assert table_rows([row(Arm.PAIRS, 1, (0.5, 0.7)), row(Arm.PAIRS, None, (0.9,))]) == [
        ("pairs", "1", "10", "2", "60.00", "14.14", "50.00", "70.00"),
        ("pairs", "all", "10", "1", "90.00", "", "90.00", "90.00"),
    ]
    assert len(HEADINGS) == 8


def test_the_verdict_compares_fewest_with_all_labels_and_with_backpropagation():
    rows = [
        row(Arm.PAIRS, 1, (0.98, 0.99)),
        row(Arm.RETRAINED, 1, (0.5,)),
        row(Arm.PAIRS, None, (0.991,)),
        row(Arm.SCRATCH, 1, (0.4,)),
        row(Arm.SCRATCH, None, (0.992,)),
    ]
    text = verdict(rows)
    assert "98.50 %, 0.60 points below" in text
    assert "(99.10 %)" in text
    assert text.endswith("E2EBP on all labels: 99.20 %")


def test_the_picture_is_the_same_for_the_same_rows(run):
    picture = label_picture(run[1])
    assert picture == label_picture(LabelFolder(run[0]).rows())
    assert picture.startswith(b"<?xml")


def test_every_arm_says_which_labels_it_has_seen():
    """Pairs of full labels come from all training labels, which must be said."""
    assert "all class labels of the training split" in Arm.PAIRS.seen(pairs=None)
    assert "all class labels" not in Arm.PAIRS.seen(pairs=7)
    assert "7 pairs of a list" in Arm.PROBE.seen(pairs=7)
    assert "all class labels" in Arm.RETRAINED.seen(pairs=7)
    assert "nothing else" in Arm.SCRATCH.seen(pairs=None)


def test_quick_runs_are_marked_and_small():
    quick = quicker(FewLabels())
    assert quick.quick
    assert (quick.per_class, quick.draws, quick.epochs, quick.train_limit) == ((1, 10), 3, 2, 4096)
    assert quicker(FewLabels(pairs="x")).train_limit is None


def test_the_command_prints_the_table_and_writes_rows_and_plot(run, tmp_path, capsys):
    """On the same settings as the run above, from which it goes on."""
    words = ["--model", "mlp", "--per-class", "1,5", "--draws", "2", "--epochs", "2", "--scratch-steps", "8"]
    words += ["--scratch-draws", "1"]
    limits = ["--train-limit", "400", "--test-limit", "200", "--lr", "0.1", "--device", "cpu"]
    assert main(["labels", *words, *limits, "--out", str(run[0])]) == 0
    said = capsys.readouterr().out
    assert "standard deviation" in said
    assert "which labels each arm has seen:" in said
    assert "all class labels of the training split" in said
    assert "points below all 400 labels" in said
    assert (run[0] / "labels.svg").is_file()
    assert json.loads((run[0] / "labels.jsonl").read_text().splitlines()[0])["arm"] == "pairs"


@pytest.mark.parametrize(
    "words",
    [
        ["--per-class", "1,x"],
        ["--per-class", "1000"],
        ["--output", "hinges"],
        ["--pairs", "missing.parquet"],
        ["--proxy", "dgl"],
        ["--data", "digit"],
    ],
)
def test_bad_input_of_the_command_is_one_line_and_2(words, tmp_path, capsys):
    assert main(["labels", *words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("modulewise: ")
    assert not Path(tmp_path / "out").exists()
