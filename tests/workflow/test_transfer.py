"""The benchmark of scores: tasks, agreement, what is judged on which data, rows, and the small runs."""

import json
import math
from itertools import combinations

import pytest
import torch
import transfer_tables
from torch import nn
from torch.nn import functional

from modulewise import cli, data, scores
from modulewise.data import Normalize, Split
from modulewise.errors import DataError
from modulewise.methods import DGL, Backprop
from modulewise.workflow.ranking.ranking import Scored
from modulewise.workflow.ranking.tasks import Task, averaged, balanced, binary_tasks, grouped_tasks, parted, restricted
from modulewise.workflow.transfer import binary, book, judging, modules, running
from modulewise.workflow.transfer.agreement import regret, weighted_tau
from modulewise.workflow.transfer.binary import BinarySetting, binary_experiment
from modulewise.workflow.transfer.modules import METHODS, ModulesSetting, method_of, modules_experiment
from modulewise.workflow.transfer.sources import Training, part_of, source_model, train_source
from modulewise.workflow.transfer.table import agreement_cells, groups

NAMES = [f"class {i}" for i in range(10)]


def test_binary_tasks_are_distinct_pairs_drawn_by_a_seed():
    tasks = binary_tasks(NAMES, count=15, seed=0)
    pairs = [task.classes for task in tasks]
    assert len(set(pairs)) == 15
    assert set(pairs) <= set(combinations(range(10), 2))
    assert pairs == [task.classes for task in binary_tasks(NAMES, count=15, seed=0)]
    assert pairs != [task.classes for task in binary_tasks(NAMES, count=15, seed=1)]
    assert tasks[0].name == f"class {pairs[0][0]} / class {pairs[0][1]}"
    with pytest.raises(DataError, match="46 binary tasks"):
        binary_tasks(NAMES, count=46)


def test_groups_are_disjoint():
    tasks = grouped_tasks(10, size=3, count=3, seed=4)
    members = [c for task in tasks for c in task.classes]
    assert len(members) == len(set(members)) == 9
    with pytest.raises(DataError, match="4 groups of 3"):
        grouped_tasks(10, size=3, count=4)


def split_of(labels):
    return Split(torch.arange(float(len(labels)))[:, None], torch.tensor(labels))


def test_a_task_keeps_its_classes_under_new_labels():
    found = restricted(split_of([5, 2, 0, 5, 2]), Task("t", (5, 2)))
    assert found.x[:, 0].tolist() == [0, 1, 3, 4]
    assert found.y.tolist() == [0, 1, 0, 1]


def test_balanced_samples_are_as_even_as_can_be():
    split = split_of([0] * 50 + [1] * 50 + [2] * 3)
    found = balanced(split, 23, seed=1)
    assert found.y.bincount().tolist() == [10, 10, 3]
    assert torch.equal(split.y[found.x[:, 0].long()], found.y)
    assert not torch.equal(found.x, balanced(split, 23, seed=2).x)
    assert balanced(split, 103) is split


def test_parting_takes_the_first_of_every_class_and_leaves_the_others():
    first, others = parted(split_of([0, 1, 1, 0, 1, 0]), 2)
    assert first.x[:, 0].tolist() == [0, 1, 2, 3]
    assert others.x[:, 0].tolist() == [4, 5]


def test_averaged_images_are_means_of_squares():
    x = torch.arange(2 * 8 * 8, dtype=torch.uint8).view(2, 1, 8, 8)
    split = Split(x, torch.tensor([0, 1]))
    dataset = data.Dataset("d", split, split, 2, ("a", "b"), (1, 8, 8))
    small = averaged(dataset, side=4)
    literal = x[1, 0, 2:4, 4:6].float().mean().round()
    assert small.shape == (1, 4, 4)
    assert small.train.x[1, 0, 1, 2] == literal
    assert averaged(dataset, side=16) is dataset


def literal_tau(values, truth):
    """Vigna's tau with additive hyperbolic weights, mean of the rankings by either list, ties broken by the other."""
    n = len(values)

    def one(first, second):
        order = sorted(range(n), key=lambda i: (-first[i], -second[i]))
        rank = {i: place for place, i in enumerate(order)}
        top = left = right = 0.0
        for i, j in combinations(range(n), 2):
            weight = 1 / (rank[i] + 1) + 1 / (rank[j] + 1)
            a, b = (math.copysign(bool(u), u) for u in (values[i] - values[j], truth[i] - truth[j]))
            top, left, right = top + weight * a * b, left + weight * a * a, right + weight * b * b
        return top / math.sqrt(left * right)

    return (one(values, truth) + one(truth, values)) / 2


def test_weighted_tau_is_its_formula():
    """Pairs weighted by their ranks, with ties; a swap at the top costs more than one at the bottom."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        values = torch.randint(6, (9,), generator=generator).tolist()
        truth = torch.randint(6, (9,), generator=generator).tolist()
        assert math.isclose(weighted_tau(values, truth), literal_tau(values, truth), abs_tol=1e-12)
    assert weighted_tau([4, 5, 3, 2, 1], [5, 4, 3, 2, 1]) < weighted_tau([5, 4, 3, 1, 2], [5, 4, 3, 2, 1])
    with pytest.raises(DataError, match="two or more"):
        weighted_tau([1], [1])


def test_regret_is_what_the_top_pick_loses():
    assert regret([0.1, 0.9, 0.5], [0.7, 0.6, 0.8]) == pytest.approx(0.2)
    assert regret([0.9, 0.9, 0.5], [0.7, 0.6, 0.8]) == pytest.approx(0.15)
    with pytest.raises(DataError, match="expected as many"):
        regret([1.0, 2.0], [1.0, 2.0, 3.0])


def entry(source, value, score="cka", seconds=1.0):
    return Scored(
        part=source,
        score=score,
        value=value,
        refused=None,
        seconds=seconds,
        pass_seconds=10.0,
        samples=5,
        parameters=7,
    )


def pair(source, target, accuracy, value, *, own=False):
    static = {"parameter count": 7.0}
    return judging.Pair(source, target, own, accuracy, (entry(source, value),), static)


def test_rows_leave_the_part_of_the_task_itself_out_or_take_it_in():
    """Two targets, three sources; the score errs about the own part only."""
    pairs = [
        pair("a", "A", 0.9, 0.0, own=True),
        pair("b", "A", 0.8, 2.0),
        pair("c", "A", 0.7, 1.0),
        pair("a", "B", 0.6, 5.0),
        pair("b", "B", 0.65, 0.0, own=True),
        pair("c", "B", 0.5, 4.0),
    ]
    without = {row["score"]: row for row in book.agreement_rows(pairs, own=False)}
    own = {row["score"]: row for row in book.agreement_rows(pairs, own=True)}
    assert without["cka"]["tau_w_by_target"] == {"A": 1.0, "B": 1.0}
    assert without["cka"]["regret"] == 0
    assert without["cka"]["candidates"] == 2
    assert own["cka"]["regret_by_target"] == pytest.approx({"A": 0.1, "B": 0.05})
    assert own["cka"]["tau_w"] < 0.5
    assert own["cka"]["candidates"] == 3
    assert (own["cka"]["seconds_beyond"], own["cka"]["seconds_total"]) == (1.0, 11.0)
    assert own["parameter count"]["static"]
    assert own["parameter count"]["tau_w"] == 0
    assert not own["cka"]["static"]
    # On A the other target's accuracies rank b, a, c: the truth is a, b, c, and so is the mean of both.
    assert own[book.HINDSIGHT]["tau_w_by_target"]["A"] == weighted_tau([0.6, 0.65, 0.5], [0.9, 0.8, 0.7]) < 1
    matrix = book.matrix_rows(pairs)
    assert matrix[1] == {
        "kind": "target",
        "target": "B",
        "sources": ["a", "b", "c"],
        "own": [False, True, False],
        "accuracy": [0.6, 0.65, 0.5],
        "scores": {"cka": [5.0, 0.0, 4.0], "parameter count": [7.0, 7.0, 7.0]},
    }


def test_a_score_that_failed_anywhere_is_no_column():
    pairs = [pair("a", "A", 0.9, 1.0), pair("b", "A", 0.8, None)]
    assert set(book.columns(pairs)) == {"parameter count"}


def test_kept_rows_replace_those_of_the_same_experiment_alone(tmp_path):
    path = tmp_path / "folder" / "transfer.jsonl"

    def row(experiment, quick, value):
        return {"experiment": experiment, "quick": quick, "value": value}

    book.keep(path, [row("binary", False, 1), row("binary", True, 2)])
    book.keep(path, [row("mnist", False, 3)])
    book.keep(path, [row("binary", False, 4)])
    assert sorted(found["value"] for found in book.read(path)) == [2, 3, 4]
    assert [entry.name for entry in path.parent.iterdir()] == ["transfer.jsonl"]
    path.write_text("{broken\n")
    with pytest.raises(DataError, match=r"transfer.jsonl:1 is damaged"):
        book.keep(path, [row("binary", False, 5)])
    assert path.read_text() == "{broken\n"


def test_a_trained_head_is_the_optimum_of_penalised_cross_entropy():
    """Plain torch in float64 to the same optimum: C = 1 is 1/2 ||W||^2 beside the sum of the losses."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.randn(60, 4, generator=generator) + functional.one_hot(y, 4)
    x_held = torch.randn(300, 4, generator=generator) + functional.one_hot(torch.arange(300) % 3, 4)
    mean, std = x.double().mean(0), x.double().std(0, correction=0)
    weight = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure():
        optimizer.zero_grad()
        logits = (x.double() - mean) / std @ weight.T + bias
        loss = functional.cross_entropy(logits, y, reduction="sum") + weight.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    guess = ((x_held.double() - mean) / std @ weight.T + bias).argmax(1)
    literal = float((guess == torch.arange(300) % 3).double().mean())
    assert judging.head_accuracy((x, y), (x_held, torch.arange(300) % 3)) == pytest.approx(literal, abs=1e-12)
    assert 0.4 < literal < 1


def test_heads_are_judged_on_test_data_and_scores_see_training_data_alone():
    """A candidate that marks test samples: no score ever sees one, and the accuracy is theirs."""
    y = torch.arange(40) % 2
    train, test = torch.zeros(40, 3), torch.full((40, 3), 9.0)
    train[:, 0] = test[:, 0] = y.float()
    seen = []

    class Spy(scores.Score):
        name = "spy"

        def value(self, features, labels, source):
            seen.append(features)
            return 0.0

    field = judging.Field(
        Split(train, y), Split(test, 1 - y), Normalize(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)), 10, 0
    )
    task = Task("t", (0, 1))
    candidate = judging.Candidate("c", nn.Identity(), task, None)
    (found,) = judging.judged([candidate], [task], field, [Spy()])
    assert found.own
    assert found.accuracy == 0.0  # the test labels are turned round
    assert [len(features) for features in seen] == [10]
    assert seen[0].max() <= 1


def test_source_networks_leave_generators_alone_and_follow_their_seed():
    before = torch.get_rng_state()
    one, same, other = (source_model((1, 8, 8), 2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_a_part_is_the_chain_up_to_its_cut():
    model = source_model((1, 8, 8), 2, width=4).eval()
    part = part_of(model, "block2")
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(part(x), model.block2(model.block1(x)))
    assert not part.training


@pytest.mark.parametrize("method", [Backprop(), DGL(classes=10)])
def test_source_networks_learn(method):
    digits = data.load("digits")
    model = source_model(digits.shape, 10, width=8)
    normalize = data.normalization(digits.train)
    cuts = () if isinstance(method, Backprop) else ("block2", "features")
    training = Training(epochs=3, batch_size=32, rate=5e-3)
    train_source(model, digits.train, method, cuts=cuts, training=training, normalize=normalize)
    guess = model.eval()(normalize(digits.test.x)).argmax(1)
    assert (guess == digits.test.y).double().mean() > 0.5


CHOSEN = (scores.Alignment(), scores.LogME(), scores.LEEP())


def test_the_binary_experiment_compares_every_part_on_every_task():
    """On digits: rows of every kind, tau_w recomputed from the matrix, the same again with the same seed."""
    setting = BinarySetting(
        data="digits",
        tasks=3,
        training=Training(epochs=1, width=4),
        a_class=40,
        held=20,
        source_a_class=60,
        samples=40,
        seed=1,
    )
    rows = binary_experiment(setting, scores=CHOSEN, quick=True)
    assert {row["experiment"] for row in rows} == {"binary"}
    assert all(row["seed"] == 1 and row["versions"]["torch"] == torch.__version__ and row["quick"] for row in rows)
    targets = {row["target"]: row for row in rows if row["kind"] == "target"}
    assert len(targets) == 3
    for found in targets.values():
        assert found["own"].count(True) == 1
        assert found["sources"][found["own"].index(True)] == found["target"]
    agreement = {(row["score"], row["own_source"]): row for row in rows if row["kind"] == "agreement"}
    known = {"alignment", "logme", "leep", "parameter count", "source accuracy", book.HINDSIGHT}
    assert {score for score, _ in agreement} == known
    for own in (False, True):
        by_target = agreement["logme", own]["tau_w_by_target"]
        for name, found in targets.items():
            kept = [i for i in range(3) if own or not found["own"][i]]
            values, accuracies = ([column[i] for i in kept] for column in (found["scores"]["logme"], found["accuracy"]))
            assert by_target[name] == pytest.approx(weighted_tau(values, accuracies))
    again = binary_experiment(setting, scores=CHOSEN, quick=True)
    assert [row for row in again if row["kind"] == "target"] == list(targets.values())


def test_the_modules_experiment_ranks_parts_of_one_size_at_every_cut():
    setting = ModulesSetting(
        data="digits",
        seeds=(0,),
        methods=("DGL", "untrained"),
        training=Training(epochs=1, width=4),
        a_class=30,
        source_a_class=40,
        samples=40,
    )
    rows = modules_experiment(setting, scores=(scores.LogME(),), quick=True)
    for cut in ("block2", "features"):
        own = [row for row in rows if row["group"] == cut]
        (count,) = [row for row in own if row["kind"] == "agreement" and row["score"] == "parameter count"][:1]
        assert count["tau_w"] == 0  # all of one size
        targets = [row for row in own if row["kind"] == "target"]
        assert targets[0]["sources"] == ["DGL, group 0, seed 0", "DGL, group 1, seed 0", "untrained, no task, seed 0"]
        assert [row["own"] for row in targets] == [[True, False, False], [False, True, False]]
    assert rows[0]["experiment"] == "modules: digits"
    with pytest.raises(DataError, match="methods"):
        ModulesSetting(data="digits", methods=("nonsense",))


def marked(classes=4, a_class=60):
    """A data set whose images carry the number of their sample, training samples first."""
    y = torch.arange(a_class * classes) % classes
    x = torch.zeros(2 * len(y), 1, 8, 8)
    x[:, 0, 0, 0] = torch.arange(2.0 * len(y))
    train, test = Split(x[: len(y)], y), Split(x[len(y) :], y)
    return data.Dataset("marked", train, test, classes, tuple("abcd"), (1, 8, 8))


def numbers_of(split):
    return set(split.x[:, 0, 0, 0].tolist())


@pytest.mark.parametrize("kind", ["binary", "modules"])
def test_source_networks_learn_from_other_samples_than_scores_heads_and_tests_see(kind, monkeypatch):
    """What is trained on, what is held out for a source's own accuracy, what heads learn from, and the test split."""
    place = binary if kind == "binary" else modules
    learned, fields, held = [], [], []
    monkeypatch.setattr(place.data, "load", lambda name: marked())
    monkeypatch.setattr(place, "train_source", lambda model, split, *_, **__: learned.append(numbers_of(split)))
    monkeypatch.setattr(place, "judged", lambda candidates, targets, field, *_, **__: fields.append(field) or [])
    monkeypatch.setattr(place, "agreement_rows", lambda pairs, own: [])
    if kind == "binary":
        sizes = {"tasks": 2, "a_class": 20, "held": 10, "source_a_class": 15, "samples": 20}
        taken = binary.collect
        monkeypatch.setattr(
            binary, "collect", lambda part, loader: held.append(numbers_of(loader.split)) or taken(part, loader)
        )
        binary_experiment(BinarySetting(data="marked", training=Training(width=4), **sizes), scores=CHOSEN)
        assert [len(found) for found in held] == [30, 20] * 2
        assert held[0] == learned[0]
        assert held[0].isdisjoint(held[1])
    else:
        monkeypatch.setattr(place, "grouped_tasks", lambda *_, **__: (Task("one", (0, 2)), Task("other", (2, 3))))
        sizes = {"groups": 2, "size": 2, "methods": ("KernelProxy",), "seeds": (0,), "cuts": ("features",)}
        modules_experiment(
            ModulesSetting(data="marked", training=Training(width=4), a_class=20, source_a_class=15, **sizes)
        )
    assert [len(found) for found in learned] == [30, 30]
    (field,) = fields
    assert len(field.train) == (80 if kind == "binary" else 60)  # no images of classes that no task has
    for found in (*learned, *held):
        assert found.isdisjoint(numbers_of(field.train))
        assert found.isdisjoint(numbers_of(field.test))
    used = {i for i in range(240, 480) if kind == "binary" or i % 4 != 1}
    assert numbers_of(field.test) == used


def test_every_method_of_the_modules_experiment_exists():
    assert [method is None for method in (method_of(name, classes=5) for name in METHODS)] == [False] * 4 + [True]


def test_the_table_has_a_row_a_score_the_best_first():
    pairs = [
        pair("a", "A", 0.9, 0.0),
        pair("b", "A", 0.8, 2.0),
        pair("a", "B", 0.6, 5.0),
        pair("b", "B", 0.9, 7.0),
    ]
    common = {"experiment": "binary", "group": "features", "quick": False}
    rows = [{**common, **row} for own in (False, True) for row in book.agreement_rows(pairs, own=own)]
    cells = agreement_cells(groups(rows)["binary", "features", False])
    assert cells[0][0] == "cka" or cells[0][0].startswith("*")
    table = {row[0]: row[1:] for row in cells}
    assert table["cka"] == ("0.000 ± 1.41", "5.00", "0.000 ± 1.41", "5.00", "1.000", "11.000")
    assert table["*parameter count* (static)"][-2:] == ("", "")
    taus = [float(row[1].split(" ")[0]) for row in cells]
    assert taus == sorted(taus, reverse=True)


def test_the_page_shows_full_runs_and_says_what_has_not_run(tmp_path):
    pairs = [pair("a", "A", 0.9, 1.0), pair("b", "A", 0.8, 0.0), pair("a", "B", 0.5, 0.0), pair("b", "B", 0.7, 1.0)]
    facts = {"kind": "setting", "setting": {"samples": 1000}, "epoch_seconds": 2.0}
    found = [
        facts,
        *book.matrix_rows(pairs),
        *(row for own in (False, True) for row in book.agreement_rows(pairs, own=own)),
    ]
    common = {"group": "features", "seed": 0, "device": "cpu (1 threads)", "versions": {"torch": "2.11"}}
    rows = [{**common, "experiment": "binary", "quick": False, **row} for row in found]
    rows += [{**common, "experiment": "modules: mnist", "quick": True, **row} for row in found]
    (tmp_path / "transfer.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = transfer_tables.transfer_table(tmp_path)
    assert "### Binary tasks of CIFAR-10 classes, parts up to `features`" in page
    assert "2 targets, 2 parts a target" in page
    assert "best part, the own one included, 80.0 %, 15.0 points above the worst" in page
    assert "| cka | 1.000 ± 0.00 | 0.00 | 1.000 ± 0.00 | 0.00 | 1.000 | 11.000 |" in page
    assert page.count("not run yet") == 3
    assert transfer_tables.transfer_table(tmp_path / "nowhere").count("not run yet") == 4


def test_the_command_writes_what_it_shows(tmp_path, monkeypatch, capsys):
    """With a stand-in for the experiment; a missing folder is refused before anything is written."""
    folder = tmp_path / "data" / "cifar10"
    folder.mkdir(parents=True)
    pairs = [pair("a", "A", 0.9, 1.0), pair("b", "A", 0.8, 0.0)]
    asked = []

    def stand_in(setting, *, quick, told):
        asked.append(setting)
        common = {"experiment": "binary", "group": "features", "quick": quick}
        facts = {**common, "kind": "setting", "epoch_seconds": 2.0}
        return [facts, *({**common, **row} for own in (0, 1) for row in book.agreement_rows(pairs, own=bool(own)))]

    monkeypatch.setattr(running, "binary_experiment", stand_in)
    out = tmp_path / "out" / "transfer.jsonl"
    words = ["bench", "transfer", "--only", "binary", "--data", str(tmp_path / "data"), "--out", str(out), "--quick"]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert "one epoch of head training 2.00 s" in shown
    assert "cka" in shown
    assert asked[0].tasks == 5
    assert len(out.read_text().splitlines()) == len([json.loads(line) for line in out.read_text().splitlines()]) > 3
    for bad, says in ((["--only", "mnist"], "no folder"), (["--only", "nonsense"], "--only 'nonsense' is malformed")):
        assert (
            cli.main(["bench", "transfer", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "n"), *bad]) == 2
        )
        complaint = capsys.readouterr().err
        assert says in complaint
        assert complaint.count("\n") == 1
    assert not (tmp_path / "n").exists()
