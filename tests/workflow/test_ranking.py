"""Features of frozen parts, rankings of parts and of a store, static baselines, stitching, and `modulewise score`."""

import json
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional

import modulewise as mw
from modulewise import cli, data, scores
from modulewise.cli import scoring
from modulewise.errors import DataError
from modulewise.workflow import AveragePool, collect, rank, rank_store, score_part
from modulewise.workflow.ranking import ranking as ranking_module
from modulewise.workflow.ranking.baselines import parameter_count, source_accuracy
from modulewise.workflow.ranking.stitching import least_squares_stitch, stitching_loss
from modulewise.workflow.ranking.tasks import balanced


def batches(samples=40, shape=(3, 8, 8), classes=2, seed=0, size=16):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % classes
    x = torch.randn(samples, *shape, generator=generator) + y.view(-1, *(1,) * len(shape))
    return list(zip(x.split(size), y.split(size), strict=True))


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))


def test_features_are_those_of_one_pass_in_eval_mode():
    """Flattened and in order; dropout draws nothing, statistics do not move, and every mode is back."""
    part, loader = small(), batches()
    part[1].eval()
    modes = [module.training for module in part.modules()]
    state = {key: value.clone() for key, value in part.state_dict().items()}
    before = torch.get_rng_state()
    x, y = collect(part, loader)
    assert torch.equal(before, torch.get_rng_state())
    assert [module.training for module in part.modules()] == modes
    assert all(torch.equal(value, part.state_dict()[key]) for key, value in state.items())
    whole = torch.cat([a for a, _ in loader])
    with torch.no_grad():
        expected = functional.relu(part[1].eval()(part[0](whole)))
    assert torch.allclose(x, expected.flatten(1), atol=1e-6)
    assert torch.equal(y, torch.cat([b for _, b in loader]))
    assert not x.requires_grad


def test_the_modes_are_back_after_an_error():
    part = small()
    with pytest.raises(DataError, match=r"does not take batches \(4, 7\)"):
        collect(part, [(torch.zeros(4, 7), torch.zeros(4).long())])
    assert part.training


def test_a_part_of_a_partition_is_taken_as_it_is():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2))
    partition = mw.Partition(model, cuts=["2"], example=torch.randn(8, 3))
    loader = batches(shape=(3,))
    x, _ = collect(partition.part(0), loader)
    with torch.no_grad():
        expected = functional.relu(model[0](torch.cat([a for a, _ in loader])))
    assert torch.allclose(x, expected)
    assert model.training
    assert model[2].training


@pytest.mark.parametrize("size", [1, 2])
def test_pooling_averages_positions(size):
    h = torch.arange(96.0).view(2, 3, 4, 4)
    x, _ = collect(nn.Identity(), [(h, torch.tensor([0, 1]))], pool=AveragePool(size))
    step = 4 // size
    literal = [
        [
            float(h[n, c, i : i + step, j : j + step].mean())
            for c in range(3)
            for i in range(0, 4, step)
            for j in range(0, 4, step)
        ]
        for n in range(2)
    ]
    assert torch.allclose(x, torch.tensor(literal))


def test_what_is_no_part_or_no_data_is_refused():
    with pytest.raises(DataError, match="no batch"):
        collect(nn.Identity(), [])
    with pytest.raises(DataError, match="expected one tensor"):
        collect(lambda x: (x, x), batches())
    with pytest.raises(DataError, match="at least 1"):
        AveragePool(0)


class Counting(nn.Module):
    """Counts its passes."""

    def __init__(self, columns):
        super().__init__()
        self.columns, self.passes = columns, 0

    def forward(self, x):
        self.passes += 1
        return x[:, self.columns]


def test_parts_are_ranked_by_the_first_score_with_one_pass_each():
    """The values are those of the scores themselves; the best part comes first; no score runs the part again."""
    y = torch.arange(40) % 2
    noise = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    x = torch.cat([noise, noise + 5 * y[:, None]], 1)
    parts = {"blind": Counting([0, 1]), "seeing": Counting([2, 3])}
    chosen = scores.named(["cka", "logme", "leep"])
    found = rank(parts, [(x, y)], scores=chosen, heads={"seeing": lambda f: f})
    assert [entry.part for entry in found] == ["seeing"] * 3 + ["blind"] * 3
    assert [part.passes for part in parts.values()] == [1, 1]
    assert found[0].value == scores.CKA()(x[:, 2:], y)
    assert found[1].value == scores.LogME()(x[:, 2:], y)
    assert found[2].value == scores.LEEP()(x, y, source_probabilities=x[:, 2:].softmax(1))
    assert found[5].value is None
    assert "source_probabilities" in found[5].refused
    assert {entry.samples for entry in found} == {40}


def test_seconds_of_the_pass_and_beyond_are_apart(monkeypatch):
    """On a clock of its own, which a pass moves by 5 for every batch and a score by 2."""
    clock = [100.0]
    monkeypatch.setattr(ranking_module.time, "perf_counter", lambda: clock[0])

    def part(x):
        clock[0] += 5
        return x

    @dataclass(frozen=True)
    class Slow(scores.Score):
        name = "slow"

        def value(self, features, labels, source):
            clock[0] += 2
            return 0.0

    found = score_part("a", part, batches(samples=8, shape=(2,), size=4), scores=[Slow(), Slow()])
    assert [(entry.pass_seconds, entry.seconds, entry.total_seconds) for entry in found] == [(10, 2, 12)] * 2


def test_a_ranking_of_nothing_is_refused():
    with pytest.raises(DataError, match="0 parts"):
        rank({}, batches(), scores=[scores.CKA()])
    with pytest.raises(DataError, match="0 scores"):
        rank({"a": nn.Identity()}, batches(), scores=[])
    with pytest.raises(DataError, match="a: the part does not take"):
        rank({"a": nn.Linear(7, 1)}, batches(), scores=[scores.CKA()])


@dataclass(frozen=True)
class FakeSample:
    shape: tuple


@dataclass(frozen=True)
class FakeCard:
    input: FakeSample
    normalize: object


class FakeStore:
    """What ranking needs of a store, in memory."""

    def __init__(self, address="", **parts):
        self.address, self.parts = address, parts

    def names(self):
        return tuple(self.parts)

    def card(self, name):
        return self.parts[name][1]

    def load(self, name):
        return self.parts[name][0]


class Flat(nn.Module):
    def forward(self, x):
        return x.flatten(1)


def stored(normalize=None, shape=(1, 8, 8), part=None):
    return part or Flat(), FakeCard(FakeSample(shape), normalize)


def test_a_store_is_ranked_with_every_cards_own_normalisation():
    """A part is fed what its card says; one of another input shape is left out and named."""
    digits = data.load("digits")
    normalize = data.Normalize(mean=(0.3,), std=(0.2,))
    shelf = FakeStore(plain=stored(), shifted=stored(normalize), colour=stored(shape=(3, 8, 8)))
    told = []
    found = rank_store(shelf, digits, scores=[scores.TransRate()], samples=100, told=told.append)
    values = {entry.part: entry.value for entry in found}
    chosen = balanced(digits.train, 100)
    assert values["plain"] == scores.TransRate()(chosen.x.flatten(1), chosen.y)
    assert values["shifted"] == scores.TransRate()(normalize(chosen.x).flatten(1), chosen.y)
    assert set(values) == {"plain", "shifted"}
    assert told == ["colour takes (3, 8, 8), not (1, 8, 8): left out"]
    with pytest.raises(DataError, match="no stored part takes"):
        rank_store(FakeStore(colour=stored(shape=(3, 8, 8))), digits, scores=[scores.CKA()])


def test_the_command_writes_rows_a_picture_and_a_table(tmp_path, monkeypatch, capsys):
    """Best first; the same command may be given again; a folder in use by something else stays as it is."""
    torch.manual_seed(0)
    noise = nn.Sequential(Flat(), nn.Linear(64, 3, bias=False))
    monkeypatch.setattr(scoring, "Store", lambda address: FakeStore(address, noise=stored(part=noise), whole=stored()))
    out = tmp_path / "scores"
    command = ["score", "--store", "memory", "--data", "digits", "--scores", "k-nn,leep", "--samples", "200"]
    for _ in range(2):
        assert cli.main([*command, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert text.index("whole") < text.index("noise")
    assert "leep reads the source head's class probabilities" in text
    rows = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert [(row["part"], row["score"]) for row in rows] == [
        ("whole", "k-nn"),
        ("whole", "leep"),
        ("noise", "k-nn"),
        ("noise", "leep"),
    ]
    chosen = balanced(data.load("digits").train, 200)
    assert rows[0]["value"] == scores.KNN()(chosen.x.flatten(1), chosen.y)
    assert rows[0]["samples"] == 200
    assert rows[0]["versions"]["torch"] == torch.__version__
    picture = (out / "scores.svg").read_text()
    assert picture.count("<svg") == 1
    assert sorted(path.name for path in out.iterdir()) == ["scores.jsonl", "scores.svg"]
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("mine")
    for bad, says in (
        (["--out", str(tmp_path / "used")], "is in use"),
        (["--out", str(tmp_path / "new"), "--scores", "nonsense"], "no score 'nonsense'"),
        (["--out", str(tmp_path / "new"), "--samples", "0"], "samples=0"),
        (["--out", str(tmp_path / "new"), "--pool", "0"], "size=0"),
        (["--out", str(tmp_path / "new"), "--data", "nowhere"], "no data set"),
    ):
        assert cli.main([*command, *bad]) == 2
        complaint = capsys.readouterr().err
        assert says in complaint
        assert complaint.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_static_baselines_are_counts():
    part = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert parameter_count(part) == 3 * 4 + 4 + 4 + 4
    x, y = torch.tensor([[1.0, 2.0], [2.0, 1.0], [0.0, 5.0]]), torch.tensor([1, 1, 1])
    assert source_accuracy(nn.Identity(), nn.Identity(), [(x, y)]) == pytest.approx(2 / 3)


def stitching_case():
    """A network whose lower part is h, and data on which least squares is not the end."""
    torch.manual_seed(1)
    own = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    upper = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return own, upper, batches(samples=128)


def test_a_part_that_differs_by_an_invertible_map_has_no_stitching_loss():
    own, upper, loader = stitching_case()
    mix = nn.Conv2d(4, 4, 1)
    found = stitching_loss(nn.Sequential(own, mix), own, upper, loader, loader, loss=functional.cross_entropy, epochs=0)
    assert abs(found.gap) < 1e-5
    inverse = torch.linalg.inv(mix.weight[:, :, 0, 0])
    assert torch.allclose(found.stitch.weight[:, :, 0, 0], inverse, atol=1e-3)


def test_stitching_trains_the_stitch_alone():
    """Lower loss than least squares on the data it is trained on; everything else stays as it was."""
    own, upper, loader = stitching_case()
    part = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.ReLU())
    state = [p.clone() for piece in (part, own, upper) for p in piece.parameters()]
    upper.train()
    losses = [
        stitching_loss(part, own, upper, loader, loader, loss=functional.cross_entropy, epochs=epochs, rate=1e-2).loss
        for epochs in (0, 10)
    ]
    assert losses[1] < losses[0] - 0.01
    after = [p for piece in (part, own, upper) for p in piece.parameters()]
    assert all(torch.equal(a, b) and b.requires_grad and b.grad is None for a, b in zip(state, after, strict=True))
    assert upper.training


def test_a_stitch_is_numpys_least_squares():
    generator = torch.Generator().manual_seed(0)
    f, h = torch.randn(5, 3, 2, 2, generator=generator), torch.randn(5, 4, 2, 2, generator=generator)
    stitch = least_squares_stitch(f, h)
    rows = f.permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    goal = h.permute(0, 2, 3, 1).reshape(-1, 4).numpy()
    centred = torch.from_numpy(rows - rows.mean(0)).double()
    literal = torch.linalg.inv(centred.T @ centred) @ centred.T @ torch.from_numpy(goal - goal.mean(0)).double()
    assert torch.allclose(stitch.weight[:, :, 0, 0].T.double(), literal, atol=1e-5)


def test_parts_of_other_positions_are_not_stitched():
    with pytest.raises(DataError, match="cut where they agree"):
        least_squares_stitch(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2))
