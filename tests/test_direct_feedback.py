"""A signal projected to the input of every layer: e B there, the chain rule in between, whatever comes from above."""

from __future__ import annotations

import copy

import pytest
import torch
from literal_oracles import draw
from small_networks import seeded
from torch import Tensor, nn

from modulewise.errors import CheckpointError, MethodError
from modulewise.layer_rules import DirectFeedback, projected_error

LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), (5, 4)),
    "linear on a sequence": (lambda: nn.Linear(3, 2), (5, 4, 3)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (5, 4, 6, 5)),
    "conv reflect": (lambda: nn.Conv1d(2, 3, 3, padding=2, padding_mode="reflect"), (5, 2, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 2, stride=2), (5, 2, 3, 2)),
}


def passed(net: nn.Module, x: Tensor, rule: DirectFeedback, e: Tensor, factor: float = 1.0) -> Tensor:
    """The error at the input of a network whose loss is the weighted sum of its outputs."""
    x = x.clone().requires_grad_()
    with rule.installed(net.named_modules()):
        y = net(x)
    loss = (y * torch.linspace(-1, 1, y.numel()).to(y).view_as(y)).sum()
    (factor * rule.announced(loss, e)).backward()
    rule.forget()
    assert x.grad is not None
    return x.grad


def literal(e: Tensor, b: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(e B)_nf = sum_j e_nj B_jf, one product at a time."""
    out = torch.zeros(len(e), b.shape[1], dtype=torch.float64)
    for n in range(len(e)):
        for f in range(b.shape[1]):
            out[n, f] = sum(e[n, j] * b[j, f] for j in range(b.shape[0]))
    return out.view(shape)


@pytest.mark.parametrize("name", LAYERS)
def test_the_error_below_a_layer_is_the_literal_product_and_its_own_gradients_are_the_chain_rules(name):
    make, shape = LAYERS[name]
    layer, x, e = seeded(make).double(), draw(*shape), draw(5, 3, seed=1)
    plain = copy.deepcopy(layer)
    rule = DirectFeedback(seed=0, elements=3)
    found = passed(layer, x, rule, e)
    y = plain(x)
    y.backward(torch.linspace(-1, 1, y.numel()).double().view_as(y))
    assert rule.state_dict()[""].shape == (3, x[0].numel())
    assert torch.allclose(found, literal(e, rule.state_dict()[""], shape), rtol=1e-10, atol=1e-14)
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(layer.parameters(), plain.parameters(), strict=True))


def test_between_two_layers_the_chain_rule_goes_on_from_the_nearest_projection():
    """A norm, an activation and a skip between two layers: autograd from e B at the upper layer's input on."""
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))).double()
    x, e, rule = draw(5, 4), draw(5, 3, seed=1), DirectFeedback(seed=0, elements=3)
    bottom = passed(net, x, rule, e)
    between = copy.deepcopy(net[:3])
    between(x).backward(e @ rule.state_dict()["3"])
    assert torch.equal(net[0].weight.grad, between[0].weight.grad)
    assert torch.equal(net[1].weight.grad, between[1].weight.grad)
    assert torch.allclose(bottom, e @ rule.state_dict()["0"], rtol=1e-12)


def test_errors_of_a_layer_and_of_a_skip_add_up():
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, h: Tensor) -> Tensor:
            return h + self.layer(h)

    net, x, e, rule = seeded(Skip).double(), draw(5, 4), draw(5, 3, seed=1), DirectFeedback(seed=0, elements=3)
    found = passed(net, x, rule, e)
    own = torch.linspace(-1, 1, 20).double().view(5, 4)
    assert torch.allclose(found, own + e @ rule.state_dict()["layer"], rtol=1e-12)


def test_what_multiplies_the_loss_multiplies_the_signal():
    """A gradient scaler, or the weight of a slice."""
    layer, x, e, rule = (
        seeded(lambda: nn.Linear(4, 3)),
        draw(5, 4).float(),
        draw(5, 3),
        DirectFeedback(seed=0, elements=3),
    )
    assert torch.allclose(passed(layer, x, rule, e.float(), 8.0), 8 * passed(layer, x, rule, e.float()), rtol=1e-6)


def test_matrices_keep_the_signals_length_times_scale_and_belong_to_seed_and_name():
    x, e = torch.zeros(5, 4000), draw(5, 10).float()
    layer = nn.Linear(4000, 2)
    rule = DirectFeedback(seed=0, elements=10, scale=3.0)
    found = passed(layer, x, rule, e)
    assert torch.allclose(found.norm(dim=1) / e.norm(dim=1), torch.full((5,), 3.0), rtol=0.1)
    again, other, named = (DirectFeedback(seed=s, elements=10, scale=3.0) for s in (0, 1, 0))
    state = torch.get_rng_state()
    assert torch.equal(passed(layer, x, again, e), found)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(passed(layer, x, other, e), found)
    assert not torch.equal(passed(nn.Sequential(layer), x, named, e), found)


def test_a_state_brings_matrices_back_and_one_of_another_model_is_refused():
    layer, x, e, rule = nn.Linear(4, 3), torch.zeros(5, 4), draw(5, 3).float(), DirectFeedback(seed=0, elements=3)
    expected = passed(layer, x, rule, e)
    other = DirectFeedback(seed=9, elements=3)
    other.load_state_dict(rule.state_dict())
    assert torch.equal(passed(layer, x, other, e), expected)
    with pytest.raises(CheckpointError, match=r"of '' is \(3, 4\), its layer's \(3, 6\)"):
        passed(nn.Linear(6, 3), torch.zeros(5, 6), other, e)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(MethodError, match="3 outputs and 4 features"):
        projected_error(torch.zeros(2, 3), torch.zeros(5, 4), torch.zeros(2, 4))
    with pytest.raises(MethodError, match="6 rows for 2 samples"):
        projected_error(torch.zeros(2, 3), torch.zeros(3, 4), torch.zeros(6, 4))
