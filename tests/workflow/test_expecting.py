"""Unit tests for parts: each measure against its formula or an independent implementation, each bound both ways."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from sklearn.linear_model import Ridge
from stored_networks import LENET, partition
from torch import Tensor, nn

import modulewise as mw
from modulewise.data import Dataset, Normalize, Split
from modulewise.errors import StoreError
from modulewise.workflow import ModelSpec, Quantity, Store, Threshold
from modulewise.workflow.store.checking import check, thresholds_of


def clusters(n: int = 60) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 3
    return torch.eye(3)[y] * 2 + torch.randn(n, 3, generator=generator), y


def test_the_proxy_value_is_the_alignment_written_out() -> None:
    """sum_ij G_ij G*_ij / (||G|| ||G*||) over all i and j, for phi = relu(h) / ||relu(h)||, in float64."""
    part = nn.Linear(3, 5)
    x, y = clusters()
    h = torch.relu(part(x).detach().double()).numpy()
    phi = h / numpy.linalg.norm(h, axis=1, keepdims=True)
    gram, ideal = phi @ phi.T, (y[:, None] == y[None, :]).double().numpy()
    expected = (gram * ideal).sum() / numpy.sqrt((gram**2).sum() * (ideal**2).sum())
    value = mw.expect(part).proxy(mw.methods.KernelProxy(), on=(x, y)).value
    assert value == pytest.approx(expected, abs=1e-6)


def test_batches_weigh_by_their_samples_and_functions_see_all_at_once() -> None:
    """Minus the mean of an objective's losses; a function is asked once."""
    part, (x, y) = nn.Linear(3, 3), clusters()
    loader = [(x[:50], y[:50]), (x[50:], y[50:])]
    objective = mw.TaskLoss(nn.functional.cross_entropy)
    expected = -nn.functional.cross_entropy(part(x), y).item()
    assert mw.expect(part).proxy(objective, on=loader).value == pytest.approx(expected, abs=1e-6)
    asked = []

    def score(features: Tensor, labels: Tensor) -> float:
        asked.append((features.shape, labels.tolist()))
        return 3.0

    assert mw.expect(part).proxy(score, on=loader).value == 3.0
    assert asked == [((60, 3), y.tolist())]


def test_the_probe_is_ridge_regression_on_one_hot_labels() -> None:
    """scikit-learn's Ridge with alpha = 0.01 N on standardised features, scored on the odd samples."""
    part, (x, y) = nn.Linear(3, 4), clusters(90)
    h = part(x).detach().double().numpy()
    fit, held = h[::2], h[1::2]
    mean, std = fit.mean(0), fit.std(0)
    ridge = Ridge(alpha=0.01 * len(fit)).fit((fit - mean) / std, numpy.eye(3)[y[::2]])
    expected = (ridge.predict((held - mean) / std).argmax(1) == y[1::2].numpy()).mean()
    assert 0.4 < expected < 1
    assert mw.expect(part).probe_accuracy(on=(x, y)).value == pytest.approx(expected)
    other = (x + 1, (y + 1) % 3)
    shifted = mw.expect(part).probe_accuracy(on=other, fit=(x, y)).value
    assert shifted < 0.5 < expected, "what it is fitted to and what it is scored on are told apart"


def test_data_sets_are_split_scaled_and_normalised_by_the_card(tmp_path: Path) -> None:
    """uint8 images go in as (x / 255 - mean) / std; the probe learns from the training split alone."""
    seen: list[Tensor] = []
    cut, normalize = partition(LENET, cuts=["pool1"]), Normalize(mean=(0.5,), std=(0.25,))
    store = Store(tmp_path)
    store.save(cut.part(0), "low", model=LENET, normalize=normalize)
    part = store.load("low")
    part.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    images = torch.randint(256, (40, 1, 28, 28), dtype=torch.uint8)
    y = torch.arange(40) % 2
    dataset = Dataset("made", Split(images[:30], y[:30]), Split(images[30:], y[30:]), 2, ("a", "b"), (1, 28, 28))
    mw.expect(part).proxy(mw.methods.KernelProxy(), on=dataset)
    (x,) = seen
    expected = ((images[30:].float() / 255) - 0.5) / 0.25
    order = [int((expected - row).flatten(1).abs().sum(1).argmin()) for row in x]
    assert sorted(order) == list(range(10))
    assert torch.equal(x, expected[order])
    seen.clear()
    mw.expect(part).probe_accuracy(on=dataset)
    assert sorted(len(x) for x in seen) == [10, 30]


def test_bounds_pass_and_fail_with_value_and_bound_in_one_line() -> None:
    """Every bound both ways; not-a-number is within no bound."""
    measured = mw.expect(nn.Linear(3, 2)).output_shape(torch.zeros(4, 3))
    assert measured.equals((4, 2)).equals([4, 2]).equals(torch.Size([4, 2])) is not None
    with pytest.raises(AssertionError, match=r"^output shape of Linear is \(4, 2\), expected \(4, 3\)$"):
        measured.equals((4, 3))
    latency = mw.expect(nn.Linear(3, 2)).latency(torch.zeros(4, 3))
    latency.at_least(0).at_most(60)
    with pytest.raises(AssertionError, match=r"^latency of Linear in seconds is [\d.e-]+, expected at most 0$"):
        latency.at_most(0)
    wrong = mw.workflow.Measured(subject="value", value=float("nan"))
    for bound in (wrong.at_least, wrong.at_most):
        with pytest.raises(AssertionError, match="is nan"):
            bound(0.0)


def test_nothing_of_a_part_changes_and_it_runs_in_eval_mode() -> None:
    """Modes are put back, statistics stay, no graph is made; a part of a partition and a module alike."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)).train()
    cut = mw.Partition(model, cuts=["2"], example=torch.randn(4, 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for part in (cut.part(0), model):
        first, second = (mw.expect(part).probe_accuracy(on=clusters()).value for _ in range(2))
        assert first == second
        mw.expect(part).proxy(mw.methods.KernelProxy(), on=clusters())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("proxy", "said"),
    [
        (mw.methods.DGL(classes=3), "a head, which is untrained here"),
        (mw.methods.Backprop(), "needs more than one part's output"),
        (mw.methods.BCD(), "no objective for one part alone"),
        (mw.methods.KernelProxy, "a method such as KernelProxy"),
        (3, "a method such as KernelProxy"),
    ],
)
def test_what_is_no_proxy_of_one_part_is_refused(proxy: object, said: str) -> None:
    """One line, with what to give instead."""
    with pytest.raises(StoreError, match=said) as error:
        mw.expect(nn.Linear(3, 3)).proxy(proxy, on=clusters())  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    with pytest.raises(StoreError, match="no batch"):
        mw.expect(nn.Linear(3, 3)).proxy(mw.methods.KernelProxy(), on=[])
    with pytest.raises(StoreError, match="str was given"):
        mw.expect("part")  # type: ignore[arg-type]


def test_a_failure_inside_pytest_ends_at_the_callers_line() -> None:
    """The traceback that pytest shows ends in the test, not in this library."""
    measured = mw.workflow.Measured(subject="value", value=0.5)
    for fails in (lambda: measured.at_least(1), lambda: measured.at_most(0), lambda: measured.equals(0.4)):
        with pytest.raises(AssertionError) as error:
            fails()
        shown = error.traceback.filter(error)
        assert Path(shown[-1].path) == Path(__file__)


def test_the_cards_thresholds_are_the_parts_unit_test(tmp_path: Path) -> None:
    """Each outcome is what `expect` measures; a part that needs another below it is refused."""
    spec = ModelSpec(name="cnn", shape=(1, 8, 8), classes=10)
    cut, store, digits = partition(spec), Store(tmp_path), mw.data.load("digits")
    thresholds = thresholds_of("proxy=-1,probe_accuracy=1.01", "probe-accuracy=2,latency=60")
    for k in (0, 1):
        store.save(cut.part(k), f"part{k}", model=spec, thresholds=thresholds)
    part = store.load("part0")
    found = {outcome.threshold.quantity: outcome for outcome in check(part, part.card.thresholds, dataset=digits)}
    assert {quantity: outcome.passed for quantity, outcome in found.items()} == {
        Quantity.PROXY: True, Quantity.PROBE_ACCURACY: False, Quantity.LATENCY: True,
    }  # fmt: skip
    expected = mw.expect(part)
    assert found[Quantity.PROXY].value == expected.proxy(mw.methods.KernelProxy(), on=digits).value
    assert found[Quantity.PROBE_ACCURACY].value == expected.probe_accuracy(on=digits).value
    with pytest.raises(StoreError, match="holds no thresholds"):
        check(part, (), dataset=digits)
    with pytest.raises(StoreError, match="what the part below it gives"):
        check(store.load("part1"), thresholds, dataset=digits)
    with pytest.raises(StoreError, match="is malformed, expected QUANTITY=NUMBER"):
        thresholds_of("accuracy=1", "")
    with pytest.raises(StoreError, match="is malformed"):
        thresholds_of("", "latency=fast")
    assert thresholds_of("", "") == ()
    assert Threshold(quantity=Quantity.PROXY, at_most=1.0) in thresholds_of("", "proxy=1")
