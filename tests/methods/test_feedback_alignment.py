"""Feedback alignment through the trainer: literal, tied, refused where it would do nothing, reported."""

from __future__ import annotations

import math

import pytest
import torch
from driven import Y, backward_by, close, convolutional, images, moves, perceptron, rows, same, state, trainer
from literal_oracles import draw
from small_networks import seeded
from torch import Tensor, nn
from torch.nn import functional

import modulewise as mw
from modulewise.checks import converted, feedback_angles
from modulewise.errors import MethodError

M = mw.methods


def tied(name: str, module: nn.Module) -> Tensor:
    return module.weight


def feedback_of(trained: mw.Trainer) -> dict[str, Tensor]:
    """Every layer's B, by the layer's name in the model."""
    return {name: b for o in trained.objectives if o.rule is not None for name, b in o.rule.state_dict().items()}


def test_a_step_is_the_literal_backward_with_b_for_the_weights():
    trained = trainer(M.FeedbackAlignment())
    before = perceptron()
    found = moves(trained, rows())
    close(found, backward_by(before, rows(), Y, feedback_of(trained)))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("make", [perceptron, convolutional])
def test_tied_to_the_live_weights_it_is_backpropagation_bit_for_bit(make, precision):
    ends = []
    for method in (M.FeedbackAlignment(feedback=tied), M.Backprop()):
        trained = trainer(method, make().float(), precision=precision)
        x = (rows() if make is perceptron else images()).float()
        for _ in range(3):
            trained.step(x, Y)
        ends.append([p.detach().clone() for p in trained.partition.model.parameters()])
    assert same(*ends)


class Attention(nn.Module):
    """Self-attention of one head, made of nn.Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, h: Tensor) -> Tensor:
        scores = self.query(h) @ self.key(h).transpose(1, 2) / 2
        return h + self.out(scores.softmax(-1) @ self.value(h))


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention, self.head = nn.Linear(6, 4), Attention(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(self.first(x)).mean(1))


def test_attention_made_of_linear_layers_is_converted_on_sequences():
    """Oracle: autograd with the transpose of every projection swapped by hand."""
    x, model = draw(8, 3, 6), seeded(Pooled).double()
    partition = mw.Partition(model, cuts=("first",), example=x)
    trained = mw.Trainer(
        partition, M.FeedbackAlignment(), loss=functional.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.1)
    )
    projections = [f"attention.{name}" for name in ("query", "key", "value", "out")]
    assert converted(trained).converted == ("first", *projections, "head")
    before = seeded(Pooled).double()
    found = moves(trained, x)
    b = feedback_of(trained)

    def swapped(name: str, h: Tensor) -> Tensor:
        layer = before.get_submodule(name)
        return layer(h.detach()) + (h - h.detach()) @ b[name].T  # the value of the layer, the derivative of B

    h = before.first(x)
    scores = swapped("attention.query", h) @ swapped("attention.key", h).transpose(1, 2) / 2
    h = h + swapped("attention.out", scores.softmax(-1) @ swapped("attention.value", h))
    functional.cross_entropy(swapped("head", h.mean(1)), Y).backward()
    close(found, {name: p.grad for name, p in before.named_parameters()})


class Packed(nn.Module):
    """An encoder layer of torch, whose attention packs its projections into one operation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 4)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.first(x)).mean(1))


def test_packed_attention_is_left_and_said_to_be():
    model, x = seeded(Packed).double(), draw(8, 3, 6)
    partition = mw.Partition(model, cuts=("first",), example=x)
    trained = mw.Trainer(partition, M.FeedbackAlignment(), loss=functional.cross_entropy, optimizer=torch.optim.SGD)
    trained.step(x, Y)
    report = converted(trained)
    assert report.converted == ("first", "encoder.linear1", "encoder.linear2", "head")
    assert set(feedback_of(trained)) == set(report.converted)
    assert list(report.left) == [
        "encoder.self_attn",
        "encoder.self_attn.out_proj",
        "encoder.norm1",
        "encoder.norm2",
    ]
    assert "attention made of nn.Linear is converted" in report.left["encoder.self_attn"]


def test_a_layer_shared_by_two_calls_has_one_b():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared, self.head = nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.shared(self.shared(self.first(x)).tanh()))

    partition = mw.Partition(seeded(Twice).double(), cuts=("first",), example=rows())
    trained = mw.Trainer(
        partition, M.FeedbackAlignment(), loss=functional.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.1)
    )
    before = seeded(Twice).double()
    found = moves(trained, rows())
    b = feedback_of(trained)
    assert set(b) == {"first", "shared", "head"}
    h = before.first(rows())
    once = before.shared(h).tanh()
    again = before.shared(once)
    (e,) = torch.autograd.grad(functional.cross_entropy(before.head(again), Y), before.head.bias, retain_graph=True)
    error = (before.head(again).softmax(1) - functional.one_hot(Y, 3)) / 8
    assert torch.allclose(error.sum(0), e)
    upper = error @ b["head"]
    lower = (upper @ b["shared"]) * (1 - once.square())
    expected = upper.T @ once + lower.T @ h
    assert torch.allclose(found["shared.weight"], expected, rtol=1e-10)
    assert torch.allclose(found["first.weight"], (lower @ b["shared"]).T @ rows(), rtol=1e-10)


def test_a_part_without_a_layer_that_it_changes_is_refused_by_name():
    model = nn.Sequential(nn.Linear(6, 5), nn.Sequential(nn.LayerNorm(5), nn.Tanh()), nn.Linear(5, 3)).double()
    with pytest.raises(MethodError, match=r"FeedbackAlignment changes linear.*part 1 has none.*1\.0 \(LayerNorm\)"):
        trainer(M.FeedbackAlignment(), model)


@pytest.mark.parametrize("method", [M.FeedbackAlignment(), M.DirectFeedbackAlignment(outputs=3)], ids=str)
def test_running_parts_again_is_refused_by_name(method):
    with pytest.raises(MethodError, match=r"recompute=True was given and the layer rule of part 0"):
        trainer(method, recompute=True)


def test_a_compiled_part_is_refused_where_the_signal_would_not_be_seen():
    with pytest.raises(MethodError, match=r"compile=True was given and the layer rule of part 0 \(DirectFeedback\)"):
        trainer(M.DirectFeedbackAlignment(outputs=3), compile=True)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_a_scale_that_is_not_positive_is_refused(scale):
    with pytest.raises(MethodError, match="give a number above 0"):
        M.FeedbackAlignment(scale=scale)


def test_what_is_converted_is_told_for_any_method():
    trained = trainer(M.FeedbackAlignment(), convolutional())
    report = converted(trained)
    assert report.converted == ("0.0", "1.0", "1.3", "2")
    assert report.left == {"0.1": "GroupNorm is neither linear nor a convolution"}
    whole = converted(trainer(M.FeedbackAlignment(), cuts=()))
    assert whole.converted == ("0.0", "1.0", "1.2", "2")
    plain = converted(trainer(M.Backprop()))
    assert plain.converted == ()
    assert plain.left == dict.fromkeys(("0.0", "1.0", "1.2", "2"), "Backprop has no layer rule")
    bcd = mw.Trainer(
        mw.Partition(nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 3)), cuts=("1",), example=rows().float()),
        M.BCD(),
        loss=functional.cross_entropy,
    )
    assert set(converted(bcd).left) == {"0", "2"}


def test_angles_of_fixed_feedback_weights():
    """Drawn apart from the weights they are near 90 degrees; training makes the weights turn to them."""
    trained = trainer(M.FeedbackAlignment(scale=3.0))
    model = trained.partition.model
    start = feedback_angles(trained)
    for step in range(150):
        trained.step(rows(step % 4), Y)
    end, b, w = feedback_angles(trained), feedback_of(trained), model[2].weight.detach()
    assert list(start) == ["0.0", "1.0", "1.2", "2"]
    cosine = (b["2"] * w).sum() / (b["2"].norm() * w.norm())
    assert end["2"] == pytest.approx(float(torch.rad2deg(cosine.arccos())), abs=1e-3)
    assert end["2"] < start["2"] - 15
    assert feedback_angles(trainer(M.Backprop())) == feedback_angles(trainer(M.DRTP(classes=3))) == {}


def test_saved_and_resumed_it_goes_on_bit_for_bit(tmp_path):
    first, second = trainer(M.FeedbackAlignment()), trainer(M.FeedbackAlignment(), seed=0)
    first.step(rows(), Y)
    first.save(tmp_path)
    second.load(tmp_path)
    for trained in (first, second):
        trained.step(rows(1), Y)
    assert same(state(first), state(second))
