"""Sign-concordant, mirrored and following feedback weights against loops, closed forms and their expectation."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from literal_layers import LITERAL, literal_below
from literal_oracles import draw
from small_networks import seeded
from torch import Tensor, nn

from modulewise.errors import MethodError
from modulewise.layer_rules import (
    FollowingWeights,
    MirroredWeights,
    SignFeedback,
    SignVariant,
    WeightRule,
    angle,
    mirror_increment,
)
from modulewise.layer_rules.passing import geometry_of

BOTH = pytest.mark.parametrize("variant", [SignVariant.BRSF, SignVariant.FRSF])


def below(layer: nn.Module, x: Tensor, rule: WeightRule | None, error: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The error at the layer's input for one at its output, with a rule or without, and that one."""
    x = x.clone().requires_grad_()
    if rule is None:
        y = layer(x)
    else:
        with rule.installed([("layer", layer)]):
            y = layer(x)
    error = torch.linspace(-1, 1, y.numel()).to(y).view_as(y) if error is None else error
    y.backward(error)
    assert x.grad is not None
    return x.grad, error


def fan_in(weight: Tensor) -> int:
    return weight.numel() // weight.shape[0]


class TestSigns:
    @pytest.mark.parametrize("variant", list(SignVariant))
    @pytest.mark.parametrize("name", LITERAL)
    def test_the_error_passes_back_by_magnitudes_with_the_sign_of_the_weight(self, name, variant):
        """Oracle: the loop over indices with B built entry by entry; M of the random variants is the rule's state."""
        make, shape = LITERAL[name]
        layer, x = seeded(make).double(), draw(*shape)
        rule = SignFeedback(seed=0, variant=variant, scale=2.0)
        found, error = below(layer, x, rule)
        w, b = layer.weight.detach(), torch.zeros_like(layer.weight.detach())
        for at in product(*map(range, w.shape)):
            magnitude = 2.0 / (3 * fan_in(w)) ** 0.5
            if variant is not SignVariant.USF:
                magnitude = abs(float(rule.state_dict()["layer"][at]))
            b[at] = magnitude * (1 if w[at] > 0 else -1)
        assert torch.allclose(found, literal_below(layer, error, b, x.shape), rtol=1e-10, atol=1e-13)

    def test_where_all_weights_have_one_magnitude_usf_is_the_chain_rules_direction(self):
        layer, x = seeded(lambda: nn.Conv2d(4, 6, 3, groups=2)).double(), draw(2, 4, 5, 5)
        with torch.no_grad():
            layer.weight.copy_(0.3 * layer.weight.sign())
        found, error = below(layer, x, SignFeedback(seed=0))
        factor = 1 / (3 * fan_in(layer.weight)) ** 0.5 / 0.3
        assert torch.allclose(found, factor * below(layer, x, None, error)[0], rtol=1e-12, atol=1e-14)

    def test_signs_are_those_of_the_weight_now_and_zero_carries_nothing(self):
        layer, rule = seeded(lambda: nn.Linear(3, 2)), SignFeedback(seed=0, variant=SignVariant.FRSF)
        before = rule.weight("layer", layer)
        with torch.no_grad():
            layer.weight.neg_()
            layer.weight[0, 0] = 0
        after = rule.weight("layer", layer)
        assert after[0, 0] == 0
        assert torch.equal(after.flatten()[1:], -before.flatten()[1:])

    @BOTH
    def test_magnitudes_have_the_mean_square_of_initial_weights_times_scale(self, variant):
        layer, rule = nn.Linear(300, 400), SignFeedback(seed=0, variant=variant, scale=3.0)
        expected = 9.0 / (3 * 300)
        for _ in range(2):
            b = rule.weight("layer", layer)
            assert abs(b.square().mean().item() / expected - 1) < 0.02
            assert b.abs().max() <= 3.0 / 300**0.5
            rule.learn([("layer", layer)])
        assert torch.allclose(
            SignFeedback(seed=0, scale=3.0).weight("layer", layer).square(), torch.tensor(expected), rtol=1e-5
        )

    def test_brsf_draws_anew_when_it_learns_and_frsf_never(self):
        layer = seeded(lambda: nn.Linear(3, 2))
        for variant in SignVariant:
            rule = SignFeedback(seed=0, variant=variant)
            first, again = rule.weight("layer", layer), rule.weight("layer", layer)
            torch.manual_seed(3)
            rule.learn([("layer", layer)])
            second = rule.weight("layer", layer)
            torch.manual_seed(3)
            rule.learn([("layer", layer)])
            assert torch.equal(first, again), "one batch has one draw, however often the layer runs"
            assert torch.equal(first, second) == (variant is not SignVariant.BRSF)
            assert torch.equal(rule.weight("layer", layer), second), "the draw is the generator's"

    @BOTH
    def test_a_state_brings_the_magnitudes_back(self, variant):
        layer, rule, other = nn.Linear(3, 2), SignFeedback(seed=0, variant=variant), SignFeedback(seed=9)
        rule.weight("layer", layer)
        rule.learn([("layer", layer)])
        other = SignFeedback(seed=9, variant=variant)
        other.load_state_dict(copy.deepcopy(rule.state_dict()))
        assert torch.equal(other.weight("layer", layer), rule.weight("layer", layer))
        assert SignFeedback(seed=0).state_dict() == {}

    @pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
    def test_a_scale_that_is_not_positive_is_refused(self, scale):
        with pytest.raises(MethodError, match="give a number above 0"):
            SignFeedback(seed=0, scale=scale)


NOISE = {
    "linear": (lambda: nn.Linear(4, 3), (5, 4)),
    "conv": (lambda: nn.Conv2d(2, 3, (2, 3), stride=2, padding=1), (5, 2, 2, 3)),
    "conv with groups": (lambda: nn.Conv2d(4, 6, 2, groups=2, padding_mode="reflect", padding=1), (5, 4, 2, 2)),
    "conv 1-d": (lambda: nn.Conv1d(2, 3, 2, dilation=2), (5, 2, 2)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 2, groups=2, stride=2), (5, 4, 1, 1)),
}


def literal_increment(layer: nn.Module, noise: Tensor) -> Tensor:
    """1/n sum_n y_n xi_n^T with y_n = W xi_n, one product at a time; W sees the noise as one patch."""
    w = layer.weight.detach()
    increment = torch.zeros_like(w)
    groups = getattr(layer, "groups", 1)
    for sample in noise:
        if isinstance(layer, nn.ConvTranspose2d):
            for i, o, *tap in product(*map(range, w.shape)):
                group = i // (w.shape[0] // groups)
                members = range(group * w.shape[0] // groups, (group + 1) * w.shape[0] // groups)
                y = sum(float(w[(j, o, *tap)]) * float(sample[j].item()) for j in members)
                increment[(i, o, *tap)] += y * sample[i].item() / len(noise)
            continue
        for o in range(w.shape[0]):
            first = o // (w.shape[0] // groups) * w.shape[1]
            patch = sample[first : first + w.shape[1]]
            y = sum(float(w[(o, *at)]) * float(patch[at]) for at in product(*map(range, patch.shape)))
            for at in product(*map(range, patch.shape)):
                increment[(o, *at)] += y * patch[at] / len(noise)
    return increment


class TestMirror:
    @pytest.mark.parametrize("name", NOISE)
    def test_one_noise_phase_is_the_literal_correlation(self, name):
        """B <- (1 - decay) B + rate 1/n sum_n y_n xi_n^T, the noise drawn again from the same seed."""
        make, shape = NOISE[name]
        layer = seeded(make).double()
        rule = MirroredWeights(seed=0, rate=0.3, decay=0.1, samples=5, sigma=2.0)
        before = rule.weight("layer", layer)
        torch.manual_seed(4)
        noise = torch.empty(shape, dtype=torch.float64).normal_(std=2.0)
        torch.manual_seed(4)
        rule.learn([("layer", layer)])
        expected = 0.9 * before + 0.3 * literal_increment(layer, noise)
        assert torch.allclose(rule.weight("layer", layer), expected, rtol=1e-10, atol=1e-13)
        assert not torch.equal(expected, before)

    @pytest.mark.parametrize("make", [lambda: nn.Linear(6, 4), lambda: nn.Conv2d(2, 4, 2, groups=2)])
    def test_the_expected_increment_is_sigma_squared_times_the_weight(self, make):
        """Var of y_i xi_j for white noise is sigma^4 (|W_i|^2 + W_ij^2); 4.5 standard errors, n = 50 000."""
        layer, n, sigma = seeded(make).double(), 50_000, 1.5
        w = layer.weight.detach()
        shape = (n, 6) if isinstance(layer, nn.Linear) else (n, 2, 2, 2)
        noise = sigma * draw(*shape)
        found = mirror_increment(w, noise, geometry_of(layer))
        rows = w.flatten(1).square().sum(1).view(-1, *[1] * (w.dim() - 1))
        error = sigma**2 * ((rows + w.square()) / n).sqrt()
        assert ((found - sigma**2 * w).abs() < 4.5 * error).all()
        assert (sigma**2 * w.abs() > 10 * error).any(), "so many samples that W is seen"

    def test_the_angle_to_the_weight_falls_to_what_rate_and_samples_leave(self):
        """B -> W where decay is the rate; the rest is noise: an angle of about (fan_in rate / 2 n)^1/2."""
        layer = seeded(lambda: nn.Linear(20, 30)).double()
        rule = MirroredWeights(seed=0, rate=0.05, decay=0.05, samples=50)
        angles = []
        torch.manual_seed(0)
        for step in range(161):
            if step % 40 == 0:
                angles.append(float(angle(rule.weight("layer", layer), layer.weight)))
            rule.learn([("layer", layer)])
        expected = float(torch.rad2deg(torch.tensor((20 * 0.05 / 100) ** 0.5)))
        assert angles[0] > 75
        assert angles[0] > 2 * angles[1] > 2 * angles[2] - 2
        assert abs(angles[-1] / expected - 1) < 0.3

    def test_b_of_a_running_graph_stays_as_it_was(self):
        """The next noise phase makes a new B: a graph that holds the old one is differentiated with it."""
        layer, x = seeded(lambda: nn.Linear(3, 2)), torch.ones(1, 3, requires_grad=True)
        rule = MirroredWeights(seed=0, rate=0.3, decay=0.1, samples=4)
        b = rule.weight("layer", layer).clone()
        with rule.installed([("layer", layer)]):
            y = layer(x)
        rule.learn([("layer", layer)])
        y.sum().backward()
        assert torch.equal(x.grad, torch.ones(1, 2) @ b)
        assert not torch.equal(rule.weight("layer", layer), b)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"rate": 0.0},
            {"rate": float("nan")},
            {"decay": 1.0},
            {"decay": -0.1},
            {"samples": 0},
            {"sigma": 0.0},
            {"scale": -1.0},
        ],
        ids=str,
    )
    def test_numbers_out_of_range_are_refused(self, wrong):
        with pytest.raises(MethodError, match="give rate, sigma and scale above 0"):
            MirroredWeights(**{"seed": 0, "rate": 0.1, "decay": 0.1, "samples": 1, **wrong})


class TestFollowing:
    def test_errors_pass_back_by_b_and_b_receives_the_weights_gradient(self):
        layer, x = seeded(lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1)).double(), draw(2, 2, 5, 4)
        b = nn.Parameter(draw(*layer.weight.shape))
        rule = FollowingWeights({layer: b})
        found, error = below(layer, x, rule)
        assert torch.allclose(found, literal_below(layer, error, b.detach(), x.shape), rtol=1e-10, atol=1e-13)
        assert b.grad is None, "no gradient of its own"
        rule.learn([("layer", layer)])
        assert torch.equal(b.grad, layer.weight.grad)
        assert b.grad.data_ptr() != layer.weight.grad.data_ptr()
        rule.learn([("layer", layer)])
        assert torch.equal(b.grad, 2 * layer.weight.grad), "it is added to what is there"
        assert rule.state_dict() == {}

    def test_a_weight_without_a_gradient_leaves_b_alone(self):
        layer = nn.Linear(3, 2)
        b = nn.Parameter(torch.zeros(2, 3))
        FollowingWeights({layer: b}).learn([("layer", layer)])
        assert b.grad is None
