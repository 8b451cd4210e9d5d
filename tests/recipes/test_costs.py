"""Costs beside accuracy: ratios to the end-to-end row, and the survey's table of them."""

from dataclasses import replace

import pytest
from digits_recipe import TEXT

from modulewise import recipes, registry
from modulewise.compare import Result
from modulewise.method import Family
from modulewise.recipes import survey
from modulewise.recipes.costs import Cost, relative
from modulewise.recipes.records import Record, fingerprint, setting
from modulewise.recipes.summary import DETAIL, cost, detail, rows_table
from modulewise.recipes.survey import SURVEY, survey_rows


def record(recipe, row, *, seed=0, quick=False, figure=3.0, device="cpu", **changes):
    """A record as a run would write it."""
    experiment = row.chosen(quick=quick)
    key = setting(recipe, row, experiment=experiment, quick=quick, device=device)
    facts = {
        "method": row.method,
        "role": "method",
        "seed": seed,
        "quick": quick,
        "epochs": experiment.epochs,
        "paper_epochs": None,
        "short": False,
        "device": device,
        "threads": 1,
        "test_accuracy": 0.5,
        "probe_accuracy": None,
        "neighbours_accuracy": None,
        "figure": figure,
        "published": None,
        "error": None,
        "parts": 2,
        "seconds": 1.0,
        "peak_memory_bytes": 1_000,
        "step_seconds": 0.01,
        "versions": {},
        "git": None,
        "setting": key,
        "fingerprint": fingerprint(key, seed=seed),
        "flops": 1_000,
        "batch_size": 64,
        "params": 200,
        "head_params": 0,
        "angles": None,
    }
    return Record(**recipe.facts(), **(facts | changes))


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(TEXT)
    return recipes.read(path)


@pytest.fixture
def runs(recipe):
    """Two seeds of the method, whose step costs more, and two of E2EBP."""
    theirs, mine = recipe.rows
    costs = {"flops": 1_500, "peak_memory_bytes": 400, "head_params": 25}
    return [
        record(recipe, theirs, figure=2.0),
        record(recipe, theirs, seed=1, figure=2.5),
        record(recipe, mine, figure=3.0, step_seconds=0.02, angles=[60.0, None, 0.0], **costs),
        record(recipe, mine, seed=1, figure=4.0, step_seconds=0.04, angles=[70.0, None, 0.0], **costs),
    ]


class TestRatios:
    def test_they_are_to_the_end_to_end_row_and_its_own_are_one(self, recipe, runs):
        theirs, mine = recipe.rows
        assert cost(recipe, mine, runs) == Cost(
            flops=1.5, seconds=0.03 / 0.01, memory=0.4, auxiliary=0.125, angles=(65.0, None, 0.0)
        )
        own = cost(recipe, theirs, runs)
        assert (own.flops, own.seconds, own.memory, own.auxiliary, own.angles) == (1.0, 1.0, 1.0, 0.0, None)

    def test_time_and_operations_are_by_the_sample_and_memory_is_not(self, recipe):
        theirs, mine = recipe.rows
        whole = record(recipe, mine, flops=8_000, batch_size=512, step_seconds=0.04, peak_memory_bytes=3_000)
        found = relative([whole], [record(recipe, theirs)])
        assert (found.flops, found.seconds, found.memory) == (1.0, 0.5, 3.0)

    def test_nothing_is_compared_across_devices_or_without_a_count(self, recipe):
        theirs, mine = recipe.rows
        end_to_end = record(recipe, theirs)
        far = relative([record(recipe, mine, device="cuda", head_params=50)], [end_to_end])
        assert far == Cost(auxiliary=0.25)
        assert relative([record(recipe, mine, head_params=50)], []) == Cost(auxiliary=0.25)
        assert relative([], [end_to_end]) == Cost()
        uncounted = relative([record(recipe, mine, flops=None)], [end_to_end])
        assert (uncounted.flops, uncounted.seconds, uncounted.texts()) == (None, 1.0, ("-", "1.00", "1.00"))
        assert relative([record(recipe, mine)], [record(recipe, theirs, flops=None)]).flops is None

    def test_quick_runs_are_compared_with_quick_ones_alone(self, recipe):
        theirs, mine = recipe.rows
        quick = [record(recipe, row, quick=True, flops=flops) for row, flops in ((theirs, 10), (mine, 30))]
        assert cost(recipe, mine, quick).flops == 3.0
        full = record(recipe, mine, flops=5_000)
        assert cost(recipe, mine, [*quick, full]).flops is None
        assert cost(recipe, mine, [*quick, record(recipe, theirs)]).flops is None
        assert cost(recipe, mine, [*quick, full, record(recipe, theirs)]).flops == 5.0

    def test_records_of_an_earlier_version_are_read_and_leave_dashes(self, recipe):
        theirs, mine = recipe.rows
        later = ("flops", "batch_size", "params", "head_params", "angles")
        old = []
        for row, seconds in ((theirs, 0.01), (mine, 0.02)):
            facts = record(recipe, row, step_seconds=seconds).to_json()
            old.append(Record.from_json({key: value for key, value in facts.items() if key not in later}))
        assert cost(recipe, mine, old) == Cost(seconds=2.0, memory=1.0)
        assert rows_table([recipe], old)[1][8:] == ("-", "2.00", "1.00")
        assert relative(old[1:], old[:1], same_batches=False) == Cost(memory=1.0)
        new = [record(recipe, row, step_seconds=seconds) for row, seconds in ((theirs, 0.01), (mine, 0.02))]
        assert relative(new[1:], new[:1], same_batches=False).seconds == 2.0


class TestTables:
    @pytest.fixture(autouse=True)
    def _locks(self, request, monkeypatch):
        """Reading locks off a step of every method would take most of the time; one test does it."""
        if "every_method_once" not in request.node.name:
            monkeypatch.setattr(survey, "unlocking", lambda method: None)

    def test_rows_have_their_costs(self, recipe, runs):
        first, second = rows_table([recipe], runs)
        assert (first[8:], second[8:]) == (("1.00", "1.00", "1.00"), ("1.50", "3.00", "0.40"))
        assert [row[8:] for row in rows_table([recipe], [])] == [("-", "-", "-")] * 2
        shown = dict(zip(DETAIL, detail(recipe, runs)[1], strict=True))
        assert (shown["peak memory"], shown["step time"]) == ("400 B (0.40x)", "20 ms (3.00x)")
        assert shown["FLOPs"] == "1.5 KFLOP (1.50x)"

    def test_the_survey_has_every_method_once_and_says_what_has_not_run(self):
        lines = survey_rows([], [])
        assert all(len(line) == len(SURVEY) for line in lines)
        families = [family for family in Family if family is not Family.REFERENCE]
        heads = [line for line in lines if line[0].startswith("**")]
        assert [head[0].split("**")[1] for head in heads] == [family.value for family in families]
        names = [line[0].strip("`") for line in lines if line not in heads]
        assert names == [name for name, method in registry.known().items() if method.family in families]
        assert {line[1] for line in lines if line not in heads} == {"not run yet"}
        assert all(cell == "-" for line in lines if line not in heads for cell in line[2:9])
        assert all(cell == "-" for head in heads for cell in head[3:9])
        unlocked = {line[0]: line[11] for line in lines}
        assert (unlocked["`dgl`"], unlocked["`bcd`"]) == ("forward, backward, update", "-")

    def test_the_survey_has_the_figures_of_the_records_and_the_range_of_the_family(self, recipe, runs):
        """Error 3 and 4 beside 2 and 2.5 is accuracy 96.5 beside 97.75: 1.25 less, seed by seed."""
        lines = {line[0]: dict(zip(SURVEY, line, strict=True)) for line in survey_rows([recipe], runs)}
        dgl = lines["`dgl`"]
        assert (dgl["accuracy, %"], dgl["E2EBP, %"], dgl["difference"]) == ("96.50 ± 0.71", "97.75 ± 0.35", "-1.25")
        assert (dgl["FLOPs / E2EBP"], dgl["step time / E2EBP"], dgl["peak memory / E2EBP"]) == ("1.50", "3.00", "0.40")
        assert (dgl["auxiliary parameters, %"], dgl["angle, degrees"], dgl["recipe"]) == ("12.5", "65", "`mine`")
        assert (dgl["locality"], dgl["unlocked"]) == ("strict", "-")
        (head,) = (line for name, line in lines.items() if name.startswith("**proxy"))
        assert head["method"].endswith(f"1 of {sum(m.family is Family.PROXY for m in registry.known().values())} run")
        assert (head["difference"], head["FLOPs / E2EBP"], head["angle, degrees"]) == (
            "**-1.25**",
            "**1.50**",
            "**65**",
        )

    def test_a_range_is_over_the_methods_of_the_family(self, recipe, runs, tmp_path):
        path = tmp_path / "other.toml"
        path.write_text(TEXT.replace('proves = "dgl"', 'proves = "predsim"').replace("dgl:head=linear", "predsim"))
        other = recipes.read(path)
        more = [record(other, other.rows[0]), record(other, other.rows[1], figure=2.0, flops=4_000)]
        lines = {line[0]: dict(zip(SURVEY, line, strict=True)) for line in survey_rows([recipe, other], [*runs, *more])}
        (head,) = (line for name, line in lines.items() if name.startswith("**proxy"))
        assert (head["difference"], head["FLOPs / E2EBP"]) == ("**-1.25 to +1.00**", "**1.50 to 4.00**")
        assert lines["`predsim`"]["difference"] == "+1.00"

    def test_quick_and_failed_runs_do_not_enter_the_survey(self, recipe, runs):
        quick = [replace(run, quick=True, setting="another") for run in runs]
        failed = [*runs[:2], record(recipe, recipe.rows[1], figure=None)]
        for records in (quick, failed):
            line = next(line for line in survey_rows([recipe], records) if line[0] == "`dgl`")
            assert line[1:4] == ("not run yet", "-", "-")
        alone = next(line for line in survey_rows([recipe], runs[2:]) if line[0] == "`dgl`")
        assert alone[1:5] == ("96.50 ± 0.71", "not run yet", "-", "-")


def test_a_run_writes_its_costs_down(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("gc.collect", lambda *_: 0)
    theirs, mine = recipes.run(recipe, recipes.Orders(out=tmp_path / "r.jsonl", quick=True, seeds=(0,), threads=1))
    sizes, n = [64 * 256, 256 * 256, 256 * 256, 256 * 10], 2 * 64
    assert theirs.flops == n * (2 * sum(sizes) + sum(sizes[1:]))
    assert mine.flops == n * (2 * sum(sizes) + sizes[1] + sizes[3] + 3 * 2560)  # cut at fc2, a linear head 256-10 there
    assert (theirs.batch_size, mine.batch_size) == (64, 64)
    assert theirs.params == mine.params == sum(sizes) + 3 * 256 + 10
    assert (theirs.head_params, mine.head_params) == (0, 2570)
    assert theirs.angles is None
    assert (len(mine.angles), mine.angles[1]) == (2, 0.0)
    found = cost(recipe, recipe.rows[1], [theirs, mine])
    assert found.flops == pytest.approx(mine.flops / theirs.flops)
    assert isinstance(mine, Record)
    assert Result.__dataclass_fields__["flops"].default is None
