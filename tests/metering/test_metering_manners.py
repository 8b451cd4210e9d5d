"""A meter changes nothing, leaves nothing behind, and takes unusual tensors."""

import contextlib

import pytest
import torch
from torch import Tensor, nn

from modulewise.errors import ModulewiseError
from modulewise.metering import MemoryMeter, measure_step

FLOAT = 4  # bytes of a float32


def leftovers(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[object]:
    hooks = [weight._post_accumulate_grad_hooks for weight in model.parameters()]
    for module in model.modules():
        hooks += [module._forward_hooks, module._forward_pre_hooks, module._forward_hooks_always_called]
    hooks += [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    hooks += [torch.utils._python_dispatch._get_current_dispatch_mode_stack(), "resize_" in vars(torch.UntypedStorage)]
    return [hook for hook in hooks if hook]


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_removed_on_exit_even_after_an_exception(fails, two_layers):
    model, x = two_layers
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with contextlib.suppress(ZeroDivisionError), MemoryMeter(heads=[model], optimizers=[optimizer]) as meter:
        assert len(leftovers(model, optimizer)) == 2 + 3 + 2 + 2
        model(x)
        if fails:
            raise ZeroDivisionError
    assert leftovers(model, optimizer) == []
    done = meter.report()
    model(torch.ones(1000, 3)).sum().backward()
    assert meter.report() == done


def test_nothing_is_left_behind_when_entering_fails():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(AttributeError), MemoryMeter(heads=[model], optimizers=[optimizer, None]):
        pass
    assert leftovers(model, optimizer) == []


def test_a_measured_step_trains_bit_for_bit_as_an_unmeasured_one():
    weights = []
    for measured in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        x = torch.randn(4, 3, 16, 16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            with MemoryMeter(model=model, optimizers=[optimizer]) if measured else contextlib.nullcontext():
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
        weights.append(torch.cat([tensor.detach().flatten() for tensor in model.parameters()]))
    assert torch.equal(*weights)


def test_meters_nest_and_a_meter_can_run_again_but_not_twice_at_once():
    outer, inner = MemoryMeter(), MemoryMeter()
    with outer:
        kept = torch.ones(3)
        with inner:
            torch.ones(4)
            with pytest.raises(ModulewiseError, match="already running"):
                outer.__enter__()
    assert (outer.report().peak_bytes, inner.report().peak_bytes) == (28, 16)
    with inner:
        del kept
    assert inner.report().peak_bytes == 0
    with pytest.raises(ModulewiseError, match="has not run"):
        MemoryMeter().report()


class Pair(Tensor):
    """A wrapper subclass: two inner tensors, and an outer shell that owns no memory."""

    @staticmethod
    def __new__(cls, a, b):
        return Tensor._make_wrapper_subclass(cls, a.shape, dtype=a.dtype, requires_grad=a.requires_grad)

    def __init__(self, a, b):
        self.a, self.b = a, b

    def __tensor_flatten__(self):
        return ["a", "b"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        a, b = (torch.utils._pytree.tree_map_only(cls, lambda t, i=i: getattr(t, i), args) for i in "ab")
        return cls(func(*a, **(kwargs or {})), func(*b, **(kwargs or {})))


def test_wrapper_subclasses_count_their_inner_tensors(split):
    pair = Pair(torch.ones(5), torch.ones(5))
    assert split(measure_step(lambda: pair + 1, inputs=pair), inputs=10, activations=10)


def test_sparse_gradients_count_indices_and_values():
    table, rows = nn.Embedding(10, 4, sparse=True), torch.tensor([1, 2, 2])
    report = measure_step(lambda: table(rows).sum().backward(), model=table, inputs=rows)
    gradient = 3 * 8 + 3 * 4 * FLOAT  # the indices are the batch's own storage, or a copy of it
    assert report.end_bytes - (40 * FLOAT + 3 * 8) in (gradient, gradient - 3 * 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_allocators_figures_enclose_the_live_tensors(split, two_layers):
    model, x = two_layers
    model, x = model.cuda(), x.cuda()
    report = measure_step(lambda: model(x).sum().backward(), model=model, inputs=x, device="cuda")
    assert split(report, parameters=35, inputs=15, gradients=14, activations=3 * 35 + 2)
    assert report.peak_bytes <= report.allocated_bytes <= report.reserved_bytes
