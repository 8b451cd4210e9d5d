"""Real models against the allocator's own trace and fake tensors; what belongs to heads."""

import contextlib
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode

from modulewise.metering import (
    Category,
    MemoryMeter,
    measure_step,
)

FLOAT = 4  # bytes of a float32


@pytest.mark.parametrize(
    "build",
    [lambda: [nn.Linear(16, 32), nn.Tanh()], lambda: [nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.Dropout(0.1)]],
)
def test_peak_equals_the_trace_of_the_cpu_allocator(build):
    """The profiler records every allocation and free; no kernel used here needs a workspace."""
    model, x, y = nn.Sequential(*build(), nn.Linear(32, 10)), torch.randn(24, 16), torch.zeros(24, dtype=torch.long)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step():
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    step()
    optimizer.zero_grad()
    before = measure_step(lambda: None, model=model, optimizers=[optimizer], inputs=(x, y)).peak_bytes
    report = measure_step(step, model=model, optimizers=[optimizer], inputs=(x, y))
    optimizer.zero_grad()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    trace = list(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda e: e.start_ns())))
    assert report.peak_bytes - before == max(trace)
    assert report.end_bytes - before == trace[-1]


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
        )

    def forward(self, x):
        return F.relu(x + self.body(x))


def residual_network() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(stem, Residual(8), Residual(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def attention() -> nn.Module:
    layer = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True)
    return nn.Sequential(nn.Flatten(2), nn.Linear(256, 12), layer, nn.Flatten(), nn.Linear(36, 10))


@pytest.mark.parametrize(("build", "half"), [(residual_network, False), (attention, False), (attention, True)])
def test_fake_tensors_measure_the_same_as_real_ones(build, half):
    reports = []
    for mode in (contextlib.nullcontext(), FakeTensorMode()):
        with mode:
            model, x, y = build(), torch.randn(4, 3, 16, 16), torch.zeros(4, dtype=torch.long)
            optimizer = torch.optim.AdamW(model.parameters())

            def step(model=model, x=x, y=y, optimizer=optimizer):
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half, cache_enabled=False):
                    loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()

            reports.append([measure_step(step, model=model, optimizers=[optimizer], inputs=(x, y)) for _ in range(2)])
    assert reports[0] == reports[1]
    for report in reports[0]:
        assert sum(report.at_peak.values()) == report.peak_bytes > report.end_bytes > 0


def test_everything_of_a_head_counts_under_heads(split):
    """Part W 2x3 on N = 50 samples, head V 4x2; the peak is in the head's relu, before any backward.

    x 150, h 100; in the head z 200 and relu(z) 200.
    """
    part, head = nn.Linear(3, 2, bias=False), nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU())
    x = torch.randn(50, 3)
    for tensor in (part.weight, head[0].weight):
        tensor.grad = torch.zeros_like(tensor)
    optimizer = torch.optim.SGD([*part.parameters(), *head.parameters()], lr=0.1, momentum=0.9)
    optimizer.step()
    with MemoryMeter(model=part, heads=[head], optimizers=[optimizer], inputs=x) as meter:
        head(part(x))
    assert split(meter.report(), parameters=6, gradients=6, optimizer=6, inputs=150, activations=100, heads=3 * 8 + 400)
    with MemoryMeter(model=part, heads=[head[0].weight], inputs=x) as meter:  # as bare tensors: no region
        head(part(x))
    assert split(meter.report(), parameters=6, gradients=6, inputs=150, activations=100 + 400, heads=2 * 8)


def test_gradients_and_state_that_a_head_gets_in_the_step_count_under_heads(split):
    head, x = nn.Linear(8, 5, bias=False), torch.ones(1, 8)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    report = measure_step(
        lambda: (head(x).sum().backward(), optimizer.step()), heads=[head], optimizers=[optimizer], inputs=x
    )
    # peak when the momentum is made: weight, gradient, momentum
    assert split(report, heads=120, inputs=8)


def test_a_region_names_what_is_made_in_it_and_ends_with_it_even_after_an_error(split):
    failing = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Unflatten(1, (7, 7)))
    with MemoryMeter(heads=[failing]) as meter:
        with meter.region(Category.HEADS):
            kept = [torch.ones(5)]
        with pytest.raises(RuntimeError), meter.region(Category.INPUTS):
            failing(torch.ones(4, 2))
        kept.append(torch.ones(100))
        del kept
    assert split(meter.report(), heads=6 + 5, activations=100)


def test_a_region_survives_a_head_whose_own_hook_fails_before_its_forward(split):
    def fail(*_):
        raise ZeroDivisionError

    head = nn.Identity()
    head.register_forward_pre_hook(fail)
    with MemoryMeter(heads=[head]) as meter:
        with meter.region(Category.INPUTS):
            with pytest.raises(ZeroDivisionError):
                head(torch.ones(2))
            kept = torch.ones(5)
        del kept
    assert split(meter.report(), inputs=5)


def test_a_tensor_of_model_and_head_counts_once_as_the_models(split):
    shared = nn.Linear(3, 3, bias=False)
    assert split(measure_step(lambda: None, model=shared, heads=[shared]), parameters=9)
    optimizer = torch.optim.SGD(shared.parameters(), lr=0.1, momentum=0.9)
    shared.weight.grad = torch.ones(3, 3)
    report = measure_step(optimizer.step, model=shared, heads=[shared], optimizers=[optimizer])
    assert split(report, parameters=9, gradients=9, optimizer=9)


def test_buffers_count_with_the_parameters():
    norm = nn.BatchNorm1d(4)
    assert measure_step(lambda: None, model=norm).at_peak[Category.PARAMETERS] == FLOAT * 16 + 8
