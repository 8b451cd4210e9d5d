"""Recipes: what files may say, that the shipped ones hold together, and that runs are resumed, told apart and summed up
as they should."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from digits_recipe import TEXT

from modulewise import models, recipes, registry
from modulewise.compare import Experiment, RateSchedule
from modulewise.errors import DataError, ModulewiseError
from modulewise.partition import Partition
from modulewise.recipes import records, running
from modulewise.recipes.places import ENVIRONMENT, FOLDERS, data_place
from modulewise.recipes.recipe import Evaluation, Machine, Measure, with_epochs
from modulewise.recipes.records import Book, Record, fingerprint, setting
from modulewise.recipes.summary import NOT_RUN, UNPROVEN, detail, listing, method_columns, reached

SHIPPED = recipes.names()


@pytest.fixture
def write(tmp_path):
    """Write a recipe with replacements, each of which must find its text."""

    def make(*changes, name="mine"):
        text = TEXT
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        return path

    return make


def record(recipe, row, *, seed=0, quick=False, figure=3.0, device="cpu", epochs=None, **changes):
    """A record as a run would write it."""
    experiment = row.chosen(quick=quick, epochs=epochs)
    key = setting(recipe, row, experiment=experiment, quick=quick, device=device)
    facts = {
        "method": row.method,
        "role": "method",
        "seed": seed,
        "quick": quick,
        "epochs": experiment.epochs,
        "paper_epochs": row.paper_epochs,
        "short": False,
        "device": device,
        "threads": 1,
        "test_accuracy": None if figure is None else 1 - figure / 100,
        "probe_accuracy": None,
        "neighbours_accuracy": None,
        "figure": figure,
        "published": row.published,
        "error": None,
        "parts": 2,
        "seconds": 1.0,
        "peak_memory_bytes": 1_000_000,
        "step_seconds": 0.01,
        "versions": {},
        "git": None,
        "setting": key,
        "fingerprint": fingerprint(key, seed=seed),
    }
    return Record(**recipe.facts(), **(facts | changes))


class TestReading:
    def test_a_file_becomes_rows_with_what_they_share_and_what_they_have_of_their_own(self, write):
        recipe = recipes.read(write())
        first, second = recipe.rows
        assert (recipe.name, recipe.proves, recipe.measure, recipe.device) == (
            "mine",
            ("dgl",),
            Measure.ERROR,
            Machine.CPU,
        )
        assert (first.end_to_end, second.end_to_end, recipe.headline is second) == (True, False, True)
        assert recipe.neighbour(second) is first
        assert recipe.neighbour(first) is None
        assert (first.published, first.source, first.paper_epochs) == (2.5, "table 1", 10)
        expected = Experiment(
            methods=("dgl:head=linear",),
            model="mlp",
            cuts=("fc2",),
            seeds=(0, 1),
            epochs=4,
            batch_size=64,
            lr=0.1,
            schedule_lr=RateSchedule.STEPS,
            milestones=(2,),
            decay=0.5,
            probe=False,
        )
        assert second.experiment == expected
        quick = replace(
            expected, epochs=1, train_limit=100, test_limit=40, schedule_lr=RateSchedule.CONSTANT, milestones=()
        )
        assert second.quick == quick

    @pytest.mark.parametrize(
        ("old", "new", "complaint"),
        [
            ('title = "Digits', 'titel = "Digits', "mine.toml, titel: unknown; did you mean 'title'"),
            ('link = "https://arxiv.org/abs/0000.00000"\n', "", "mine.toml, link: missing"),
            ('proves = "dgl"', 'proves = "dlg"', "mine.toml, proves: there is no method 'dlg'"),
            (
                'proves = "dgl"',
                'proves = ["dgl", "dlg"]',
                "mine.toml, proves: there is no method 'dlg'; did you mean 'dgl'",
            ),
            ('proves = "dgl"', 'proves = ["dgl", "predsim"]', "mine.toml, rows: expected a row of predsim with a"),
            ('proves = "dgl"', 'proves = ["dgl", "backprop"]', "mine.toml, rows: expected a row of backprop with a"),
            (
                'proves = "dgl"',
                "proves = []",
                "mine.toml, proves: expected a text or a list of different texts, [] was",
            ),
            ('proves = "dgl"', 'proves = ["dgl", "dgl"]', "mine.toml, proves: expected a text or a list of different"),
            ('proves = "dgl"', 'proves = ["dgl", 3]', "mine.toml, proves: expected a list of texts"),
            ("lr = 0.1", "feedback_lr = nan", "mine.toml, rows[1].experiment: lr=0.05, last_lr=None, feedback_lr=nan"),
            ("lr = 0.1", 'feedback_lr = "0.1"', "mine.toml, rows[1].experiment.feedback_lr: expected a number"),
            ('data = "digits"', 'data = "digit"', "mine.toml, data: expected one of digits, mnist"),
            ('measure = "error"', 'measure = "loss"', "mine.toml, measure: expected one of accuracy, error"),
            ('device = "cpu"', 'device = "tpu"', "mine.toml, device: expected one of cpu, cuda"),
            ("minutes = 0.1", "minutes = 0", "mine.toml, minutes: expected a number above 0"),
            ("minutes = 0.1", "minutes = true", "mine.toml, minutes: expected a number"),
            ("paper_epochs = 10", 'paper_epochs = "ten"', "mine.toml, paper_epochs: expected a whole number"),
            ("seeds = [0, 1]", "seeds = []", "mine.toml, seeds: expected a list of whole numbers"),
            ('["It is small."]', '"It is small."', "mine.toml, departures: expected a list of texts"),
            (
                'model = "mlp"',
                'model = "mpl"',
                "mine.toml, experiment.model: there is no model 'mpl'; did you mean 'mlp'",
            ),
            ('cuts = ["fc2"]', 'cuts = "fc2"', "mine.toml, experiment.cuts: expected a list of texts"),
            ('cuts = ["fc2"]', "cuts = [2]", "mine.toml, experiment.cuts: expected a list of texts"),
            ("batch_size = 64", "batch_size = 0", "mine.toml, experiment.batch_size: expected a whole number"),
            ("batch_size = 64", "batches = 64", "mine.toml, experiment.batches: unknown; did you mean 'batch_size'"),
            ("batch_size = 64", "seeds = [1]", "mine.toml, experiment.seeds: unknown"),
            ("batch_size = 64", 'optimizer = "sdg"', "mine.toml, experiment.optimizer: expected one of sgd"),
            ("batch_size = 64", "normalize = 1", "mine.toml, experiment.normalize: expected true or false"),
            ("batch_size = 64", 'precision = "float8"', "mine.toml, experiment.precision: expected one of float32"),
            ("milestones = [2]", "milestones = [4]", "mine.toml, rows[0].experiment: milestones=[4] with epochs=4"),
            ("decay = 0.5", "decay = 1", "mine.toml, rows[0].experiment: decay=1.0"),
            ('cuts = ["fc2"]', "parts = [2, 3]", "mine.toml, rows[0].experiment: parts=[2, 3], expected one"),
            ("epochs = 1\n", "epochs = 9\n", "mine.toml, quick.epochs: expected at most the 4 of the full run"),
            ("train_limit = 100\n", "", "mine.toml, quick.train_limit: expected together with epochs"),
            ('method = "backprop"', 'method = "backporp"', "mine.toml, rows[0].method: unknown method 'backporp'"),
            ("dgl:head=linear", "dgl:heads=linear", "mine.toml, rows[1].method: dgl has no option 'heads'"),
            ("dgl:head=linear", "dgl@sideways", "mine.toml, rows[1].method: unknown schedule 'sideways'"),
            ("dgl:head=linear", "deeply-supervised", "mine.toml, rows[1].method: deeply-supervised stands for several"),
            ("dgl:head=linear", "backprop", "mine.toml, rows: expected every method once"),
            (
                'neighbour = "backprop"',
                'neighbour = "checkpointed"',
                "mine.toml, rows[1].neighbour: expected the method",
            ),
            ('neighbour = "backprop"\n', "", "mine.toml, rows[1].neighbour: missing: dgl:head=linear needs"),
            ("dgl:head=linear", "predsim", "mine.toml, rows: expected a row of dgl with a neighbour"),
            ('published = 1.5\nsource = "table 1"', "published = 1.5", "mine.toml, rows[1].published: expected with"),
            ("lr = 0.1", "epochs = 5", "mine.toml, rows[1].experiment.epochs: 5 is not the budget of backprop, 4"),
            ("[quick]", "[quick", "mine.toml: no TOML"),
        ],
    )
    def test_a_wrong_key_is_one_line_with_the_file_and_the_key(self, write, old, new, complaint):
        with pytest.raises(ModulewiseError) as caught:
            recipes.read(write((old, new)))
        assert complaint in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_another_budget_is_allowed_with_its_reason(self, write):
        row = recipes.read(
            write(("lr = 0.1", "epochs = 5"), ('neighbour = "backprop"', 'neighbour = "backprop"\ndeparture = "So."'))
        ).headline
        assert (row.experiment.epochs, row.departure) == (5, "So.")

    def test_a_file_or_recipe_that_is_not_there_is_said(self, tmp_path):
        with pytest.raises(ModulewiseError, match=r"none\.toml: No such file"):
            recipes.read(tmp_path / "none.toml")
        with pytest.raises(ModulewiseError, match="did you mean 'predsim-mlp-mnist'"):
            recipes.load("predsim-mpl-mnist")

    def test_milestones_keep_their_share_of_other_epochs(self):
        long = Experiment(methods=("dgl",), epochs=400, schedule_lr=RateSchedule.STEPS, milestones=(200, 300, 350, 375))
        assert with_epochs(long, 40).milestones == (20, 30, 35, 38)
        assert with_epochs(long, 4).milestones == (2, 3)  # 3.5 and 3.75 fall on the end
        assert with_epochs(long, 1).schedule_lr is RateSchedule.CONSTANT
        assert with_epochs(replace(long, schedule_lr=RateSchedule.COSINE, milestones=()), 4).milestones == ()


@pytest.mark.parametrize("name", SHIPPED)
class TestShipped:
    def test_it_loads_and_says_where_figures_come_from(self, name):
        recipe = recipes.load(name)
        assert recipe.link.startswith("https://")
        assert set(recipe.proves) <= set(registry.known())
        for row in recipe.rows:
            assert (row.published is None) == (row.source is None)
            assert row.quick.epochs <= 4  # of a full batch, whose one step is an epoch
            assert row.quick.train_limit <= 4096

    def test_every_row_has_the_budget_of_its_end_to_end_row(self, name):
        recipe = recipes.load(name)
        for row in recipe.rows:
            other = recipe.neighbour(row)
            if other is not None:
                assert row.experiment.epochs == other.experiment.epochs or row.departure
                assert row.experiment.batch_size == other.experiment.batch_size
                assert row.experiment.augment == other.experiment.augment
                assert row.paper_epochs == other.paper_epochs

    def test_fewer_epochs_than_the_papers_are_said_in_the_departures(self, name):
        recipe = recipes.load(name)
        if any(row.paper_epochs and row.experiment.epochs < row.paper_epochs for row in recipe.rows):
            assert any("epochs" in sentence for sentence in recipe.departures)

    def test_its_methods_can_be_made(self, name):
        for row in recipes.load(name).rows:
            assert registry.build(row.configuration.method, classes=10) is not None


def cheap(name):
    """Networks and cuts of a recipe, each once, on images of half the size or less."""
    recipe = recipes.load(name)
    shape = (1 if recipe.data == "mnist" else 3, 16, 16)
    return {(row.experiment.model, row.experiment.cuts, shape) for row in recipe.rows if row.experiment.cuts}


@pytest.mark.parametrize(
    ("model", "cuts", "shape"), sorted(set().union(*(cheap(name) for name in SHIPPED if "resnet110" not in name)))
)
def test_the_cuts_of_shipped_recipes_exist(model, cuts, shape):
    if "resnet18" in model:
        pytest.importorskip("torchvision")
    network = models.build(model, shape=shape, classes=10)
    assert Partition(network, cuts=list(cuts), example=torch.zeros(2, *shape)).cuts == cuts


@pytest.mark.parametrize("name", [name for name in SHIPPED if "resnet110" in name])
def test_the_cuts_of_resnet110_are_blocks_of_it_in_order(name):
    order = ["stem", *(f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(18))]
    network = dict(models.build("resnet110", shape=(3, 32, 32), classes=10).named_modules())
    for row in recipes.load(name).rows:
        cuts = list(row.experiment.cuts)
        assert all(cut in network for cut in cuts)
        assert cuts == sorted(cuts, key=order.index)
        assert len(cuts) == (0 if row.end_to_end else int(name.rpartition("-k")[2]) - 1)


class TestRunning:
    @pytest.fixture(autouse=True)
    def _no_collection(self, monkeypatch):
        """Collecting garbage before memory is measured would take most of the time."""
        monkeypatch.setattr("gc.collect", lambda *_: 0)

    @pytest.fixture
    def counted(self, monkeypatch):
        """Every experiment that is really run."""
        made = []
        original = running.compare.run

        def run(experiment, *, watchers):
            made.append(experiment)
            return original(experiment, watchers=watchers)

        monkeypatch.setattr(running.compare, "run", run)
        return made

    def test_it_is_run_once_written_down_and_resumed_without_training(self, write, tmp_path, counted):
        recipe, out = recipes.read(write()), tmp_path / "r" / "recipes.jsonl"
        orders = recipes.Orders(out=out, threads=1)
        first = recipes.run(recipe, orders)
        assert [(record.method, record.seed) for record in first] == [
            (row.method, seed) for seed in (0, 1) for row in recipe.rows
        ]
        assert len(counted) == 4
        assert recipes.run(recipe, orders) == first
        assert len(counted) == 4
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert len(lines) == 4
        for line in lines:
            assert (line["recipe"], line["quick"], line["epochs"], line["short"]) == ("mine", False, 4, True)
            assert line["figure"] == pytest.approx(100 * (1 - line["test_accuracy"]))
            assert (line["device"], line["threads"], line["error"]) == ("cpu", 1, None)
            assert line["seconds"] > 0
            assert line["peak_memory_bytes"] > 0
            assert line["versions"]["torch"] == torch.__version__
        assert [line["role"] for line in lines[:2]] == ["end-to-end", "method"]
        assert [line["published"] for line in lines[:2]] == [2.5, 1.5]

    def test_what_an_interruption_left_is_gone_on_with(self, write, tmp_path, counted, monkeypatch):
        recipe, orders = recipes.read(write()), recipes.Orders(out=tmp_path / "r.jsonl", quick=True, seeds=(0,))
        whole = recipes.run(recipe, orders)
        lines = orders.out.read_bytes().splitlines(keepends=True)
        orders.out.write_bytes(lines[0] + lines[1][:50])
        counted.clear()
        again = recipes.run(recipe, orders)
        assert [experiment.methods for experiment in counted] == [("dgl:head=linear",)]
        assert [record.figure for record in again] == [record.figure for record in whole]
        assert len(orders.out.read_text().splitlines()) == 2

    def test_quick_and_full_runs_and_other_epochs_never_count_for_each_other(self, write, tmp_path, counted):
        recipe, orders = recipes.read(write()), recipes.Orders(out=tmp_path / "r.jsonl", seeds=(0,))
        recipes.run(recipe, replace(orders, quick=True))
        recipes.run(recipe, replace(orders, epochs=1))
        row, records = recipe.headline, Book(orders.out).records()
        assert len(counted) == 4
        assert [experiment.train_limit for experiment in counted] == [100, 100, None, None]
        found = reached(recipe, row, records)
        assert found.full == ()
        assert [record.quick for record in found.quick] == [True]
        recipes.run(recipe, orders)
        found = reached(recipe, row, Book(orders.out).records())
        assert [(record.quick, record.epochs) for record in found.full] == [(False, 4)]
        assert len({record.fingerprint for record in Book(orders.out).records()}) == 6

    def test_a_row_that_another_recipe_has_run_is_taken_from_it(self, write, tmp_path, counted):
        orders = recipes.Orders(out=tmp_path / "r.jsonl", quick=True, seeds=(0,))
        recipes.run(recipes.read(write()), orders)
        other = recipes.read(write(("lr = 0.1", "lr = 0.2"), ('"error"', '"accuracy"'), name="other"))
        first, second = recipes.run(other, orders)
        assert len(counted) == 3
        assert (first.recipe, first.shared, second.shared) == ("other", "mine", None)
        assert first.figure == pytest.approx(100 * first.test_accuracy)

    def test_the_place_of_the_data_threads_and_the_index_of_the_gpu_are_no_part_of_a_setting(self, write):
        recipe = recipes.read(write())
        row = recipe.headline
        moved = replace(row.experiment, data="elsewhere/digits", threads=7, device="cuda:1", seeds=(5,))

        def key(experiment, device="cpu", quick=False):
            return setting(recipe, row, experiment=experiment, quick=quick, device=device)

        assert key(moved) == key(row.experiment)
        assert key(moved, "cuda:1") == key(moved, "cuda") != key(moved)
        assert key(row.experiment, quick=True) != key(row.experiment)
        assert key(replace(row.experiment, lr=0.2)) != key(row.experiment)

    def test_a_probe_is_scored_on_hidden_features_beside_the_classifier(self, write, tmp_path):
        recipe = recipes.read(write(("minutes = 0.1", 'minutes = 0.1\nevaluation = "probe"')))
        assert all(row.evaluation is Evaluation.PROBE for row in recipe.rows)
        orders = recipes.Orders(out=tmp_path / "r.jsonl", quick=True, seeds=(0,))
        for found in recipes.run(recipe, orders):
            assert found.figure == pytest.approx(100 * (1 - found.probe_accuracy))
            assert 0 < found.neighbours_accuracy <= 1
            assert found.probe_accuracy != found.test_accuracy
        assert "linear probe" in detail(recipe, Book(orders.out).records())[0][-1]

    def test_a_run_that_diverges_is_written_down_as_failed(self, write, tmp_path):
        recipe = recipes.read(write(("lr = 0.1", "lr = 1e30"), ("train_limit = 100", "train_limit = 200")))
        orders = recipes.Orders(out=tmp_path / "r.jsonl", quick=True, seeds=(0,))
        found = recipes.run(recipe, orders)[1]
        assert found.figure is None
        assert "not finite" in found.error
        assert reached(recipe, recipe.headline, Book(orders.out).records()).text() == "quick: failed"

    def test_all_runs_the_quickest_of_the_cpu_first_and_stops_at_its_hour(self, write, tmp_path, counted):
        slow = recipes.read(write(("minutes = 0.1", "minutes = 5"), ("lr = 0.1", "lr = 0.3"), name="slow"))
        far = recipes.read(write(('device = "cpu"', 'device = "cuda"'), name="far"))
        fast = recipes.read(write(name="fast"))
        orders, told = recipes.Orders(out=tmp_path / "r.jsonl", epochs=1, seeds=(0,)), []
        now = iter([0.0, *[1.0] * 4, *[7200.0] * 20])
        recipes.run_all([far, slow, fast], orders, hours=1, told=told.append, clock=lambda: next(now))
        assert [recipe.name for recipe in told] == ["fast", "slow"]
        assert len(counted) == 3  # of slow the first row is shared with fast, and the second is not started
        if not torch.cuda.is_available():
            left_out = recipes.run_all([far, slow, fast], orders)
            assert left_out == [(far, "no GPU")]
            assert len(counted) == 3

    def test_all_leaves_out_what_has_no_data_here(self, write, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv(ENVIRONMENT, raising=False)
        recipe = recipes.read(write(('data = "digits"', 'data = "mnist"')))
        assert recipes.run_all([recipe], recipes.Orders(out=tmp_path / "r")) == [(recipe, "no data set mnist")]

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_a_recipe_for_a_gpu_is_refused_without_one_and_runs_quickly_on_the_cpu(self, write, tmp_path):
        recipe = recipes.read(write(('device = "cpu"', 'device = "cuda"')))
        orders = recipes.Orders(out=tmp_path / "r.jsonl", seeds=(0,))
        with pytest.raises(ModulewiseError, match="'cuda' was asked for"):
            recipes.run(recipe, orders)
        assert recipes.run(recipe, replace(orders, quick=True))[0].device == "cpu"

    @pytest.mark.parametrize("changes", [{"epochs": 0}, {"threads": 0}, {"seeds": ()}])
    def test_orders_out_of_range_are_refused(self, changes):
        with pytest.raises(ModulewiseError, match=rf"{next(iter(changes))}=.*expected"):
            recipes.Orders(**changes)
        with pytest.raises(ModulewiseError, match="hours=0"):
            recipes.run_all([], recipes.Orders(), hours=0)

    def test_a_damaged_line_is_named(self, tmp_path):
        (tmp_path / "r.jsonl").write_text("{}\n")
        with pytest.raises(ModulewiseError, match=r"r\.jsonl, line 1 is damaged"):
            Book(tmp_path / "r.jsonl").records()


class TestPlaces:
    def test_the_option_comes_before_the_environment_and_both_before_the_usual_places(self, tmp_path, monkeypatch):
        for folder in ("given", "environment", "here/data", "shared/data"):
            (tmp_path / folder / "mnist").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "here")
        monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "environment"))
        assert data_place("mnist", folder=tmp_path / "given") == str(tmp_path / "given" / "mnist")
        assert data_place("mnist") == str(tmp_path / "environment" / "mnist")
        monkeypatch.delenv(ENVIRONMENT)
        assert data_place("mnist") == str(Path("data") / "mnist")
        (tmp_path / "here" / "data" / "mnist").rmdir()
        assert data_place("mnist") == str(Path("..") / "shared" / "data" / "mnist")

    @pytest.mark.parametrize("name", FOLDERS)
    def test_missing_data_is_one_line_that_says_what_to_do(self, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv(ENVIRONMENT, raising=False)
        with pytest.raises(DataError) as caught:
            data_place(name)
        for word in (name, "--data DIR", ENVIRONMENT, "train.parquet"):
            assert word in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_folder_that_is_given_is_the_only_one_looked_in(self, tmp_path, monkeypatch):
        (tmp_path / "data" / "mnist").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError, match="not below elsewhere;"):
            data_place("mnist", folder="elsewhere")


class TestSummary:
    def test_figures_are_means_over_seeds_of_full_runs(self, write):
        recipe = recipes.read(write())
        mine, theirs = recipe.headline, recipe.rows[0]
        records = [
            record(recipe, mine, seed=0, figure=3.0),
            record(recipe, mine, seed=1, figure=4.0),
            record(recipe, mine, quick=True, figure=50.0),
            record(recipe, mine, device="cuda", figure=70.0),
            record(recipe, theirs, figure=2.0),
        ]
        assert reached(recipe, mine, records).text() == "3.50 ± 0.71"
        rows = {row[0]: row for row in detail(recipe, records)}
        assert rows["dgl:head=linear"][1:5] == ("1.50", "3.50 ± 0.71", "+1.00", "4, short of the paper's 10")
        assert rows["backprop"][1:4] == ("2.50", "2.00", "")
        (line,) = listing([recipe], records)
        assert line[5:] == ("2.50 / 1.50 % error", "2.00 / 3.50 ± 0.71", "4, short of the paper's 10")
        published, found = method_columns("dgl", [recipe], records)
        assert published == "1.50 (2.50) % error, `mine`"
        assert found == "3.50 ± 0.71 (2.00) % error; 4, short of the paper's 10 epochs"

    def test_a_recipe_of_a_family_has_a_line_and_a_proof_of_its_own_for_every_method_of_it(self, write):
        row = '[[rows]]\nmethod = "predsim:beta=0"\nneighbour = "backprop"\npublished = 9.5\nsource = "table 2"\n'
        recipe = recipes.read(
            write(('proves = "dgl"', 'proves = ["dgl", "predsim"]'), ("[[rows]]", f"{row}\n[[rows]]"))
        )
        assert recipe.headline is recipe.headline_of("dgl") is recipe.by_method["dgl:head=linear"]
        records = [record(recipe, recipe.headline_of("predsim"), figure=7.0)]
        lines = listing([recipe], records)
        assert [line[:2] + line[4:7] for line in lines] == [
            ("mine", "dgl", "0.1", "2.50 / 1.50 % error", NOT_RUN),
            ("mine", "predsim", "", "2.50 / 9.50 % error", "not run yet / 7.00"),
        ]
        assert method_columns("dgl", [recipe], records) == ("1.50 (2.50) % error, `mine`", UNPROVEN)
        assert method_columns("predsim", [recipe], records)[1].startswith("7.00 (not run yet) % error")

    def test_without_a_full_run_a_method_is_unproven_and_quick_runs_say_so(self, write):
        recipe = recipes.read(write())
        quick = [record(recipe, row, quick=True, figure=50.0) for row in recipe.rows]
        assert listing([recipe], quick)[0][6] == "quick: 50.00 / quick: 50.00"
        assert detail(recipe, quick)[1][2:5] == ("quick: 50.00", "", "1 (quick)")
        assert method_columns("dgl", [recipe], quick) == ("1.50 (2.50) % error, `mine`", UNPROVEN)
        assert listing([recipe], [])[0][6] == NOT_RUN
        assert method_columns("dgl", [recipe], []) == ("1.50 (2.50) % error, `mine`", UNPROVEN)
        assert method_columns("predsim", [recipe], []) == ("-", UNPROVEN)
        assert method_columns("backprop", [recipe], []) == ("reference", "reference")

    def test_a_failed_run_is_shown_and_proves_nothing(self, write):
        recipe = recipes.read(write())
        failed = [record(recipe, recipe.headline, figure=None, error="the loss is not finite")]
        assert reached(recipe, recipe.headline, failed).text() == "failed"
        assert detail(recipe, failed)[1][-1] == "the loss is not finite"
        assert method_columns("dgl", [recipe], failed)[1] == UNPROVEN
        some = [*failed, record(recipe, recipe.headline, seed=1, figure=3.0)]
        assert reached(recipe, recipe.headline, some).text() == "3.00 (1 failed)"

    def test_records_of_other_epochs_or_of_a_recipe_that_has_changed_since_do_not_count(self, write):
        recipe = recipes.read(write())
        old = [record(recipe, recipe.headline), record(recipe, recipe.headline, epochs=2, seed=1)]
        changed = recipes.read(write(("lr = 0.1", "lr = 0.2")))
        assert reached(changed, changed.headline, old).text() == NOT_RUN
        assert len(reached(recipe, recipe.headline, old).full) == 1

    def test_runs_on_the_other_device_stand_in_only_where_there_are_none(self, write):
        recipe = recipes.read(write())
        cuda = record(recipe, recipe.headline, device="cuda:1", figure=5.0)
        assert reached(recipe, recipe.headline, [cuda]).text() == "5.00"
        both = [cuda, record(recipe, recipe.headline, figure=3.0)]
        assert reached(recipe, recipe.headline, both).text() == "3.00"

    def test_of_several_recipes_the_proven_one_speaks_for_the_method(self, write):
        first, second = recipes.read(write(name="a")), recipes.read(write(name="b"))
        assert method_columns("dgl", [first, second], [])[0].endswith("`a`")
        records = [record(second, second.headline)]
        assert method_columns("dgl", [first, second], records)[1].startswith("3.00 (not run yet) %")


def test_a_field_that_experiments_gain_later_leaves_older_settings_theirs(write, monkeypatch):
    recipe = recipes.read(write())
    row = recipe.headline

    def key(experiment):
        return setting(recipe, row, experiment=experiment, quick=False, device="cpu")

    monkeypatch.setattr(records, "_ALWAYS", records._ALWAYS - {"recompute"})
    before = key(row.experiment)
    monkeypatch.setattr(
        Experiment, "to_json", lambda self, old=Experiment.to_json: old(self) | {"later": self.recompute}
    )
    assert key(row.experiment) == before
    assert key(replace(row.experiment, recompute=True)) != before
