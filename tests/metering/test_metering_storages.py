"""Every storage counts exactly while it lives, whatever makes, views, resizes or names it."""

import random
import warnings

import torch
from torch import Tensor

from modulewise.metering import (
    Category,
    MemoryMeter,
    measure_step,
)


def test_allocations_and_frees_by_hand():
    with MemoryMeter() as meter:
        a = torch.zeros(10)  # 40 bytes live
        b = torch.zeros(6, dtype=torch.int64)  # 88
        del a  # 48
        c = torch.zeros(9, dtype=torch.bool)  # 57
        assert meter.report().peak_bytes == 88
        assert meter.report().end_bytes == 57
        d = torch.zeros(8)  # 89
        del b, c, d
    assert (meter.report().peak_bytes, meter.report().end_bytes) == (89, 0)
    assert meter.report().at_peak == {c: 89 * (c is Category.ACTIVATIONS) for c in Category}


def test_random_allocations_frees_and_resizes_match_a_list_of_sizes():
    draw = random.Random(0)
    alive: list[tuple[Tensor, int]] = []
    peak = 0
    with MemoryMeter() as meter:
        for _ in range(300):
            action = draw.choice(["new", "new", "free", "resize", "resize storage"])
            size = draw.randrange(50)
            index = draw.randrange(len(alive)) if alive else 0
            if action == "new" or not alive:
                alive.append((torch.empty(size, dtype=torch.uint8), size))
            elif action == "free":
                alive.pop(index)
            elif action == "resize":  # a tensor never shrinks its storage
                tensor, old = alive[index]
                alive[index] = (tensor.resize_(size), max(old, size))
            else:
                tensor, _ = alive[index]
                tensor.untyped_storage().resize_(0)
                assert meter.report().end_bytes == sum(size for t, size in alive if t is not tensor)
                tensor.untyped_storage().resize_(tensor.numel() + size)
                alive[index] = (tensor, tensor.numel() + size)
            peak = max(peak, sum(size for _, size in alive))
        report = meter.report()
    assert report.peak_bytes == peak
    assert report.end_bytes == sum(size for _, size in alive)


def test_views_and_in_place_operators_do_not_count(split):
    with MemoryMeter() as meter:
        x = torch.ones(4, 6)
        before = meter.report()
        y = x.view(6, 4).t()[1:].unsqueeze(0).expand(5, -1, -1).detach()
        x.add_(1).mul_(x).relu_()
        parts = x.split(2) + x.unbind(1)
        x[0].fill_(3.0)
        x.data = y.data
        del x, parts
        assert meter.report() == before
        del y
    assert meter.report().end_bytes == 0


def test_out_variant_that_grows_its_target_counts_the_growth(split):
    a = torch.ones(5)
    with MemoryMeter(inputs=a) as meter:
        out = torch.empty(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.add(a, a, out=out)
    assert split(meter.report(), inputs=5, activations=5)


def test_an_unnamed_tensor_counts_as_input_from_its_first_use_and_once_when_named(split):
    x = torch.ones(7)
    assert split(measure_step(lambda: x + 1), inputs=7, activations=7)
    assert split(measure_step(lambda: x + 1, inputs={"a": [x], "b": (x.view(7, 1), 3)}), inputs=7, activations=7)
    assert split(measure_step(lambda: None, inputs=x), inputs=7)


def test_only_the_device_asked_for_counts_and_meta_tensors_own_nothing():
    assert measure_step(lambda: torch.ones(7), device="cpu").peak_bytes == 28
    assert measure_step(lambda: torch.ones(7), device="cuda").peak_bytes == 0
    assert measure_step(lambda: torch.ones(7, device="meta") + 1).peak_bytes == 0


def test_constants_and_arrays_made_in_the_step_count_once(split):
    assert split(measure_step(lambda: torch.tensor([1.0, 2.0, 3.0])), activations=3)
    assert split(measure_step(lambda: torch.from_numpy(torch.ones(3).numpy() * 2)), activations=3)


def test_the_split_is_that_of_the_first_moment_of_the_peak_whatever_happens_later(split):
    x = torch.ones(6)
    with MemoryMeter(inputs=x) as meter:
        made = torch.ones(4)
        made.untyped_storage().resize_(0)  # no longer what it was at the peak
        with meter.region(Category.HEADS):
            again = torch.ones(4)  # as much once more
        del made, again
        assert split(meter.report(), inputs=6, activations=4)
        x.untyped_storage().resize_(0)
    assert split(meter.report(), inputs=6, activations=4)
    assert meter.report().end_bytes == 0


def test_an_operator_that_returns_nothing_but_grows_its_targets_is_seen(split):
    a, b = torch.ones(3), torch.ones(4)
    with MemoryMeter(inputs=(a, b)) as meter:
        out = [torch.empty(0), torch.empty(0)]
        torch.ops.aten._foreach_neg.out([a, b], out=out)
    assert split(meter.report(), inputs=7, activations=7)
