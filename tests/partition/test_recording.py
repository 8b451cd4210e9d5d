"""What is read off one recorded forward: calls, dependences, cut points, layouts, and the table of a partition."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from part_oracle import assert_composes, untouched
from torch import Tensor, nn

from modulewise import Boundary, Partition
from modulewise.errors import DataError
from modulewise.partition.crossings import candidates
from modulewise.partition.recorder import record
from modulewise.partition.recording import Recording, Slot
from modulewise.partition.survey import Survey
from modulewise.partition.tree import rebatch, signature, tensors


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.b, self.c = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 3)
        self.table = nn.Parameter(torch.ones(4), requires_grad=False)
        self.register_buffer("mask", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        side = self.table * self.mask
        h = self.act(self.a(x * side))
        return self.c(self.b(h) + h)


def names(recording: Recording) -> list[str]:
    return [call.name for call in recording.calls]


def test_calls_are_recorded_in_order_with_what_they_return() -> None:
    recording = record(Net(), torch.randn(2, 4))
    assert names(recording) == ["a", "act", "b", "c"]
    assert [call.outputs[0].shape for call in recording.calls] == [(2, 6), (2, 6), (2, 6), (2, 3)]
    clocks = [clock for call in recording.calls for clock in (call.enter, call.exit)]
    assert clocks == sorted(clocks)
    assert recording.root.children == recording.calls
    assert recording.root.exit > clocks[-1]


def test_recording_keeps_no_gradient_and_leaves_the_model() -> None:
    model, x = Net(), torch.randn(2, 4, requires_grad=True)
    with untouched(model):
        record(model, x)
    assert x.grad is None


def test_values_know_what_they_depend_on_and_since_when() -> None:
    """Parameters times batch are upstream, so is anything learned; a frozen table or a mask alone is not."""
    model = Net()
    model.a.requires_grad_(False)
    recording = record(model, torch.randn(2, 4))
    multiplications = [o for o in recording.operations if o.name == "aten::mul"]
    side, scaled = (recording.values[o.makes[0].key] for o in multiplications)
    assert (side.upstream(), side.batch, side.parameter) == (False, False, True)
    assert (scaled.upstream(), scaled.batch) == (True, True)
    layers = [o.makes[0] for o in recording.operations if o.name == "aten::addmm"]
    assert all(recording.values[slot.key].upstream() for slot in layers)
    first = recording.values[layers[0].key]
    assert not first.trainable
    assert not first.upstream(first.birth - 1)


def test_a_slot_knows_its_range_of_the_storage() -> None:
    low, high = Slot(1, 0, 4, (5,), torch.float32), Slot(1, 5, 9, (5,), torch.float32)
    both = Slot(1, 0, 9, (10,), torch.float32)
    assert low.within(both)
    assert not both.within(low)
    assert not low.overlaps(high)
    assert low.overlaps(both)
    assert not low.overlaps(Slot(2, 0, 4, (5,), torch.float32))


def test_cut_points_are_where_one_tensor_alone_crosses() -> None:
    """`b` is inside the residual, so that two tensors cross behind it."""
    survey = Survey(Net(), torch.randn(5, 4))
    assert [call.name for call in candidates(survey.small)] == ["a", "act"]
    assert [call.name for call in survey.points()] == ["act"]


def brute_force_cuts(model: nn.Module, x: Any) -> list[str]:
    """Try every module: those that a partition in two accepts."""
    found = []
    for name, _ in model.named_modules():
        try:
            if name:
                partition = Partition(model, example=x, cuts=[name])
                if all(any(p.requires_grad for p in part.parameters()) for part in partition.parts):
                    found.append(name)
        except ValueError:
            continue
    return found


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, h: Tensor) -> Tensor:
        return F.relu(h + self.two(F.relu(self.one(h))))


def test_every_cut_point_offered_is_accepted_and_none_is_missing() -> None:
    """Of modules that end at one place only the outermost is offered."""
    model = nn.Sequential(
        OrderedDict(
            stem=nn.Linear(4, 6),
            blocks=nn.Sequential(Block(), Block()),
            head=nn.Sequential(nn.Identity(), nn.Linear(6, 2)),
        )
    )
    x = torch.randn(3, 4)
    offered = [call.name for call in Survey(model, x).candidates()]
    accepted = brute_force_cuts(model, x)
    assert offered == ["stem", "blocks.0", "blocks"] or offered == ["stem", "blocks.0", "head.0"]
    assert set(offered) <= set(accepted)
    assert set(accepted) - set(offered) <= {"blocks.1", "blocks", "head.0"}


ACTIVATED = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.BatchNorm2d(5), nn.Conv2d(5, 5, 1))
LAYOUTS = {
    "convolution": (nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 5, 1)), (2, 3, 4, 4), 1, 5),
    "convolution 1-d": (nn.Sequential(nn.Conv1d(3, 5, 1), nn.Conv1d(5, 5, 1)), (2, 3, 4), 1, 5),
    "tokens": (nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 5)), (2, 4, 3), -1, 5),
    "grid of tokens": (nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 5)), (2, 4, 4, 3), -1, 5),
    "vector": (nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 5)), (2, 3), 1, 5),
    "activation between": (ACTIVATED, (2, 3, 4, 4), 1, 5),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_boundary_knows_where_its_channels_are(layout: str) -> None:
    model, shape, axis, channels = LAYOUTS[layout]
    partition = Partition(model, example=torch.randn(shape), cuts=["0"])
    boundary = partition.part(0).output
    assert boundary == partition.part(1).input
    assert (boundary.channel_axis, boundary.channels) == (axis, channels)
    assert boundary.shape[0] == 2
    assert boundary.name == "0"


def test_a_boundary_of_flattened_features_before_a_classifier() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 3))
    partition = Partition(model, example=torch.randn(4, 3, 4, 4), cuts=["1", "2"])
    assert partition.part(0).output == Boundary("1", (4, 5, 2, 2), torch.float32, 1)
    assert partition.part(1).output == Boundary("2", (4, 20), torch.float32, 1)


def test_the_table_of_a_partition() -> None:
    """Parts, modules, parameters, shapes and bytes; a header and a line a part."""
    model = nn.Sequential(nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, 2, bias=False))
    partition = Partition(model, example=torch.randn(5, 3), cuts=["1"])
    header, first, second = str(partition).splitlines()
    assert header.split() == ["part", "modules", "parameters", "output", "parameter", "bytes", "output", "bytes"]
    assert first.split() == ["0", "0", "..", "1", "28", "(5,", "7)", "112", "140"]
    assert second.split() == ["1", "2", "14", "the", "model's", "output", "56"]


def test_the_table_counts_in_thousands_and_in_the_tensors_own_type() -> None:
    model = nn.Sequential(nn.Linear(300, 70), nn.Linear(70, 2)).double()
    text = str(Partition(model, example=torch.randn(5, 300, dtype=torch.float64), cuts=["0"]))
    assert "21,070" in text
    assert f"{21070 * 8:,}" in text
    assert f"{5 * 70 * 8:,}" in text


def test_parts_know_their_modules_and_share_out_all_parameters() -> None:
    class Spare(Net):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(2, 2)
            self.act = nn.Sequential(nn.ReLU())
            self.act.scale = nn.Parameter(torch.ones(1))

    partition = Partition(Spare(), example=torch.randn(2, 4), cuts=["act"])
    assert [name for name, _ in partition.part(0).modules()] == ["a", "act"]
    assert [name for name, _ in partition.part(1).modules()] == ["b", "c"]
    # Unread parameters stay with the part that calls their module, or else with the last.
    assert set(partition.part(0).parameter_names) == {"table", "a.weight", "a.bias", "act.scale"}
    assert {"spare.weight", "spare.bias"} < set(partition.part(1).parameter_names)


def test_parameters_that_are_slices_of_one_memory_belong_to_the_parts_that_read_them() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    flat = torch.randn(32)
    model[0].weight = nn.Parameter(flat[:16].view(4, 4))
    model[1].weight = nn.Parameter(flat[16:].view(4, 4))
    partition = Partition(model, example=torch.randn(2, 4), cuts=["0"])
    assert [part.parameter_names for part in partition.parts] == [("0.weight",), ("1.weight",)]


def test_blocks_are_the_later_modules_with_a_kernel_and_what_follows_them() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 3),
    )
    partition = Partition(model, example=torch.randn(2, 1, 8, 8), cuts=["2"])
    block, *_ = partition.blocks(0)
    assert block.name == "3"
    assert block.input.shape == (2, 4, 6, 6)
    assert block.module[0] is model[3]
    h = torch.randn(2, 4, 6, 6)
    assert block.module(h).shape == block.output.shape
    assert partition.blocks(1) == ()


@pytest.mark.parametrize("parts", range(1, 7))
def test_any_number_of_parts_up_to_the_cut_points(parts: int) -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(6)))
    partition = Partition(model, example=torch.randn(2, 4), parts=parts)
    assert len(partition) == parts
    assert all(list(part.parameters()) for part in partition.parts)
    assert_composes(partition, torch.randn(3, 4))
    starts = [min(int(name[0]) for name in part.parameter_names) for part in partition.parts]
    assert all(a < b for a, b in pairwise(starts))


def test_automatic_cuts_stay_out_of_what_would_be_refused() -> None:
    """A checkpointed segment, gradients switched off, a value read into Python: no cut is offered there."""
    from torch.utils.checkpoint import checkpoint

    class Hard(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(7))

        def forward(self, x: Tensor) -> Tensor:
            h = self.layers[0](x)
            h = checkpoint(lambda h: self.layers[2](self.layers[1](h)).tanh(), h, use_reentrant=False)
            h = self.layers[4](self.layers[3](h))
            if h.sum() > 1e9:
                h = -h
            return self.layers[6](self.layers[5](h))

    survey = Survey(Hard(), torch.randn(2, 4))
    assert [call.name for call in survey.candidates()] == ["layers.0", "layers.3", "layers.4"]
    assert len(Partition(Hard(), example=torch.randn(2, 4), parts=4)) == 4


def test_rebatching_repeats_or_drops_samples_and_leaves_the_rest() -> None:
    x = {"a": torch.arange(3), "scale": torch.tensor(2.0), "table": torch.zeros(7)}
    five = rebatch(x, 5)
    assert five["a"].tolist() == [0, 1, 2, 0, 1]
    assert five["scale"] is x["scale"]
    assert five["table"] is x["table"]
    assert rebatch(x, 2)["a"].tolist() == [0, 1]


def test_a_signature_is_the_structure_and_the_sizes_but_the_batch() -> None:
    x = {"ids": torch.zeros(2, 5), "mask": None}
    assert signature(x) == signature({"ids": torch.ones(9, 5), "mask": None})
    assert signature(x) != signature({"ids": torch.zeros(2, 6), "mask": None})
    assert signature(x) != signature({"ids": torch.zeros(2, 5), "mask": torch.zeros(2)})
    assert signature(x) != signature({"ids": torch.zeros(2, 5).long(), "mask": None})


def test_an_input_without_a_tensor() -> None:
    with pytest.raises(DataError, match="expected a tensor, tuple or mapping"):
        Partition(Net(), example=None, cuts=["a"])


def test_tensors_inside_objects_are_found() -> None:
    from dataclasses import dataclass

    @dataclass
    class Inner:
        h: Tensor
        label: str

    class Special(dict):
        pass

    tree = {"a": Inner(torch.zeros(1), "x"), "b": [Special(c=torch.zeros(2)), torch.zeros(3)]}
    assert [len(tensor) for tensor in tensors(tree)] == [1, 2, 3]
