"""Direct feedback alignment and feedback alignment against closed forms and autograd."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hand_driving import clear, drive, equal, gradients, objectives_of, sites
from torch import Tensor, nn

from modulewise.errors import MethodError
from modulewise.layer_rules import FeedbackWeights, projected_error
from modulewise.method import Family, Locality, Reach
from modulewise.methods.gradients import DirectFeedbackAlignment, FeedbackAlignment, SyntheticGradients
from modulewise.methods.reference import Backprop
from modulewise.objective import Role, Site
from modulewise.partition.boundary import Boundary


def mlp_parts() -> list[nn.Module]:
    torch.manual_seed(1)
    return [
        nn.Sequential(nn.Linear(6, 7), nn.Tanh()),
        nn.Sequential(nn.Linear(7, 5), nn.Tanh()),
        nn.Linear(5, 3),
    ]


def linear_parts() -> list[nn.Module]:
    torch.manual_seed(1)
    return [nn.Linear(6, 7).double(), nn.Linear(7, 5).double(), nn.Linear(5, 3).double()]


def batch(n: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(n, 6, dtype=dtype), torch.randint(0, 3, (n,))


def test_direct_feedback_alignment_is_the_closed_form():
    """Linear parts: dW_k = (e B_k)^T h_{k-1}, e = (softmax - onehot) / N."""
    parts, (x, y) = linear_parts(), batch(dtype=torch.float64)
    objectives = [
        o.double() for o in objectives_of(DirectFeedbackAlignment(outputs=3), sites(parts, x, F.cross_entropy))
    ]
    drive(parts, objectives, x, y)
    with torch.no_grad():
        h1 = parts[0](x)
        h2 = parts[1](h1)
        e = (parts[2](h2).softmax(1) - F.one_hot(y, 3)) / 8
        for part, below, error in (
            (parts[0], x, e @ objectives[0].feedback),
            (parts[1], h1, e @ objectives[1].feedback),
            (parts[2], h2, e),
        ):
            assert torch.allclose(part.weight.grad, error.T @ below, rtol=1e-10, atol=1e-14)
            assert torch.allclose(part.bias.grad, error.sum(0), rtol=1e-10, atol=1e-14)


def test_with_the_networks_jacobian_for_feedback_it_is_backpropagation():
    parts, (x, y) = linear_parts(), batch(dtype=torch.float64)
    at = sites(parts, x, F.cross_entropy)
    drive(parts, objectives_of(Backprop(), at), x, y)
    expected = gradients(parts)
    clear(parts)
    objectives = [o.double() for o in objectives_of(DirectFeedbackAlignment(outputs=3), at)]
    objectives[0].feedback = (parts[2].weight @ parts[1].weight).detach()
    objectives[1].feedback = parts[2].weight.detach()
    drive(parts, objectives, x, y)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-14) for a, b in zip(gradients(parts), expected, strict=True))


def test_any_batch_size_and_image_boundaries():
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 4, 3), nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 5))]
    objectives = objectives_of(
        DirectFeedbackAlignment(outputs=5, layerwise=False), sites(parts, torch.randn(4, 3, 8, 8), F.cross_entropy)
    )
    for n in (1, 4, 7):
        done = drive(parts, objectives, torch.randn(n, 3, 8, 8), torch.zeros(n, dtype=torch.long))
        assert done.signals[0].gradient.shape == (n, 4, 6, 6)


def test_the_error_goes_to_all_earlier_parts_and_only_from_the_last():
    parts, (x, y) = mlp_parts(), batch()
    done = drive(parts, objectives_of(DirectFeedbackAlignment(outputs=3), sites(parts, x, F.cross_entropy)), x, y)
    assert {k: sorted(sent) for k, sent in done.messages.items()} == {2: [0, 1], 1: [], 0: []}
    assert torch.equal(done.messages[2][0], done.messages[2][1])


def test_logits_inside_an_output_object_give_the_same_error():
    class Wrapped(nn.Linear):
        def forward(self, h: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=super().forward(h))

    parts, (x, y) = mlp_parts(), batch()
    method = DirectFeedbackAlignment(outputs=3)
    plain = drive(parts, objectives_of(method, sites(parts, x, F.cross_entropy)), x, y)
    wrapped = Wrapped(5, 3)
    wrapped.load_state_dict(parts[2].state_dict())
    parts = [*parts[:2], wrapped]
    at = sites(parts, x, lambda output, labels: F.cross_entropy(output.logits, labels))
    assert torch.equal(drive(parts, objectives_of(method, at), x, y).messages[2][0], plain.messages[2][0])


def test_outputs_without_a_tensor_and_wrong_sizes_are_refused():
    class Pair(nn.Linear):
        def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(h), h

    parts, (x, y) = [*mlp_parts()[:2], Pair(5, 3)], batch()
    at = sites(parts, x, lambda output, labels: F.cross_entropy(output[0], labels))
    with pytest.raises(MethodError, match="the model returned tuple"):
        drive(parts, objectives_of(DirectFeedbackAlignment(outputs=3), at), x, y)
    with pytest.raises(MethodError, match="3 outputs and 4 features"):
        projected_error(torch.zeros(2, 3), torch.zeros(5, 4), torch.zeros(2, 4))
    with pytest.raises(MethodError, match="outputs=0"):
        DirectFeedbackAlignment(outputs=0)


def test_feedback_keeps_the_errors_length_times_scale_and_is_a_buffer():
    torch.manual_seed(0)
    site = Site(0, 2, None, Boundary("cut", (4, 10000)), F.cross_entropy)
    objective = DirectFeedbackAlignment(outputs=10, scale=3.0).objective(site)
    e = torch.randn(5, 10)
    projected = projected_error(e, objective.feedback, torch.zeros(5, 10000))
    assert torch.allclose(projected.norm(dim=1) / e.norm(dim=1), torch.full((5,), 3.0), rtol=0.05)
    assert list(objective.state_dict()) == ["feedback"]
    assert not list(objective.parameters())


# Feedback alignment


def test_feedback_alignment_tied_to_live_weights_is_backpropagation_bit_for_bit():
    torch.manual_seed(0)
    parts = [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, groups=2)),
        nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(64, 6)),
        nn.Sequential(nn.Tanh(), nn.Linear(6, 3)),
    ]
    x, y = torch.randn(4, 3, 8, 8), torch.randint(0, 3, (4,))
    at = sites(parts, x, F.cross_entropy)
    drive(parts, objectives_of(Backprop(), at), x, y)
    expected = gradients(parts)
    clear(parts)
    tied = FeedbackAlignment(feedback=lambda name, module: module.weight)
    drive(parts, objectives_of(tied, at), x, y)
    assert equal(gradients(parts), expected)


def test_feedback_alignment_is_the_closed_form():
    """Linear parts: the error below part k is e B_k, e B_2 B_1 two below."""
    parts, (x, y) = linear_parts(), batch(dtype=torch.float64)
    objectives = objectives_of(FeedbackAlignment(), sites(parts, x, F.cross_entropy))
    done = drive(parts, objectives, x, y)
    b1, b2 = objectives[1].rule.state_dict()[""], objectives[2].rule.state_dict()[""]
    with torch.no_grad():
        e = (parts[2](parts[1](parts[0](x))).softmax(1) - F.one_hot(y, 3)) / 8
    assert torch.allclose(done.messages[2][1], e @ b2, rtol=1e-10)
    assert torch.allclose(done.messages[1][0], e @ b2 @ b1, rtol=1e-10)
    assert torch.allclose(parts[0].weight.grad, (e @ b2 @ b1).T @ x, rtol=1e-10)


def test_feedback_weights_belong_to_the_seed_of_construction():
    parts, (x, y) = mlp_parts(), batch()
    at = sites(parts, x, F.cross_entropy)

    def below(seed: int) -> Tensor:
        clear(parts)
        return drive(parts, objectives_of(FeedbackAlignment(), at, seed=seed), x, y).messages[1][0]

    assert torch.equal(below(0), below(0))
    assert not torch.equal(below(0), below(9))


def test_every_part_has_a_rule_of_its_own():
    objectives = objectives_of(FeedbackAlignment(scale=2.0), sites(mlp_parts(), torch.zeros(2, 6), F.cross_entropy))
    rules = [objective.rule for objective in objectives]
    assert all(isinstance(rule, FeedbackWeights) for rule in rules)
    assert len(set(map(id, rules))) == 3
    with pytest.raises(MethodError, match="above 0"):
        objectives_of(FeedbackAlignment(scale=0.0), sites(mlp_parts(), torch.zeros(2, 6), F.cross_entropy))


def test_families_localities_and_roles():
    methods = (SyntheticGradients(classes=3), DirectFeedbackAlignment(outputs=3), FeedbackAlignment())
    assert {method.family for method in methods} == {Family.GRADIENTS}
    assert [method.locality for method in methods] == [
        Locality(Reach.GRADIENTS),
        Locality(Reach.GRADIENTS),
        Locality(Reach.GLOBAL),
    ]
    at = sites(mlp_parts(), torch.zeros(2, 6), F.cross_entropy)
    assert methods[0].objective(at[0]).role is Role.FEEDBACK
    assert [o.hears for o in objectives_of(methods[0], at)] == [True, True, False]
