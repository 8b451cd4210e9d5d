"""Difference target propagation against closed-form targets, autograd and literal loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hand_driving import clear, drive, equal, gradients, objectives_of, sites
from torch import Tensor, nn

from modulewise.errors import MethodError
from modulewise.method import Family, Locality, Reach
from modulewise.methods.reference import Backprop
from modulewise.methods.targets import DifferenceTargetPropagation
from modulewise.methods.targets.difference_target_propagation import difference_target, first_target
from modulewise.methods.targets.inverses import Inverse
from modulewise.objective import Role
from modulewise.partition.boundary import Boundary


def linear_parts(*, orthogonal: bool = False) -> list[nn.Module]:
    torch.manual_seed(1)
    parts = [nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)]
    parts = [part.double() for part in parts]
    if orthogonal:
        for part in parts[1:3]:
            nn.init.orthogonal_(part.weight)
    return parts


def tanh_parts() -> list[nn.Module]:
    torch.manual_seed(1)
    sizes = [(6, 7), (7, 5), (5, 4)]
    return [*[nn.Sequential(nn.Linear(*size), nn.Tanh()) for size in sizes], nn.Linear(4, 3)]


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(8, 6, dtype=dtype), torch.randint(0, 3, (8,))


class Exact(nn.Module):
    """The inverse of an invertible linear part."""

    def __init__(self, part: nn.Linear) -> None:
        super().__init__()
        self.part = [part]

    def forward(self, h: Tensor) -> Tensor:
        part = self.part[0]
        return torch.linalg.solve(part.weight, (h - part.bias).T).T.detach()


def test_with_exact_inverses_targets_are_the_inverse_images():
    """h_{k-1} + g(t) - g(h_k) = f^{-1}(t) where g = f^{-1}; the first target is h - step N dL/dh in closed form."""
    parts, (x, y) = linear_parts(), batch()
    method = DifferenceTargetPropagation(step_size=0.3, inverse=lambda site: Exact(parts[site.part]))
    done = drive(parts, objectives_of(method, sites(parts, x, F.cross_entropy)), x, y)
    with torch.no_grad():
        h3 = parts[2](parts[1](parts[0](x)))
        t3 = h3 - 0.3 * (parts[3](h3).softmax(1) - F.one_hot(y, 3)) @ parts[3].weight
        t2 = (t3 - parts[2].bias) @ parts[2].weight.inverse().T
        t1 = (t2 - parts[1].bias) @ parts[1].weight.inverse().T
    for found, expected in zip(
        (done.messages[3][2], done.messages[2][1], done.messages[1][0]), (t3, t2, t1), strict=True
    ):
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_with_orthogonal_weights_updates_are_backpropagation_times_twice_the_step():
    """W^{-1} = W^T: targets differ from activations by -step N times the true gradients, at every depth."""
    parts, (x, y) = linear_parts(orthogonal=True), batch()
    at = sites(parts, x, F.cross_entropy)
    drive(parts, objectives_of(Backprop(), at), x, y)
    expected = [g * (0.6 if i < 6 else 1.0) for i, g in enumerate(gradients(parts))]
    clear(parts)
    method = DifferenceTargetPropagation(step_size=0.3, inverse=lambda site: Exact(parts[site.part]))
    drive(parts, objectives_of(method, at), x, y)
    found = gradients(parts)
    assert len(found) == len(expected) == 8
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-13) for a, b in zip(found, expected, strict=True))


def test_two_parts_follow_the_true_gradient():
    """Half a step of target, twice the distance's slope: with step 1/2 the gradients are backpropagation's."""
    torch.manual_seed(0)
    parts, (x, y) = [nn.Sequential(nn.Linear(6, 7), nn.Tanh()).double(), nn.Linear(7, 3).double()], batch()
    at = sites(parts, x, F.cross_entropy)
    drive(parts, objectives_of(Backprop(), at), x, y)
    expected = gradients(parts)
    clear(parts)
    drive(parts, objectives_of(DifferenceTargetPropagation(step_size=0.5), at), x, y)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-15) for a, b in zip(gradients(parts), expected, strict=True))


def test_the_loss_is_the_loop():
    """1/N sum ||h - t||^2 + 1/N sum ||g(f(h_in + e)) - (h_in + e)||^2, element by element in float64."""
    parts, (x, y) = [part.double() for part in tanh_parts()], batch()
    objectives = [
        o.double() for o in objectives_of(DifferenceTargetPropagation(noise=0.2), sites(parts, x, F.cross_entropy))
    ]
    captured: list[Tensor] = []
    run = parts[1].forward
    parts[1].forward = lambda h: captured.append(h.detach().clone()) or run(h)  # type: ignore[method-assign]
    done = drive(parts, objectives, x, y)
    entered, noisy = captured
    h_out, target = run(entered), done.messages[2][1]
    back = objectives[1].inverse(run(noisy))
    total = 0.0
    for pairs in ((h_out, target), (back, noisy)):
        for n in range(8):
            for a, b in zip(pairs[0][n].tolist(), pairs[1][n].tolist(), strict=True):
                total += (a - b) ** 2 / 8
    assert done.signals[1].shown().item() == pytest.approx(total, rel=1e-12)
    assert 0.1 < (noisy - entered).std() < 0.3


def test_the_inverse_learns_alone():
    """The reconstruction reaches no weight of the part: its gradients are those of the target's distance."""
    parts, (x, y) = tanh_parts(), batch(torch.float32)
    objectives = objectives_of(DifferenceTargetPropagation(), sites(parts, x, F.cross_entropy))
    done = drive(parts, objectives, x, y)
    found = gradients(parts[1:2])
    assert all(p.grad is not None and p.grad.any() for o in objectives[1:3] for p in o.parameters())
    clear(parts)
    h_out = parts[1](done.contexts[1].h_in)
    ((h_out - done.messages[2][1]) ** 2).sum(1).mean().backward()
    assert equal(gradients(parts[1:2]), found)


def test_part_zero_and_the_last_have_no_inverse_and_messages_go_one_part_down():
    parts, (x, y) = tanh_parts(), batch(torch.float32)
    objectives = objectives_of(DifferenceTargetPropagation(), sites(parts, x, F.cross_entropy))
    assert [len(list(o.parameters())) > 0 for o in objectives] == [False, True, True, False]
    assert [o.waits for o in objectives] == [True, True, True, False]
    assert all(o.role is Role.FEEDBACK for o in objectives[:3])
    done = drive(parts, objectives, x, y)
    assert {k: list(sent) for k, sent in done.messages.items()} == {3: [2], 2: [1], 1: [0], 0: []}
    assert not any(t.requires_grad for sent in done.messages.values() for t in sent.values())


def test_messages_use_the_inverse_before_its_own_update():
    parts, (x, y) = tanh_parts(), batch(torch.float32)
    objectives = objectives_of(DifferenceTargetPropagation(), sites(parts, x, F.cross_entropy))
    done = drive(parts, objectives, x, y)
    context, g = done.contexts[2], objectives[2].inverse
    expected = difference_target(context.h_in, g(done.messages[3][2]), g(context.h_out))
    assert torch.equal(done.messages[2][1], expected.detach())


def test_one_part_is_plain_training():
    parts, (x, y) = [nn.Linear(6, 3).double()], batch()
    drive(parts, objectives_of(DifferenceTargetPropagation(), sites(parts, x, F.cross_entropy)), x, y)
    found = gradients(parts)
    clear(parts)
    F.cross_entropy(parts[0](x), y).backward()
    assert equal(found, gradients(parts))


def test_a_target_reached_above_asks_for_nothing_below():
    """The difference correction: whatever g is, t_k = h_k gives t_{k-1} = h_{k-1}."""
    h_in, g = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    assert torch.allclose(difference_target(h_in, g, g), h_in, rtol=1e-15, atol=1e-15)
    assert torch.equal(first_target(h_in, torch.zeros_like(h_in), step_size=0.3), h_in)


@pytest.mark.parametrize(
    ("input", "output", "axes"),
    [
        ((4, 6), (4, 9), (1, 1)),
        ((4, 3, 8, 8), (4, 6, 8, 8), (1, 1)),
        ((4, 3, 9, 7), (4, 6, 5, 4), (1, 1)),
        ((4, 8, 8, 3), (4, 4, 4, 6), (-1, -1)),
        ((4, 3, 8, 8), (4, 4, 4, 6), (1, -1)),
        ((4, 5, 6), (4, 5, 8), (-1, -1)),
        ((4, 5, 6), (4, 3, 8), (-1, -1)),
        ((4, 6, 5), (4, 8, 5), (1, 1)),
        ((4, 3, 4, 4), (4, 10), (1, 1)),
        ((4, 3, 4, 4), (4, 16, 5), (1, -1)),
    ],
)
def test_default_inverses_map_every_layout_back(input, output, axes):
    inverse = Inverse(Boundary("in", input, torch.float32, axes[0]), Boundary("out", output, torch.float32, axes[1]))
    for n in (4, 1):
        h = torch.randn(n, *output[1:])
        back = inverse(h)
        assert back.shape == (n, *input[1:])
        assert not torch.equal(back, inverse(h + 1))


def test_tokens_are_inverted_one_by_one():
    inverse = Inverse(Boundary("in", (1, 3, 4), torch.float32, -1), Boundary("out", (1, 3, 5), torch.float32, -1))
    h = torch.randn(1, 3, 5)
    moved = h.clone()
    moved[0, 1] += 1
    changed = inverse(moved) - inverse(h)
    assert changed[0, 1].any()
    assert not changed[0, [0, 2]].any()


def test_the_hidden_width_is_the_parts_input_or_as_given():
    site = sites(tanh_parts(), torch.zeros(2, 6), F.cross_entropy)[1]
    widths = [
        method.objective(site).inverse.layers[0].out_features
        for method in (DifferenceTargetPropagation(), DifferenceTargetPropagation(width=11))
    ]
    assert widths == [7, 11]


@pytest.mark.parametrize("arguments", [{"step_size": 0.0}, {"noise": -0.1}, {"width": 0}])
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(MethodError, match="give step_size > 0, noise >= 0, and width >= 1 or None"):
        DifferenceTargetPropagation(**arguments)


def test_family_and_locality():
    method = DifferenceTargetPropagation()
    assert method.family is Family.TARGETS
    assert method.locality == Locality(Reach.TARGETS)
