"""Composing: stored parts stay as they are, new parts learn as they would on fixed features, shapes are checked."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from stored_networks import LENET, MLP, partition
from torch import Tensor, nn
from torch.nn import functional

import modulewise as mw
from modulewise.errors import StoreError
from modulewise.workflow import Stitch, Store, StoredPart


@pytest.fixture
def low(tmp_path: Path) -> StoredPart:
    store = Store(tmp_path)
    store.save(partition(LENET, cuts=["pool1", "flatten"]).part(0), "low", model=LENET)
    return store.load("low")


def trainer(cut: mw.Partition, method: mw.Method) -> mw.Trainer:
    return mw.Trainer(
        cut,
        method,
        loss=functional.cross_entropy,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    )


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 1, 28, 28, generator=generator), torch.randint(10, (8,), generator=generator))
        for _ in range(count)
    ]


def head() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(6 * 14 * 14, 10))


@pytest.mark.parametrize("schedule", [mw.schedules.simultaneous, mw.schedules.sequential])
def test_a_head_on_a_loaded_part_learns_as_in_plain_torch(low: StoredPart, schedule: mw.schedules.Schedule) -> None:
    """The same weights as a plain loop on the part's fixed output; the part's tensors keep every bit."""
    before = {name: tensor.clone() for name, tensor in low.state_dict().items()}
    ours, theirs = head(), head()
    plain = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        for x, y in batches():
            plain.zero_grad()
            functional.cross_entropy(theirs(low(x)), y).backward()
            plain.step()
    cut = mw.compose(low, ours)
    assert len(cut) == 2
    trainer(cut, mw.methods.KernelProxy()).fit(batches(), epochs=2, schedule=schedule)
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert all(torch.equal(before[name], tensor) for name, tensor in low.state_dict().items())
    assert all(p.grad is None for p in low.parameters())


def test_the_sequential_schedule_spends_no_pass_on_a_part_that_nothing_can_change(low: StoredPart) -> None:
    """Passes and steps are those of the parts that learn; a trained head of a frozen part is something to learn."""
    fit = {"epochs": 2, "schedule": mw.schedules.sequential}
    done = trainer(cut := mw.compose(low, head()), mw.methods.KernelProxy())
    assert [epoch.part for epoch in done.fit(batches(), **fit)] == [1, 1]
    assert done.steps == 8
    headed = trainer(cut, mw.methods.DGL(classes=10, head=mw.heads.linear))
    assert [epoch.part for epoch in headed.fit(batches(), **fit)] == [0, 0, 1, 1]
    statistics = nn.Sequential(nn.BatchNorm2d(1, affine=False), nn.Flatten(), nn.Linear(784, 10))
    counted = mw.Partition(statistics, cuts=["0"], example=torch.randn(4, 1, 28, 28))
    assert [epoch.part for epoch in trainer(counted, mw.methods.KernelProxy()).fit(batches(), **fit)] == [0, 0, 1, 1]
    assert statistics[0].running_mean.abs().item() > 0, "a buffer that training fills is not passed over"


def test_a_run_with_a_frozen_part_goes_on_from_its_checkpoint(low: StoredPart, tmp_path: Path) -> None:
    """Interrupted after one pass, with the same end."""
    straight = trainer(mw.compose(low, head()), mw.methods.KernelProxy())
    straight.fit(batches(), epochs=2, schedule=mw.schedules.sequential)
    first = trainer(mw.compose(copy.deepcopy(low), head()), mw.methods.KernelProxy())

    def stop(epoch: mw.Epoch) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.fit(batches(), epochs=2, schedule=mw.schedules.sequential, checkpoint=tmp_path / "run", callbacks=[stop])
    second = trainer(mw.compose(copy.deepcopy(low), head()), mw.methods.KernelProxy()).load(tmp_path / "run")
    second.fit(batches(), epochs=2, schedule=mw.schedules.sequential)
    a, b = straight.partition.model.state_dict(), second.partition.model.state_dict()
    assert straight.steps == second.steps
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_shapes_are_checked_before_anything_runs(low: StoredPart) -> None:
    """No module sees a tensor with values, and the error offers the stitch that works."""

    seen: list[type] = []

    class Noting(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            seen.append(type(h))
            return h

    with pytest.raises(StoreError) as error:
        mw.compose(low, nn.Sequential(Noting(), nn.Conv2d(4, 3, 1)))
    text = str(error.value)
    assert "part 1 (Sequential) does not take (N, 6, 14, 14) float32, which part 0 gives" in text
    assert "mw.workflow.Stitch(to=(4, 14, 14))" in text
    assert "\n" not in text
    assert [kind.__name__ for kind in seen] == ["FakeTensor"]
    cut = mw.compose(
        low, Stitch(to=(4, 14, 14)), nn.Conv2d(4, 3, 1), head := nn.Sequential(nn.Flatten(), nn.Linear(588, 2))
    )
    assert [part.parameter_names for part in cut.parts[1:]] == [
        ("1.0.0.weight", "1.0.0.bias", "1.1.weight", "1.1.bias"),
        ("2.1.weight", "2.1.bias"),
    ]
    assert cut.module("2") is head


def test_a_stitch_learns_beneath_a_frozen_part(tmp_path: Path, low: StoredPart) -> None:
    """A part trained on other features: its gradient reaches the stitch, and moves nothing in the part."""
    store = Store(tmp_path)
    store.save(partition(MLP).part(1), "top", model=MLP)
    top = store.load("top")
    with pytest.raises(StoreError, match=r"Stitch\(to=\(256,\)\)"):
        mw.compose(low, top)
    cut = mw.compose(low, Stitch(), top)
    stitch = cut.module("1.0.1")
    assert isinstance(stitch, nn.Linear)
    before, start = [t.clone() for _, t in top.named_tensors()], stitch.weight.clone()
    x, y = batches(1)[0]
    trainer(cut, mw.methods.KernelProxy()).step(x, y % 3)
    assert not torch.equal(stitch.weight, start)
    assert all(torch.equal(a, b) for a, (_, b) in zip(before, top.named_tensors(), strict=True))


@pytest.mark.parametrize(
    ("given", "wanted", "kinds"),
    [
        ((4, 8, 8), (6, 8, 8), ["Conv2d"]),
        ((4, 8, 8), (6, 4, 4), ["AdaptiveAvgPool2d", "Conv2d"]),
        ((4, 4, 4), (6, 8, 8), ["AdaptiveAvgPool2d", "Conv2d"]),
        ((5,), (7,), ["Linear"]),
        ((9, 5), (9, 7), ["Linear"]),
        ((4, 2, 2), (7,), ["Flatten", "Linear"]),
    ],
)
def test_a_stitch_is_one_linear_map_drawn_from_its_seed(
    given: tuple[int, ...], wanted: tuple[int, ...], kinds: list[str]
) -> None:
    """Its output has the wanted shape, and it is affine: f(a) + f(b) = f(a + b) + f(0)."""
    state = torch.get_rng_state()
    made, again, other = (Stitch(seed=seed).made(given, wanted).double() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert [type(layer).__name__ for layer in made] == kinds
    a, b = torch.randn(2, 3, *given, dtype=torch.float64)
    assert made(a).shape == (3, *wanted)
    torch.testing.assert_close(made(a) + made(b), made(a + b) + made(torch.zeros_like(a)))
    assert torch.equal(made[-1].weight, again[-1].weight)
    assert not torch.equal(made[-1].weight, other[-1].weight)


def test_what_cannot_be_composed_is_said_in_one_line(low: StoredPart) -> None:
    """Nothing at all, a stitch at the end or twice, no example, one part twice, an unknown width."""
    x = torch.randn(2, 4)
    cases = [
        ((), None, "first part has no card"),
        ((nn.Linear(4, 2),), None, "give example="),
        ((nn.Linear(4, 2), Stitch()), x, "a stitch comes before"),
        ((nn.Linear(4, 2), Stitch(), Stitch(), nn.Linear(3, 2)), x, "two stitches"),
        ((nn.Linear(4, 2), Stitch(), nn.ReLU()), x, r"give Stitch\(to=...\)"),
        ((layer := nn.Linear(4, 4), layer), x, "is there twice"),
        ((nn.Linear(4, 2), 3), x, "int was given"),
        ((nn.Linear(4, 2), nn.LSTM(2, 3)), x, "gives tuple"),
    ]
    for parts, example, said in cases:
        with pytest.raises(StoreError, match=said) as error:
            mw.compose(*parts, example=example)
        assert "\n" not in str(error.value)
    with pytest.raises(StoreError, match="no stitch leads"):
        Stitch().made((4,), (3, 2, 2))
