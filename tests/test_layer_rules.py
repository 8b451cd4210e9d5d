"""Feedback weights: tied to the weight they are the chain rule, untied they are B, and they leave no trace."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from literal_layers import LITERAL, literal_below
from literal_oracles import draw
from small_networks import seeded
from torch import Tensor, nn

from modulewise.errors import CheckpointError, MethodError
from modulewise.layer_rules import FeedbackWeights, RuleReport, angle

LAYERS = {
    "linear 1-d": (lambda: nn.Linear(5, 4), (5,)),
    "linear 2-d": (lambda: nn.Linear(5, 4), (7, 5)),
    "linear 3-d": (lambda: nn.Linear(5, 4, bias=False), (7, 3, 5)),
    "conv 1-d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
    "conv 2-d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=(1, 0)), (2, 4, 9, 8)),
    "conv 2-d without a batch": (lambda: nn.Conv2d(4, 6, 3), (4, 9, 8)),
    "conv 2-d dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2, bias=False), (2, 4, 9, 8)),
    "conv 2-d grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 9, 8)),
    "conv 2-d depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, padding="valid"), (2, 4, 9, 8)),
    "conv 3-d": (lambda: nn.Conv3d(2, 3, 3, padding=1), (2, 2, 4, 5, 6)),
    "conv same": (lambda: nn.Conv2d(4, 6, 3, padding="same", dilation=2), (2, 4, 9, 8)),
    "conv same, even kernel": (lambda: nn.Conv2d(4, 6, (2, 4), padding="same"), (2, 4, 9, 8)),
    "conv circular": (lambda: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="circular"), (2, 4, 9, 8)),
    "transposed 1-d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 5)),
    "transposed 2-d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=(2, 1), groups=2, bias=False), (2, 4, 5, 4)),
    "transposed 2-d without a batch": (lambda: nn.ConvTranspose2d(4, 6, 2, dilation=2), (4, 5, 4)),
    "transposed 3-d": (lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 2, 3, 2, 4)),
    "conv reflect": (lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="reflect"), (2, 4, 9)),
}


def live_weight(name: str, module: nn.Module) -> Tensor:
    return module.weight


def pass_through(module: nn.Module, x: Tensor, rule: FeedbackWeights | None) -> list[Tensor]:
    """Output and gradients of a weighted sum of outputs, with or without a rule."""
    module.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    if rule is None:
        y = module(x)
    else:
        with rule.installed(module.named_modules()):
            y = module(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, *[p.grad for p in module.parameters() if p.grad is not None]]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", LAYERS)
def test_tied_to_the_live_weight_it_is_the_chain_rule_bit_for_bit(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    expected = pass_through(layer, x, None)
    found = pass_through(layer, x, FeedbackWeights(seed=0, feedback=live_weight))
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        assert torch.equal(left, right)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", LAYERS)
def test_untied_the_error_passes_by_b_and_weights_learn_by_the_chain_rule(name):
    """Oracle: the same layer with B for its weight gives the gradient of x; the layer itself those of W and b."""
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    rule = FeedbackWeights(seed=0)
    y, below, *own = pass_through(layer, x, rule)
    plain_y, plain_below, *plain_own = pass_through(layer, x, None)
    with_b = copy.deepcopy(layer)
    with torch.no_grad():
        with_b.weight.copy_(rule.state_dict()[""])
    assert torch.equal(y, plain_y)
    assert torch.equal(below, pass_through(with_b, x, None)[1])
    assert not torch.allclose(below, plain_below)
    assert len(own) == len(plain_own) > 0
    assert all(torch.equal(a, b) for a, b in zip(own, plain_own, strict=True))


def test_a_network_of_two_layers_follows_the_closed_form():
    """delta_1 = (delta_2 B_2) * tanh', not (delta_2 W_2) * tanh'."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, rule = torch.randn(6, 4, dtype=torch.float64), FeedbackWeights(seed=1)
    with rule.installed(net.named_modules()):
        out = net(x)
    out.square().sum().backward()
    h = torch.tanh(x @ net[0].weight.T + net[0].bias)
    delta = (2 * out @ rule.state_dict()["2"] * (1 - h.square())).detach()
    assert torch.allclose(net[0].weight.grad, delta.T @ x, rtol=1e-12, atol=1e-12)
    assert torch.allclose(net[2].weight.grad, (2 * out).T @ h, rtol=1e-12, atol=1e-12)


def test_an_in_place_relu_may_follow():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3), nn.ReLU(inplace=True))
    x = torch.randn(2, 3, 8, 8)
    expected = pass_through(net, x, None)
    found = pass_through(net, x, FeedbackWeights(seed=0, feedback=live_weight))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_modules_are_as_they_were_after_the_block_and_after_an_error():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Conv1d(4, 4, 1))
    net[2].forward = net[2].forward  # an instance's own forward must survive
    before = [dict(module.__dict__) for module in net.modules()]
    rule = FeedbackWeights(seed=0)
    with rule.installed(net.named_modules()):
        assert "forward" in net[0].__dict__
        assert net[2].__dict__["forward"] is not before[3]["forward"]
    assert [module.__dict__ for module in net.modules()] == before

    def fail() -> None:
        with rule.installed(net.named_modules()):
            raise KeyError("inside")

    with pytest.raises(KeyError):
        fail()
    assert [module.__dict__ for module in net.modules()] == before


def test_an_error_while_installing_leaves_no_shadow():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    rule = FeedbackWeights(seed=0)
    rule.load_state_dict({"1": torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match=r"'1' is \(2, 2\), its layer's \(3, 4\)"):
        rule.installed(net.named_modules()).__enter__()
    assert not any("forward" in module.__dict__ for module in net.modules())


def test_a_module_under_two_names_is_shadowed_once():
    layer = nn.Linear(3, 3)
    rule = FeedbackWeights(seed=0)
    x = torch.ones(1, 3, requires_grad=True)
    with rule.installed([("a", layer), ("b", layer)]):
        layer(x).sum().backward()
    assert list(rule.state_dict()) == ["a"]
    assert "forward" not in layer.__dict__
    assert torch.equal(x.grad, torch.ones(1, 3) @ rule.state_dict()["a"])


def test_inputs_without_a_gradient_take_the_plain_forward():
    layer, rule = nn.Linear(3, 2), FeedbackWeights(seed=0)
    with rule.installed([("layer", layer)]):
        of_data = layer(torch.ones(1, 3))
        with torch.no_grad():
            without_graph = layer(torch.ones(1, 3, requires_grad=True))
    assert type(of_data.grad_fn).__name__ == "AddmmBackward0"
    assert without_graph.grad_fn is None


def test_under_autocast_tied_is_the_chain_rule_and_untied_keeps_types():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))
    x = torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        expected = pass_through(net, x, None)
        tied = pass_through(net, x, FeedbackWeights(seed=0, feedback=live_weight))
        free = pass_through(net, x, FeedbackWeights(seed=0))
    assert expected[0].dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(tied, expected, strict=True))
    assert [g.dtype for g in free] == [g.dtype for g in expected]
    assert not torch.equal(free[1], expected[1])


class Standardised(nn.Linear):
    """A linear layer whose function is not its weight's."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight / self.weight.norm(), self.bias)


def test_report_names_what_is_converted_and_what_keeps_the_chain_rule_and_why():
    net = nn.ModuleDict(
        {
            "linear": nn.Linear(4, 4),
            "conv": nn.Conv3d(1, 1, 1),
            "up": nn.ConvTranspose2d(1, 1, 2),
            "norm": nn.LayerNorm(4),
            "attention": nn.MultiheadAttention(4, 2),
            "recurrent": nn.GRU(4, 4),
            "own": Standardised(4, 4),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "relu": nn.ReLU(),
        }
    )
    net["again"] = net["linear"]
    report = FeedbackWeights(seed=0).report(net.named_modules(remove_duplicate=False))
    assert report.converted == ("linear", "conv", "up")
    assert report.left == {
        "norm": "LayerNorm is neither linear nor a convolution",
        "attention": "its projections are packed into one operation; attention made of nn.Linear is converted",
        "attention.out_proj": "attention computes with its weight itself, this module is never called",
        "recurrent": "GRU is neither linear nor a convolution",
        "own": "Standardised is a subclass of a layer, which may compute something else",
        "normed": "ParametrizedLinear is a subclass of a layer, which may compute something else",
        "normed.parametrizations.weight": "ParametrizationList is neither linear nor a convolution",
    }
    assert str(RuleReport(("a", "b"), {"": "why"})) == "converted 2, left 1\n  the model: why"


def test_what_the_report_leaves_keeps_the_chain_rule():
    torch.manual_seed(0)
    layer, x = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True), torch.randn(2, 3, 8)
    expected = pass_through(layer.self_attn.out_proj, x, None)
    assert torch.equal(expected[1], pass_through(layer.self_attn.out_proj, x, FeedbackWeights(seed=0))[1])
    own = Standardised(8, 4)
    assert torch.equal(pass_through(own, x, None)[1], pass_through(own, x, FeedbackWeights(seed=0))[1])
    rule = FeedbackWeights(seed=0)
    pass_through(layer, x, rule)
    assert set(rule.state_dict()) == set(rule.report(layer.named_modules()).converted) == {"linear1", "linear2"}


def drawn(rule: FeedbackWeights, name: str, layer: nn.Module) -> Tensor:
    with rule.installed([(name, layer)]):
        return rule.state_dict()[name]


def test_b_depends_on_seed_and_name_alone_and_is_drawn_once():
    layer = nn.Linear(4, 3)
    state = torch.get_rng_state()
    first = drawn(FeedbackWeights(seed=0), "a", layer)
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(3)
    again = FeedbackWeights(seed=0)
    assert torch.equal(drawn(again, "a", nn.Linear(4, 3)), first)
    assert torch.equal(drawn(again, "a", layer), first)
    assert not torch.equal(drawn(again, "b", layer), first)
    assert not torch.equal(drawn(FeedbackWeights(seed=1), "a", layer), first)


def test_b_is_uniform_like_initial_weights_times_scale():
    """U(-a, a), a = 2 / sqrt(fan_in); a grouped convolution's fan-in counts its own group."""
    layer = nn.Conv2d(64, 128, 3, groups=2)
    b = drawn(FeedbackWeights(seed=0, scale=2.0), "conv", layer)
    a = 2.0 / (32 * 9) ** 0.5
    assert b.shape == layer.weight.shape
    assert 0.99 * a < b.abs().max() <= a
    assert abs(b.std().item() / (a / 3**0.5) - 1) < 0.02


def test_a_checkpoint_brings_the_same_errors_back():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(6, 4)
    rule = FeedbackWeights(seed=0)
    expected = pass_through(net, x, rule)
    other = FeedbackWeights(seed=9)
    assert not torch.equal(pass_through(net, x, other)[1], expected[1])
    other.load_state_dict(rule.state_dict())
    assert torch.equal(pass_through(net, x, other)[1], expected[1])
    assert list(other.state_dict()) == ["0", "2"]


def test_b_follows_the_type_of_its_layer():
    layer, rule = nn.Linear(3, 2), FeedbackWeights(seed=0)
    drawn(rule, "layer", layer)
    assert drawn(rule, "layer", layer.double()).dtype == torch.float64


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_scale_that_is_not_positive_is_refused(scale):
    with pytest.raises(MethodError, match="give a number above 0"):
        FeedbackWeights(seed=0, scale=scale)


@pytest.mark.parametrize("name", LITERAL)
def test_the_error_below_is_the_literal_sum_over_indices(name):
    """Oracle: loops over samples, channels, places and taps in float64, with B for the weight."""
    make, shape = LITERAL[name]
    layer, x = seeded(make).double(), draw(*shape)
    rule = FeedbackWeights(seed=0)
    y, below, *_ = pass_through(layer, x, rule)
    error = torch.linspace(-1, 1, y.numel()).double().view_as(y)
    expected = literal_below(layer, error, rule.state_dict()[""], x.shape)
    assert expected.abs().max() > 0
    assert torch.allclose(below, expected, rtol=1e-10, atol=1e-12)


def test_a_transposed_convolution_asked_for_a_size_passes_the_error_back_by_b():
    layer, x = seeded(lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1)), draw(2, 2, 3, 4).float()
    plain, found = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(plain, [6, 7]).sum().backward()
    with FeedbackWeights(seed=0, feedback=live_weight).installed([("up", layer)]):
        layer(found, output_size=[6, 7]).sum().backward()
    assert torch.equal(found.grad, plain.grad)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_hooks_of_a_layer_run_and_an_old_style_weight_norm_keeps_its_own_gradients():
    layer, x = nn.utils.weight_norm(seeded(lambda: nn.Linear(4, 3))), draw(5, 4).float()
    seen = []
    layer.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    expected = pass_through(layer, x, None)
    found = pass_through(layer, x, FeedbackWeights(seed=0, feedback=live_weight))
    assert len(seen) == 2
    assert len(found) == 5  # the value, and gradients of x, bias, g and v
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_angles_are_those_of_the_cosine():
    a = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert [round(float(angle(a, b)), 4) for b in (a, -2 * a, a.flip(1), a + a.flip(1))] == [0.0, 180.0, 90.0, 45.0]
    assert angle(a, torch.zeros(2, 2)).isnan()
