"""The report: one page that needs nothing outside itself and shows what it promises."""

from dataclasses import replace
from html.parser import HTMLParser

import pytest

from modulewise.compare import Experiment, Folder, Result, run, summarise
from modulewise.errors import ModulewiseError
from modulewise.report import command_line, figures, render, write

EXPERIMENT = Experiment(
    methods=("backprop", "dgl", "dgl@sequential"),
    model="mlp",
    parts=(2, 3),
    seeds=(0, 1),
    epochs=2,
    batch_size=32,
    train_limit=100,
)
VOID = {"meta", "br", "wbr", "hr", "img", "link", "input"}


@pytest.fixture(scope="module")
def results():
    return run(EXPERIMENT)


@pytest.fixture(scope="module")
def page(results):
    return render(results, EXPERIMENT)


class Wellformed(HTMLParser):
    """Notes every element and attribute, and that elements are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.ids = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(page):
    parser = Wellformed()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def test_the_page_refers_to_nothing_outside_itself(page):
    found = parsed(page)
    assert "http" not in page
    assert "@import" not in page
    assert not {"script", "link", "iframe", "img", "object"} & set(found.tags)
    links = [value for name, value in found.attributes if name in ("href", "xlink:href", "src")]
    assert links
    assert all(value.startswith("#") for value in links)


def test_every_reference_within_a_figure_has_its_target(page):
    found = parsed(page)
    ids = {value for name, value in found.attributes if name == "id"}
    assert {value[1:] for name, value in found.attributes if name in ("href", "xlink:href")} <= ids


def titles(page):
    return [value for name, value in parsed(page).attributes if name == "aria-label"]


def test_all_figures_are_there(page):
    assert titles(page) == [
        "Accuracy against cost",
        "Where the memory goes",
        "Linear probe on every part",
        "Angle to end-to-end backpropagation",
        "Loss of every part",
        "Error against the number of parts",
    ]


def test_error_against_parts_needs_several_and_probes_need_to_have_been_run(results):
    one = [replace(result, history=[{**e, "probe": None} for e in result.history]) for result in results[:1]]
    assert titles(render(one, EXPERIMENT)) == ["Accuracy against cost", "Where the memory goes", "Loss of every part"]


def test_results_of_a_version_that_counted_no_operations_and_measured_no_angles_make_a_page(results):
    old = []
    for result in results:
        facts = result.to_json()
        del facts["flops"]
        facts["history"] = [{key: e[key] for key in e if key != "alignment"} for e in facts["history"]]
        old.append(Result.from_json(facts))
    page = render(old, EXPERIMENT)
    assert "Angle to end-to-end backpropagation" not in titles(page)
    assert "operations of a step, GFLOP" not in page
    parsed(page)


def test_the_figure_of_angles_shows_what_was_measured(results):
    """A panel a row but end-to-end backpropagation's own, a line a part through the mean over seeds."""
    rows = summarise(results)
    made = figures.angles(rows)
    assert [axis.get_title() for axis in made.axes if axis.get_visible()] == [
        *("dgl, K = 2", "dgl@sequential, K = 2", "dgl, K = 3", "dgl@sequential, K = 3")
    ]
    row = next(row for row in rows if row.label == "dgl@simultaneous" and row.first.parts == 3)
    axis = made.axes[2]
    for part in range(3):
        expected = [
            sum(result.history[index]["alignment"]["angle"][part] for result in row.results) / 2 for index in range(3)
        ]
        assert list(axis.lines[part].get_ydata()) == pytest.approx(expected)
        assert list(axis.lines[part].get_xdata()) == [0, 2, 4]
    assert list(axis.lines[2].get_ydata()) == [0, 0, 0]
    assert all(20 < angle < 160 for part in range(2) for angle in axis.lines[part].get_ydata())
    assert figures.angles([row for row in rows if row.label == "backprop@simultaneous"]) is None


def test_table_command_and_versions_are_shown(page, results):
    assert page.count("<tbody>") == 1
    assert page.count("@sequential</span>") == 2
    assert command_line(EXPERIMENT) in page
    assert results[0].versions["torch"] in page
    assert "weakly modular" in page
    assert "audit ok" in page


def test_names_are_escaped(results):
    page = render([replace(results[0], method="<b>")], replace(EXPERIMENT, model="<script>alert(1)</script>"))
    assert "<script>" not in page
    assert "&lt;b&gt;" in page
    parsed(page)


def test_failed_runs_are_named_and_do_not_stop_the_page(results):
    failed = replace(results[0], test_accuracy=None, test_loss=None, error="the loss of part 0 is not finite")
    page = render([failed, *results[1:]], EXPERIMENT)
    assert "the loss of part 0 is not finite" in page
    assert 'class="bad"' in page
    parsed(render([failed], EXPERIMENT))


def test_the_same_results_give_the_same_page(page, results):
    assert render(results, EXPERIMENT) == page


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    folder = Folder(tmp_path)
    with pytest.raises(ModulewiseError, match="no experiment"):
        write(folder)
    folder.begin(EXPERIMENT)
    with pytest.raises(ModulewiseError, match="no finished run"):
        write(folder)
    assert not (tmp_path / "report.html").exists()
