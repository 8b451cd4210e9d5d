"""Initial values: a function of (seed, part) alone, in every tensor, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from runs import noisy, on_meta, out_of_core
from small_networks import CLASSES, CUTS, images, rows
from torch import Tensor, nn

import modulewise as mw
from modulewise.errors import PartitionError
from modulewise.outofcore.drawing import drawn
from modulewise.outofcore.holdings import holdings_of, placed
from modulewise.seeding import seed_of, set_generators

M = mw.methods


def cut(make: Any, cuts: Any, x: Tensor) -> mw.Partition:
    return mw.Partition(on_meta(make), cuts=list(cuts), example=x)


class TestDrawn:
    def test_values_are_those_of_a_plain_module_reset_after_the_same_seed(self):
        """Part 1 of a chain of linear layers, in plain torch."""
        partition = cut(lambda: nn.Sequential(*[nn.Linear(6, 6) for _ in range(4)]), ("0", "2"), rows()[0])
        found = drawn(holdings_of(partition), 1, seed=7)
        state = torch.get_rng_state()
        one, two = nn.Linear(6, 6), nn.Linear(6, 6)
        set_generators(seed_of(7, "values", 1))
        one.reset_parameters()
        two.reset_parameters()
        torch.set_rng_state(state)
        expected = {"1.weight": one.weight, "1.bias": one.bias, "2.weight": two.weight, "2.bias": two.bias}
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_the_order_of_drawing_does_not_matter_and_generators_are_left_alone(self):
        partition = cut(noisy, CUTS, images()[0])
        holdings = holdings_of(partition)
        before = torch.get_rng_state()
        up = {part: drawn(holdings, part, seed=3) for part in range(4)}
        down = {part: drawn(holdings, part, seed=3) for part in reversed(range(4))}
        assert torch.equal(before, torch.get_rng_state())
        assert all(torch.equal(up[part][name], down[part][name]) for part in up for name in up[part])
        other = drawn(holdings, 0, seed=4)
        assert not torch.equal(up[0]["stem.0.weight"], other["stem.0.weight"])

    def test_every_part_has_its_tensors_and_together_they_are_all(self):
        partition = cut(noisy, CUTS, images()[0])
        holdings = holdings_of(partition)
        names = [name for part in range(4) for name in drawn(holdings, part, seed=0)]
        assert sorted(names) == sorted(partition.model.state_dict())
        values = drawn(holdings, 0, seed=0)
        assert torch.equal(values["stem.1.running_var"], torch.ones(6))
        assert values["stem.1.num_batches_tracked"] == 0

    def test_attention_which_resets_with_an_underscore_and_a_child(self):
        class Attending(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Linear(6, 8), nn.MultiheadAttention(8, 2, batch_first=True)
                self.c = nn.Linear(8, CLASSES)

            def forward(self, x: Tensor) -> Tensor:
                h = self.a(x)[:, None]
                return self.c(h + self.b(h, h, h)[0]).squeeze(1)

        partition = cut(Attending, ["a"], rows()[0])
        values = drawn(holdings_of(partition), 1, seed=0)
        assert values["b.out_proj.bias"].abs().sum() == 0
        assert 0 < values["b.in_proj_weight"].std() < 1


class Scaled(nn.Module):
    """A layer with a parameter and a table that nothing resets."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.gamma = nn.Parameter(torch.full((8,), 0.1))
        self.register_buffer("order", torch.arange(8))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.gamma * self.linear(h)[:, self.order]


def scaled() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), Scaled(), nn.Linear(8, CLASSES))


class TestInitialize:
    def test_a_module_without_reset_is_refused_by_name(self, tmp_path):
        with pytest.raises(PartitionError, match=r"'1.gamma' has no initial values: Scaled has no reset_parameters"):
            out_of_core(tmp_path, scaled, M.DGL(classes=CLASSES), ("0", "1"), rows()[0])

    def test_a_function_gives_what_is_missing(self, tmp_path):
        seen = []

        def initialize(name: str, module: nn.Module) -> None:
            seen.append(name)
            if isinstance(module, Scaled):
                nn.init.constant_(module.gamma, 0.1)
                module.order.copy_(torch.arange(8))

        settings = {"method": M.DGL(classes=CLASSES), "cuts": ("0", "1"), "x": rows()[0]}
        run = out_of_core(tmp_path, scaled, **settings, initialize=initialize)
        assert seen == ["0", "1.linear", "1", "2"]
        assert torch.equal(run.tensors(1)["1.order"], torch.arange(8))
        assert torch.equal(run.tensors(1)["1.gamma"], torch.full((8,), 0.1))

    def test_a_table_alone_that_is_forgotten_is_refused_too(self, tmp_path):
        def initialize(name: str, module: nn.Module) -> None:
            if isinstance(module, Scaled):
                nn.init.constant_(module.gamma, 0.1)

        with pytest.raises(PartitionError, match=r"'1.order' has no initial values"):
            out_of_core(tmp_path, scaled, M.DGL(classes=CLASSES), ("0", "1"), rows()[0], initialize=initialize)

    def test_trained_values_can_be_loaded(self, tmp_path):
        values = noisy().state_dict()

        def load(name: str, module: nn.Module) -> None:
            own = {key: values[f"{name}.{key}"] for key in module.state_dict() if f"{name}.{key}" in values}
            module.load_state_dict(own)

        run = out_of_core(tmp_path, initialize=load)
        assert all(torch.equal(t, values[name]) for part in range(4) for name, t in run.tensors(part).items())


def test_a_model_with_values_is_refused(tmp_path):
    partition = mw.Partition(noisy(), cuts=list(CUTS), example=images()[0])
    with pytest.raises(PartitionError, match=r"'stem.0.weight' is on cpu, expected the whole model on the meta device"):
        holdings_of(partition)


def test_a_forward_that_needs_values_is_refused_on_the_meta_device():
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(h if float(h.mean()) > 0 else -h)

    with pytest.raises(PartitionError, match="does not run on the meta device"):
        mw.Partition(on_meta(Asking), cuts=["a"], example=rows()[0])


def test_what_the_model_held_is_back_after_an_error():
    partition = cut(noisy, CUTS, images()[0])
    holdings = holdings_of(partition)
    values = drawn(holdings, 0, seed=0)
    with placed(holdings, values):
        assert not partition.model.stem[0].weight.is_meta
    with pytest.raises(RuntimeError), placed(holdings, values):
        partition.model(images()[0])  # the other parts are on the meta device
    assert all(partition.model.get_parameter(name) is holdings.shells[name] for name in holdings.names[0][:2])
