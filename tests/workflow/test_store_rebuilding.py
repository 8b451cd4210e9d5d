"""Rebuilding a part: no other part's memory, no code without trust, nothing of the frozen part ever changes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import stored_networks
import torch
from stored_networks import LENET, MLP, constant, normed, partition
from torch import nn

import modulewise as mw
from modulewise.errors import StoreError
from modulewise.metering import MemoryMeter
from modulewise.workflow import ModelSpec, Store

OWN = ModelSpec(name="stored_networks:normed")


def trained_normed() -> mw.Partition:
    torch.manual_seed(0)
    model = normed()
    model.train()
    for _ in range(3):
        model(torch.randn(8, 4))  # statistics that differ from their initial values
    return mw.Partition(model, cuts=["first"], example=torch.randn(5, 4))


def test_buffers_ties_and_frozen_parameters_come_along(tmp_path: Path) -> None:
    """Statistics, a buffer that is not in the state, a parameter under two names, a frozen one that two parts read."""
    cut, store = trained_normed(), Store(tmp_path)
    for k in (0, 1):
        store.save(cut.part(k), f"part{k}", model=OWN)
    low, high = (store.load(f"part{k}", trust_code=True) for k in (0, 1))
    x = torch.randn(7, 4)
    cut.model.eval()
    assert torch.equal(high(low(x)), cut.model(x))
    assert {name for name, _ in low.named_tensors()} >= {"first.1.running_mean", "first.0.weight"}
    assert "shift" in dict(high.named_tensors())
    assert "scale" in low.skeleton.holdings.names[0]
    assert "scale" in dict(high.named_tensors()), "what belongs to a part below and is read here comes along"
    assert "again.weight" not in dict(high.named_tensors()), "a tied parameter is stored once"


def test_train_mode_changes_nothing_of_a_loaded_part(tmp_path: Path) -> None:
    """Dropout is off and batch statistics stay, whatever mode the network around it is in."""
    store = Store(tmp_path)
    store.save(trained_normed().part(0), "low", model=OWN)
    low = store.load("low", trust_code=True)
    before = {name: tensor.clone() for name, tensor in low.state_dict().items()}
    around = nn.Sequential(low, nn.Dropout(0.5)).train()
    x = torch.randn(16, 4)
    assert torch.equal(low(x), low(x))
    assert around.training
    assert not low.training
    assert all(torch.equal(before[name], tensor) for name, tensor in low.state_dict().items())


def test_only_the_part_is_in_memory(tmp_path: Path) -> None:
    """The rest of the model has shapes and no values."""
    store = Store(tmp_path)
    card = store.save(partition(LENET, cuts=["pool1", "flatten"]).part(0), "low", model=LENET)
    part = store.load("low")
    assert sum(t.numel() for t in part.parameters()) == card.parameters == 156
    assert all(t.is_meta for t in part.skeleton.partition.model.parameters())
    part(torch.randn(2, 1, 28, 28))
    assert all(t.is_meta for t in part.skeleton.partition.model.parameters()), "the skeleton is empty again after a run"


def test_loading_never_holds_the_whole_model(tmp_path: Path) -> None:
    """The first part of a LeNet has 156 of its 61,706 parameters: every tensor made while it is loaded is watched."""
    cut, store = partition(LENET, cuts=["pool1", "flatten"]), Store(tmp_path)
    whole = sum(p.numel() * p.element_size() for p in cut.model.parameters())
    card = store.save(cut.part(0), "low", model=LENET)
    with MemoryMeter(device="cpu") as meter:
        part = store.load("low")
    assert sum(t.numel() * t.element_size() for _, t in part.named_tensors()) == 4 * 156
    assert meter.report().peak_bytes < 4 * card.bytes < whole / 10


def test_code_of_ones_own_runs_only_when_trusted(tmp_path: Path) -> None:
    """The card is read without it; loading is not."""
    store = Store(tmp_path)
    store.save(trained_normed().part(0), "low", model=OWN)
    assert store.card("low").model.own
    with pytest.raises(StoreError, match="trust_code=True") as error:
        store.load("low")
    assert "stored_networks:normed" in str(error.value)
    assert store.load("low", trust_code=True)(torch.zeros(2, 4)).shape == (2, 6)


def test_a_whole_module_is_stored_as_a_part_without_cuts(tmp_path: Path) -> None:
    """Its own example says what it takes."""
    model, store = normed().eval(), Store(tmp_path)
    card = store.save(model, "whole", model=OWN, example=torch.randn(5, 4))
    assert (card.cuts, card.part, card.input.shape, card.output.shape) == ((), 0, (4,), (3,))
    x = torch.randn(6, 4)
    assert torch.equal(store.load("whole", trust_code=True)(x), model(x))


def test_a_model_with_a_tensor_outside_its_state_is_refused_when_saved(tmp_path: Path) -> None:
    """It would be rebuilt without it."""
    model = constant()
    with pytest.raises(mw.ModulewiseError, match="as a buffer"):
        Store(tmp_path / "store").save(
            model, "c", model=ModelSpec(name="stored_networks:constant"), example=torch.randn(5, 4)
        )
    assert not (tmp_path / "store").exists()


def test_what_is_rebuilt_must_give_the_same_output(tmp_path: Path) -> None:
    """The same tensors around another activation are seen before anything is written."""
    stored_networks.built.clear()
    model = stored_networks.unsteady()
    with pytest.raises(StoreError, match="gives another output than the part itself"):
        Store(tmp_path / "store").save(
            model, "u", model=ModelSpec(name="stored_networks:unsteady"), example=torch.randn(5, 4)
        )
    assert not (tmp_path / "store").exists()


def test_another_size_of_image_is_tried_and_a_wrong_shape_is_one_line(tmp_path: Path) -> None:
    """Convolutions take it; a linear layer behind them does not."""
    cut, store = partition(LENET, cuts=["pool1", "flatten"]), Store(tmp_path)
    for k in (0, 2):
        store.save(cut.part(k), f"part{k}", model=LENET)
    low, high = store.load("part0"), store.load("part2")
    assert low(torch.randn(2, 1, 40, 36)).shape == (2, 6, 20, 18)
    for part, x in (
        (low, torch.randn(2, 3, 28, 28)),
        (low, torch.randn(2, 28)),
        (low, torch.zeros(2, 1, 28, 28, dtype=torch.int64)),
        (high, torch.randn(2, 399)),
    ):
        with pytest.raises(StoreError, match=r"was given \(N.*expected \(N") as error:
            part(x)
        assert "\n" not in str(error.value)
    assert low(torch.randn(2, 1, 28, 28)).shape == (2, 6, 14, 14), "it still works"


def test_parts_with_more_than_one_input_are_refused(tmp_path: Path) -> None:
    """A gated linear network's second part reads the input as well as the boundary."""
    cut = mw.Partition(mw.models.build("gln", shape=(1, 4, 4), classes=3), parts=2, example=torch.rand(3, 1, 4, 4))
    with pytest.raises(StoreError, match="reads more than the boundary below it"):
        Store(tmp_path).save(cut.part(1), "p", model=ModelSpec(name="gln", shape=(1, 4, 4), classes=3))


def test_gradients_pass_through_and_reach_it_when_asked_for(tmp_path: Path) -> None:
    """A stitch below it learns; with requires_grad_ the part itself does, and its copy is independent."""
    store, cut = Store(tmp_path), partition()
    store.save(cut.part(1), "top", model=MLP)
    part, x = store.load("top"), torch.randn(4, 256, requires_grad=True)
    part(x).sum().backward()
    expected = torch.autograd.grad(cut.part(1)(y := x.detach().requires_grad_()).sum(), y)[0]
    assert torch.equal(x.grad, expected)
    assert all(p.grad is None for p in part.parameters())
    twin = copy.deepcopy(part).requires_grad_(True)
    twin(x.detach()).sum().backward()
    theirs = torch.autograd.grad(cut.part(1)(x.detach()).sum(), list(cut.part(1).parameters()))
    assert all(torch.equal(p.grad, g) for p, g in zip(twin.parameters(), theirs, strict=True))
    assert not any(p.requires_grad for p in part.parameters())


def test_saving_and_loading_leave_model_and_generators_as_they_were(tmp_path: Path) -> None:
    """Modes, buffers, gradient flags, and the user's random stream."""
    cut, store = trained_normed(), Store(tmp_path)
    cut.model.train()
    before, state = {n: t.clone() for n, t in cut.model.state_dict().items()}, torch.get_rng_state()
    store.save(cut.part(0), "low", model=OWN)
    store.load("low", trust_code=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in cut.model.modules())
    assert all(torch.equal(before[n], t) for n, t in cut.model.state_dict().items())
    assert cut.model.head.weight.requires_grad
