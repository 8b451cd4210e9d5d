"""Direct feedback alignment of every layer through the trainer: hand-written, scaled right, refused by name."""

from __future__ import annotations

import math

import pytest
import torch
from driven import Y, close, convolutional, images, moves, perceptron, rows, same, state, trainer
from torch import Tensor, nn
from torch.nn import functional

import modulewise as mw
from modulewise.checks import converted
from modulewise.errors import MethodError

M = mw.methods
METHOD = M.DirectFeedbackAlignment(outputs=3)


def matrices(trained: mw.Trainer) -> list[Tensor]:
    """B of h_1, h_2, h_3 of the perceptron cut at "0" and "1": a boundary's, an inner layer's, a boundary's."""
    lower, middle, _ = trained.objectives
    return [lower.feedback, middle.rule.state_dict()["1.2"], middle.feedback]


def by_hand(model: nn.Sequential, x: Tensor, y: Tensor, b: list[Tensor], e: Tensor | None = None) -> dict[str, Tensor]:
    """delta_l = (e B_l) * (1 - h_l^2), dW_l = delta_l^T h_{l-1}, for the network of four layers; no autograd."""
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        h = [x]
        for _, layer in layers[:-1]:
            h.append(torch.tanh(h[-1] @ layer.weight.T + layer.bias))
        output = h[-1] @ layers[-1][1].weight.T + layers[-1][1].bias
        top = (output.softmax(1) - functional.one_hot(y, 3)) / len(x)
        sent = top if e is None else e
        deltas = [(sent @ b_l) * (1 - h_l.square()) for b_l, h_l in zip(b, h[1:], strict=True)] + [top]
        found = {}
        for (name, _), delta, below in zip(layers, deltas, h, strict=False):
            found[f"{name}.weight"], found[f"{name}.bias"] = delta.T @ below, delta.sum(0)
    return found


def test_a_step_is_the_hand_written_perceptron():
    trained, twin = trainer(METHOD), perceptron()
    found = moves(trained, rows())
    close(found, by_hand(twin, rows(), Y, matrices(trained)))


def test_the_last_parts_layers_follow_the_output_error_too():
    """One part: every layer but the last follows a matrix of its own; the last the task loss."""
    trained, twin = trainer(METHOD, cuts=()), perceptron()
    found = moves(trained, rows())
    rule = trained.objectives[0].rule.state_dict()
    assert len(rule) == 3, "the input needs no error"
    close(found, by_hand(twin, rows(), Y, list(rule.values())))


def test_convolutions_have_matrices_as_well():
    """Oracle: autograd on every piece between two projections, in float64."""
    trained, twin = trainer(METHOD, convolutional()), convolutional()
    found = moves(trained, images())
    rule = trained.objectives[1].rule.state_dict()
    assert set(rule) == {"1.3"}
    h1 = twin[0](images())
    flat = twin[1][:3](h1.detach())
    h2 = twin[1][3:](flat.detach())
    output = twin[2](h2.detach())
    loss = functional.cross_entropy(output, Y)
    (e,) = torch.autograd.grad(loss, output, retain_graph=True)
    loss.backward()
    h2.backward(e @ trained.objectives[1].feedback)
    flat.backward((e @ rule["1.3"]).view_as(flat))
    h1.backward((e @ trained.objectives[0].feedback).view_as(h1))
    close(found, {name: p.grad for name, p in twin.named_parameters()})
    assert converted(trained).converted == ("0.0", "1.0", "1.3", "2")


def test_by_parts_alone_the_chain_rule_goes_through_the_layers():
    trained, twin = trainer(M.DirectFeedbackAlignment(outputs=3, layerwise=False)), perceptron()
    found = moves(trained, rows())
    h1 = twin[0](rows())
    h2 = twin[1](h1.detach())
    output = twin[2](h2.detach())
    loss = functional.cross_entropy(output, Y)
    (e,) = torch.autograd.grad(loss, output, retain_graph=True)
    loss.backward()
    h2.backward(e @ trained.objectives[1].feedback)
    h1.backward(e @ trained.objectives[0].feedback)
    close(found, {name: p.grad for name, p in twin.named_parameters()})
    assert all(o.rule is None for o in trained.objectives)


@pytest.mark.parametrize("cuts", [("0", "1"), ()], ids=["parts", "one part"])
def test_slices_and_a_gradient_scaler_reach_the_projected_signal(cuts):
    """What the whole batch moves in float32, slices move too, and half precision to its accuracy."""
    whole = moves(trainer(METHOD, cuts=cuts), rows())
    close(moves(trainer(METHOD, cuts=cuts, accumulate=3), rows()), whole)
    half = moves(trainer(METHOD, perceptron().float(), cuts=cuts, precision=torch.float16), rows().float())
    for name, expected in whole.items():
        assert (half[name] - expected).abs().max() < 0.02 * expected.abs().max(), name


def test_a_frozen_last_part_sends_its_error_all_the_same():
    model = perceptron()
    model[2].requires_grad_(False)
    twin, trained = perceptron(), trainer(METHOD, model)
    found = moves(trained, rows())
    expected = by_hand(twin, rows(), Y, matrices(trained))
    for name in ("0.0.weight", "1.0.weight", "1.2.bias"):
        assert torch.allclose(found[name], expected[name], rtol=1e-10, atol=1e-14)
    assert not found["2.weight"].any()


def test_the_signal_is_let_go_after_a_step():
    trained = trainer(METHOD)
    trained.step(rows(), Y)
    assert [o.rule._signal.now for o in trained.objectives] == [None] * 3


def test_saved_and_resumed_it_goes_on_bit_for_bit(tmp_path):
    first, second = trainer(METHOD), trainer(METHOD)
    first.step(rows(), Y)
    first.save(tmp_path)
    second.load(tmp_path)
    for trained in (first, second):
        trained.step(rows(1), Y)
    assert same(state(first), state(second))


class Folded(nn.Module):
    """A layer that sees two rows for every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.head = nn.Linear(6, 4), nn.Linear(2, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(torch.tanh(self.first(x)).view(-1, 2)).view(-1, 4))


def test_a_layer_whose_rows_are_no_samples_is_refused():
    partition = mw.Partition(nn.Sequential(Folded(), nn.Linear(3, 3)).double(), cuts=("0",), example=rows())
    trained = mw.Trainer(partition, METHOD, loss=functional.cross_entropy, optimizer=torch.optim.SGD)
    with pytest.raises(MethodError, match="16 rows for 8 samples"):
        trained.step(rows(), Y)


@pytest.mark.parametrize("wrong", [{"outputs": 0}, {"scale": 0.0}, {"scale": math.nan}], ids=str)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(MethodError, match="give outputs >= 1 and scale above 0"):
        M.DirectFeedbackAlignment(**{"outputs": 3, **wrong})


def test_a_part_without_layers_is_refused_and_the_way_out_is_named():
    model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3)).double()
    with pytest.raises(MethodError, match=r"part 1 has none of torch's own: 1 \(LayerNorm\).*layerwise=False"):
        trainer(METHOD, model)
    trainer(M.DirectFeedbackAlignment(outputs=3, layerwise=False), model).step(rows(), Y)
