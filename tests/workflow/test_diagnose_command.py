"""`modulewise inspect` and `train --inspect`: what is printed, drawn and written, and refusals in one line."""

import json
import re

import pytest
import torch

from modulewise.cli import main
from modulewise.compare import Folder
from modulewise.errors import ModulewiseError
from modulewise.report.inspection import Look, render_look, state_table
from modulewise.report.maps import MEASURES, part_maps, principal_components, t_sne, task_map
from modulewise.workflow import PartState, Record
from modulewise.workflow.inspection.pictured import FEATURES
from modulewise.workflow.inspection.recording import RECORDS, records
from modulewise.workflow.inspection.runs import inspected

TINY = ["--model", "mlp", "--parts", "2", "--epochs", "2", "--train-limit", "300", "--batch-size", "64"]
TRAIN = ["train", "--method", "dgl", *TINY]
INSPECT = ["inspect", "--no-projections"]


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "looked"
    assert main([*TRAIN, "--inspect", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "plain"
    assert main([*TRAIN, "--out", str(out)]) == 0
    return out


def test_a_run_trained_with_inspect_has_a_record_of_every_pass_and_a_page(looked, capsys):
    """Inspecting reads no data and writes the page alone; every part is in table, maps and projections."""
    before = (looked / RECORDS).read_bytes()
    assert [record.passes for record in records(looked)] == [0, 1, 2]
    assert main(["inspect", str(looked)]) == 0
    assert (looked / RECORDS).read_bytes() == before
    printed = capsys.readouterr().out
    assert "after 2 passes" in printed
    assert "linear probe" in printed
    page = (looked / "inspect.html").read_text()
    assert page.count("<svg") == 2
    assert "http" not in page
    assert "modulewise inspect" in page
    assert "no training sample was held out" not in page
    assert main([*TRAIN, "--inspect", "--out", str(looked)]) == 0  # it has ended: nothing is trained or looked at
    assert (looked / RECORDS).read_bytes() == before
    capsys.readouterr()


def test_a_run_without_records_is_looked_at_from_its_checkpoint(plain, looked, capsys):
    """One record, of its last step; samples that the limit left out are held out. A second time nothing is computed."""
    assert not (plain / RECORDS).exists()
    assert main([*INSPECT, str(plain)]) == 0
    (record,) = records(plain)
    assert (record.passes, record.held_out, record.samples) == (2, True, 512)
    assert record.states[1].probe > 0.5
    before = (plain / RECORDS).read_bytes()
    assert main([*INSPECT, str(plain)]) == 0
    assert (plain / RECORDS).read_bytes() == before
    capsys.readouterr()


def test_a_twin_is_trained_once_and_compared_with(plain, capsys):
    """CKA with the twin appears, and the twin is kept in a folder of its own."""
    assert main([*INSPECT, str(plain), "--twin"]) == 0
    last = records(plain)[-1]
    assert all(0 < state.cka_twin <= 1 + 1e-9 for state in last.states[1:])
    assert (plain / "twin" / "latest").exists()
    assert "CKA with the twin" in capsys.readouterr().out


def test_a_folder_whose_run_had_no_spare_samples_says_so(tmp_path, capsys):
    """All training samples are learned from: measured on some of them, and the page says it in red."""
    out = tmp_path / "all"
    assert main(["train", "--method", "dgl", "--model", "mlp", "--epochs", "1", "--out", str(out)]) == 0
    assert main([*INSPECT, str(out)]) == 0
    assert records(out)[0].held_out is False
    assert "no training sample was held out" in (out / "inspect.html").read_text()
    capsys.readouterr()


def test_a_comparison_is_shown_run_by_run(tmp_path, capsys):
    """Losses and probes of its history; --only chooses; its networks are not kept, so that a twin is refused."""
    out = tmp_path / "compared"
    assert main(["compare", "--methods", "dgl,backprop", *TINY, "--out", str(out)]) == 0
    capsys.readouterr()
    assert main([*INSPECT, str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("after 2 passes") == 2
    assert main([*INSPECT, str(out), "--only", "backprop"]) == 0
    assert "dgl@" not in capsys.readouterr().out
    assert not (out / "inspect").exists()
    for words, said in ((["--twin"], "networks are not kept"), (["--only", "zebra"], "no run in")):
        assert main([*INSPECT, str(out), *words]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_a_comparison_with_inspect_has_the_last_state_and_backpropagation_as_twin(tmp_path, capsys):
    """All measures of the last entry, of earlier ones loss and probe; the row before the others is what CKA is with."""
    out = tmp_path / "compared"
    assert main(["compare", "--methods", "backprop,dgl", *TINY, "--inspect", "--out", str(out)]) == 0
    backprop, dgl = inspected(Folder(out))
    assert [state.cka_twin for state in backprop.records[-1].states] == [None, None, None]
    assert all(0 < state.cka_twin <= 1 + 1e-9 for state in dgl.records[-1].states[1:])
    assert [len(record.states) for record in dgl.records] == [2, 2, 3]
    last, result = dgl.records[-1], Folder(out).results()[1]
    assert (last.step, last.samples, last.held_out) == (result.history[-1]["steps"], 37, True)
    assert last.states[1].objective == result.history[-1]["losses"]["0"]
    assert main(["inspect", str(out), "--only", "dgl"]) == 0
    assert (out / "inspect.html").read_text().count("<svg") == 2
    capsys.readouterr()


def test_what_cannot_be_inspected_is_refused_in_one_line(tmp_path, looked, capsys):
    """An empty folder, one without a run, damaged records or features, launch with inspect, another experiment."""
    (tmp_path / "other").mkdir()
    experiment = json.loads((looked / "experiment.json").read_text())
    (tmp_path / "untrained").mkdir()
    (tmp_path / "untrained" / "experiment.json").write_text(json.dumps(experiment))
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in looked.iterdir():
        if path.is_file() and path.suffix != ".html":
            (damaged / path.name).write_bytes(path.read_bytes())
    (damaged / "checkpoint").symlink_to(looked / "checkpoint")
    cases = [
        (["inspect", str(tmp_path / "none")], "holds no experiment"),
        (["inspect", str(tmp_path / "other")], "holds no experiment"),
        (["inspect", str(tmp_path / "untrained")], "train first"),
        ([*TRAIN, "--out", str(looked)], "another experiment"),
        ([*TRAIN, "--inspect", "--inspect-every", "0", "--out", str(tmp_path / "x")], "--inspect-every 0"),
        ([*TRAIN, "--twin", "--out", str(tmp_path / "x")], "--twin needs --inspect"),
        ([*TRAIN, "--inspect", "--launch", "2", "--out", str(tmp_path / "x")], "leave out --launch"),
    ]
    for words, said in cases:
        assert main(words) == 2, words
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    for name, said in ((FEATURES, "damaged"), (RECORDS, "line 1 cannot be read")):
        (damaged / name).write_bytes(b"{nothing\n")
        assert main(["inspect", str(damaged)]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert not (damaged / "inspect.html").exists()


def record(**more):
    states = (PartState(part=-1, name="input", probe=0.9), PartState(part=0, name="<a>", probe=0.5, **more))
    return Record(passes=1, part=None, step=3, losses={}, states=states, samples=1000)


def test_the_page_names_the_weak_part_and_escapes_its_name():
    """The finding, its numbers and its advice are on the page."""
    page = render_look([Look(title="run", records=[record()])], title="t", facts=["f"], command="c")
    assert re.search(r"part 0, &lt;a&gt;, loses information", page)
    assert "from 90.0 % of held-out labels" in page
    assert "InfoPro" in page
    with pytest.raises(ModulewiseError, match="no record"):
        render_look([Look(title="run", records=[])], title="t", facts=[], command="c")


def test_tables_and_maps_show_what_was_measured_and_nothing_else():
    """A column and a panel for every measure that was taken; empty cells for parts without it."""
    headings, cells = state_table(record(dead=0.25))
    assert headings == ["part", "ends at", "linear probe", "dead units"]
    assert cells == [["-", "input", "90.0 %", ""], ["0", "<a>", "50.0 %", "25.0 %"]]
    drawn = part_maps([record(), record(dead=0.25)])
    panels = {axis.get_title(loc="left") or axis.get_title(): axis for axis in drawn.axes if axis.collections}
    shown = {shown.title for shown in MEASURES if shown.title in panels}
    assert shown == {"linear probe", "dead units"}
    mesh = panels["dead units"].collections[0].get_array()
    assert mesh.shape == (2, 2)
    assert mesh[1, 1] == 0.25
    with pytest.raises(ModulewiseError, match="no record"):
        part_maps([])


def test_principal_components_are_those_of_scikit_learn_up_to_sign():
    """And a constant part, or one with a single feature, can be drawn as well."""
    from sklearn.decomposition import PCA

    h = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    ours, theirs = principal_components(h), torch.from_numpy(PCA(2).fit_transform(h.numpy()))
    assert torch.allclose(ours.abs(), theirs.float().abs(), atol=1e-5)
    assert torch.equal(principal_components(torch.ones(4, 3)), torch.zeros(4, 2))
    assert torch.equal(principal_components(torch.arange(4.0)[:, None])[:, 1], torch.zeros(4))
    assert torch.equal(t_sne(torch.ones(9, 3)), torch.zeros(9, 2))
    assert torch.isfinite(t_sne(torch.randn(12, 1, generator=torch.Generator().manual_seed(0)))).all()


def test_t_sne_keeps_neighbours_together():
    """Two clusters far apart: the nearest point in the picture is of the same one; deterministic."""
    h = torch.randn(24, 6, generator=torch.Generator().manual_seed(0)) + 20 * (torch.arange(24) % 2)[:, None]
    points = t_sne(h)
    distances = torch.cdist(points, points).fill_diagonal_(torch.inf)
    assert torch.equal(distances.argmin(1) % 2, torch.arange(24) % 2)
    assert torch.equal(points, t_sne(h))


def test_the_task_map_frames_the_best_part_of_every_task():
    """Rows are reordered with their names; a missing score is an empty cell; wrong sizes are refused."""
    scores = torch.tensor([[0.1, 0.9], [0.8, float("nan")], [0.2, 0.3]])
    axis = task_map(scores, parts=["a", "b", "c"], tasks=["x", "y"]).axes[0]
    names = [label.get_text() for label in axis.get_yticklabels()]
    drawn = axis.collections[0].get_array()
    assert sorted(names) == ["a", "b", "c"]
    for row, name in enumerate(names):
        assert drawn[row, 0] == pytest.approx(float(scores["abc".index(name), 0]))
    frames = {(patch.get_x(), names[int(patch.get_y())]) for patch in axis.patches}
    assert frames == {(0, "b"), (1, "a")}
    with pytest.raises(ModulewiseError, match="one score for each pair"):
        task_map(scores, parts=["a"], tasks=["x", "y"])
