"""Direct random target projection through the trainer: hand-written, strictly local, nothing waits."""

from __future__ import annotations

import math

import pytest
import torch
from driven import Y, close, convolutional, images, moves, perceptron, rows, same, state, trainer
from test_direct_feedback_alignment import by_hand, matrices
from torch import Tensor, nn
from torch.nn import functional

import modulewise as mw
from modulewise.errors import MethodError
from modulewise.methods.gradients.drtp import target_signal

M = mw.methods
METHOD = M.DRTP(classes=3)


def literal_targets(y: Tensor) -> Tensor:
    """onehot(y) / N, entry by entry."""
    return torch.tensor([[1 / len(y) if int(label) == c else 0.0 for c in range(3)] for label in y]).double()


def test_a_step_is_the_hand_written_perceptron():
    """delta_l = (onehot(y) B_l / N) * (1 - h_l^2), sample by sample in the first layer; the top by the task loss."""
    trained, twin = trainer(METHOD), perceptron()
    found = moves(trained, rows())
    b = matrices(trained)
    expected = by_hand(twin, rows(), Y, b, torch.eye(3).double()[Y] / 8)
    close(found, expected)
    bottom, layer = torch.zeros(7, 6).double(), twin[0][0]
    for x, label in zip(rows(), Y, strict=True):
        h = torch.tanh(layer.weight.detach() @ x + layer.bias.detach())
        for i in range(7):
            bottom[i] += b[0][label, i] / 8 * (1 - h[i] ** 2) * x
    assert torch.allclose(found["0.0.weight"], bottom, rtol=1e-10, atol=1e-14)


def test_layers_of_the_last_part_follow_the_targets_too():
    trained, twin = trainer(METHOD, cuts=()), perceptron()
    found = moves(trained, rows())
    rule = trained.objectives[0].rule.state_dict()
    assert len(rule) == 3
    close(found, by_hand(twin, rows(), Y, list(rule.values()), literal_targets(Y)))


def test_the_targets_signal_is_the_literal_one_and_left_out_labels_count_for_nothing():
    assert torch.equal(target_signal(Y, classes=3, dtype=torch.float64), literal_targets(Y))
    left = target_signal(torch.tensor([1, -100, 2]), classes=3)
    assert torch.equal(left, torch.tensor([[0, 0.5, 0], [0, 0, 0], [0, 0, 0.5]]))
    assert not target_signal(torch.tensor([-100]), classes=3).any()


def test_nothing_waits_and_no_part_hears_of_another():
    """The audit by intervention: strict. So the sequential schedule takes it."""
    trained = trainer(METHOD, convolutional())
    assert not any(o.talks for o in trained.objectives)
    report = mw.checks.locality(trained, images(), Y)
    assert report.ok, str(report)
    assert report.observed is mw.Reach.STRICT
    before = [p.detach().clone() for p in trained.partition.model.parameters()]
    trained.fit([(images(), Y)], epochs=1, schedule=mw.schedules.sequential)
    assert not any(torch.equal(a, b) for a, b in zip(before, trained.partition.model.parameters(), strict=True))


def test_the_output_error_below_the_top_plays_no_part():
    """Another loss moves the last layer differently, and no other."""
    a = moves(trainer(METHOD), rows())
    b = moves(trainer(METHOD, loss=lambda output, y: 5 * functional.multi_margin_loss(output, y)), rows())
    assert {name for name in a if not torch.allclose(a[name], b[name], rtol=1e-12)} == {"2.weight", "2.bias"}


@pytest.mark.parametrize("cuts", [("0", "1"), ()], ids=["parts", "one part"])
def test_slices_and_a_gradient_scaler_reach_the_projected_targets(cuts):
    whole = moves(trainer(METHOD, cuts=cuts), rows())
    close(moves(trainer(METHOD, cuts=cuts, accumulate=3), rows()), whole)
    half = moves(trainer(METHOD, perceptron().float(), cuts=cuts, precision=torch.float16), rows().float())
    for name, expected in whole.items():
        assert (half[name] - expected).abs().max() < 0.02 * expected.abs().max(), name


def test_by_parts_alone_the_chain_rule_goes_through_the_layers():
    trained, twin = trainer(M.DRTP(classes=3, layerwise=False)), perceptron()
    found = moves(trained, rows())
    h1 = twin[0](rows())
    h2 = twin[1](h1.detach())
    functional.cross_entropy(twin[2](h2.detach()), Y).backward()
    h2.backward(literal_targets(Y) @ trained.objectives[1].feedback)
    h1.backward(literal_targets(Y) @ trained.objectives[0].feedback)
    close(found, {name: p.grad for name, p in twin.named_parameters()})


def test_saved_and_resumed_it_goes_on_bit_for_bit(tmp_path):
    first, second = trainer(METHOD), trainer(METHOD)
    first.step(rows(), Y)
    first.save(tmp_path)
    second.load(tmp_path)
    for trained in (first, second):
        trained.step(rows(1), Y)
    assert same(state(first), state(second))


@pytest.mark.parametrize("labels", [torch.zeros(8, 2, dtype=torch.long), torch.zeros(8)], ids=["many", "real"])
def test_labels_that_are_not_one_whole_number_a_sample_are_refused(labels):
    with pytest.raises(MethodError, match="DRTP projects one whole number a sample"):
        target_signal(labels, classes=3)


@pytest.mark.parametrize("wrong", [{"classes": 1}, {"scale": 0.0}, {"scale": math.nan}], ids=str)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(MethodError, match="give classes >= 2 and scale above 0"):
        M.DRTP(**{"classes": 3, **wrong})


def test_a_part_without_layers_is_refused_and_the_way_out_is_named():
    model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3)).double()
    with pytest.raises(MethodError, match=r"DRTP changes linear.*part 1 has none.*layerwise=False"):
        trainer(METHOD, model)
