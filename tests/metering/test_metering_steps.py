"""Peaks of whole training steps, and their split by category, against arithmetic done by hand."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from modulewise.metering import (
    MemoryMeter,
    measure_step,
    saved_bytes,
)

FLOAT = 4  # bytes of a float32


def test_a_graph_kept_alive_is_seen_and_gone_after_del():
    x = torch.ones(5, 3, requires_grad=True)
    with MemoryMeter(inputs=x) as meter:
        loss = x.exp().sin().sum()  # exp saves its result, sin its argument (the same storage), sum nothing
        assert meter.report().end_bytes == FLOAT * (15 + 15 + 1)
        del loss
        assert meter.report().end_bytes == FLOAT * 15


class Doubled(torch.autograd.Function):
    """Saves a fresh tensor for the backward, and another one past autograd."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x * 2)
        ctx.own = x * 3
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0] * ctx.own


def test_a_custom_function_is_seen_with_all_it_keeps():
    x = torch.ones(6, requires_grad=True)
    with MemoryMeter(inputs=x) as meter:
        y = Doubled.apply(x)
        assert meter.report().end_bytes == FLOAT * (6 + 6 + 6 + 6)
        del y
    assert meter.report().end_bytes == FLOAT * 6


def test_two_layers_with_momentum_to_the_byte(split, two_layers):
    """y = relu(W2 relu(W1 x)), N = 5: x 15, W1 21, W2 14, hidden H = 35, output O = 10 elements.

    Forward, beyond x, W and momentum: z1; z1, a1 (2H = 70); a1; a1, z2; a1, z2, y (H + 2O = 55); loss 1.
    Backward (each relu saved its result, each linear its input; backward() holds the loss and its gradient, 2):
    relu 2: a1, y, gz2          H + 2O + 2       = 57
    linear 2: a1, gz2, gW2, ga1 2H + O + 14 + 2  = 96
    relu 1: a1, ga1, gz1, gW2   3H + 14 + 2      = 121   <- peak
    linear 1: gz1, gW1, gW2     H + 21 + 14 + 2  = 72
    """
    model, x = two_layers
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step():
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()

    def figures():
        return measure_step(step, model=model, optimizers=[optimizer], inputs=x)

    first = figures()  # no momentum yet: the step makes it in the end, with gradients 35 + 35 < 121
    assert split(first, parameters=35, inputs=15, gradients=14, activations=3 * 35 + 2)
    assert first.end_bytes == FLOAT * (35 + 15 + 35 + 35)
    later = figures()
    assert split(later, parameters=35, inputs=15, gradients=14, activations=3 * 35 + 2, optimizer=35)
    assert later.end_bytes == first.end_bytes


def test_a_peak_before_the_gradient_is_recognised_is_split_right(split):
    """One linear, N = 1: the peak is where W's gradient has just been made, before autograd puts it into .grad.

    Then live x 8, W 40, gradient 40, the loss 1 and its gradient 1.
    """
    model, x = nn.Linear(8, 5, bias=False), torch.ones(1, 8)
    report = measure_step(lambda: model(x).sum().backward(), model=model, inputs=x)
    assert split(report, parameters=40, gradients=40, inputs=8, activations=2)


def test_a_peak_before_the_optimiser_state_is_recognised_is_split_right(split):
    """Adam's first step: exp_avg and exp_avg_sq are made, used and only then known as state."""
    weight = nn.Parameter(torch.ones(10))
    weight.grad = torch.ones(10)
    optimizer = torch.optim.Adam([weight], foreach=False)
    report = measure_step(optimizer.step, model=[weight], optimizers=[optimizer])
    # exp_avg 10, exp_avg_sq 10 and the step count 1; the root of exp_avg_sq and its scaled copy are temporaries
    assert split(report, parameters=10, gradients=10, optimizer=21, activations=20)
    assert report.end_bytes == FLOAT * 41


def test_gradients_accumulate_in_place_and_those_set_by_hand_are_recognised(split):
    model, x = nn.Linear(8, 5, bias=False), torch.ones(1, 8)
    model(x).sum().backward()
    again = measure_step(lambda: model(x).sum().backward(), model=model, inputs=x)
    assert split(again, parameters=40, gradients=40, inputs=8, activations=40 + 2)
    model.weight.grad = None

    def by_hand():
        (model.weight.grad,) = torch.autograd.grad(model(x).sum(), [model.weight])

    assert split(measure_step(by_hand, model=model, inputs=x), parameters=40, gradients=40, inputs=8, activations=2)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_checkpointed_and_plain_chain_to_the_byte(checkpointed, split):
    """S = 3 segments of m = 3 (linear without bias, tanh); A elements an activation, W a weight, A > m W.

    The loss and its gradient, 2, live through the backward.
    Plain: every tanh saves its result a_l, and the next linear the same storage. Peak in the last linear's
    backward: a_1 .. a_{L-1}, its incoming and outgoing gradient, its weight's gradient: (L + 1) A + W + 2.
    Checkpointed: the forward keeps the inputs of segments 2 .. S. The peak is the rerun of segment S - 1, in its
    last tanh: inputs of segments 2 .. S - 1 (S - 2), the incoming gradient, the results of its first m - 1 tanhs,
    the last linear's output and the last tanh's: (S - 2 + 1 + m - 1 + 2) A = (S + m) A; and the m weight gradients
    of segment S. (In the rerun of segment S there is one input more, but no gradient yet: m W less.)
    """
    segments, layers, width, batch = 3, 3, 2, 16
    activation, weight, depth = batch * width, width * width, 9
    parts = nn.ModuleList(
        nn.Sequential(*(m for _ in range(layers) for m in (nn.Linear(width, width, bias=False), nn.Tanh())))
        for _ in range(segments)
    )
    x = torch.randn(batch, width)

    def step():
        h = x
        for part in parts:
            h = checkpoint(part, h, use_reentrant=False, preserve_rng_state=False) if checkpointed else part(h)
        loss = h.sum()
        del h
        loss.backward()

    report = measure_step(step, model=parts, inputs=x)
    if checkpointed:
        made = {"gradients": layers * weight, "activations": (segments + layers) * activation + 2}
    else:
        made = {"gradients": weight, "activations": (depth + 1) * activation + 2}
    assert split(report, parameters=depth * weight, inputs=activation, **made)


def test_saved_bytes_by_hand(two_layers):
    model, x = two_layers
    # x for linear 1; a1 for relu 1 and linear 2, once; y for relu 2
    assert saved_bytes(lambda: model(x), parameters=model.parameters()) == FLOAT * (15 + 35 + 10)
    # without the exclusion: W2, which carries the error on (W1 carries it to nobody)
    assert saved_bytes(lambda: model(x)) == FLOAT * (15 + 35 + 10 + 14)
    assert saved_bytes(lambda: model(x).detach()) == 0
    with torch.no_grad():
        assert saved_bytes(lambda: model(x)) == 0
