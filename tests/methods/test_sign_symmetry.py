"""Sign-symmetry through the trainer: literal, exact where it must be, one draw a batch, words of the command line."""

from __future__ import annotations

import math

import pytest
import torch
from driven import Y, backward_by, close, convolutional, images, moves, perceptron, rows, same, state, trainer
from torch import Tensor, nn

import modulewise as mw
from modulewise import options, registry
from modulewise.errors import MethodError
from modulewise.layer_rules import SignVariant

M = mw.methods
VARIANTS = pytest.mark.parametrize("variant", list(SignVariant))


def signed(model: nn.Module, trained: mw.Trainer, variant: SignVariant, scale: float) -> dict[str, Tensor]:
    """Every layer's |M| o sign(W), made of the formula and of the magnitudes in the rules' states."""
    states = {name: m for o in trained.objectives for name, m in o.rule.state_dict().items()}
    b = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            constant = torch.full_like(layer.weight, scale / (3 * layer.in_features) ** 0.5)
            magnitude = constant if variant is SignVariant.USF else states[name].abs()
            b[name] = magnitude.detach() * layer.weight.detach().sign()
    return b


@VARIANTS
def test_a_step_is_the_literal_backward_with_the_signs(variant):
    """Magnitudes are read before the step that uses them: after it brSF has drawn those of the next."""
    trained, twin = trainer(M.SignSymmetry(variant=variant, scale=2.0)), perceptron()
    trained.step(rows(), Y)  # draws what is drawn once
    twin.load_state_dict(trained.partition.model.state_dict())
    b = signed(twin, trained, variant, 2.0)
    close(moves(trained, rows(1)), backward_by(twin, rows(1), Y, b))


def test_with_one_magnitude_of_all_weights_usf_is_backpropagation_up_to_a_factor_a_layer():
    """All of a layer's error is in proportion; at the factor that makes |B| = |W| it is the gradient exactly."""
    grads = []
    for method in (M.SignSymmetry(), M.Backprop()):
        model = perceptron()
        with torch.no_grad():
            for layer in model.modules():
                if isinstance(layer, nn.Linear):
                    layer.weight.copy_(layer.weight.sign() / (3 * layer.in_features) ** 0.5)
        grads.append(moves(trainer(method, model), rows()))
    close(*grads, rtol=1e-12)


def test_brsf_draws_anew_every_step_from_the_seed_and_slices_of_a_batch_share_the_draw():
    a, b, other = (trainer(M.SignSymmetry(variant=SignVariant.BRSF), seed=seed) for seed in (0, 0, 1))
    sliced = trainer(M.SignSymmetry(variant=SignVariant.BRSF), accumulate=2)
    magnitudes: list[Tensor] = []
    for step in range(3):
        for trained in (a, b, other, sliced):
            torch.manual_seed(len(magnitudes))  # the caller's generator plays no part
            if trained is sliced and step:
                continue
            trained.step(rows(step), Y)
        magnitudes.append(a.objectives[1].rule.state_dict()["1.2"])
    assert same(state(a), state(b))
    assert not same(state(a)[:2], state(other)[:2])
    assert not torch.equal(magnitudes[0], magnitudes[1])
    assert not torch.equal(magnitudes[1], magnitudes[2])
    once = trainer(M.SignSymmetry(variant=SignVariant.BRSF))
    once.step(rows(0), Y)
    for p, q in zip(sliced.partition.model.parameters(), once.partition.model.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-12, atol=1e-14)


def test_frsf_keeps_its_magnitudes():
    trained = trainer(M.SignSymmetry(variant=SignVariant.FRSF), convolutional())
    trained.step(images(), Y)
    before = {k: v.clone() for k, v in trained.objectives[1].rule.state_dict().items()}
    trained.step(images(1), Y)
    after = trained.objectives[1].rule.state_dict()
    assert before.keys() == after.keys() == {"1.0", "1.3"}
    assert all(torch.equal(before[k], after[k]) for k in before)


@VARIANTS
def test_saved_and_resumed_it_goes_on_bit_for_bit(variant, tmp_path):
    first, second = (trainer(M.SignSymmetry(variant=variant)) for _ in range(2))
    first.step(rows(), Y)
    first.save(tmp_path)
    second.load(tmp_path)
    for trained in (first, second):
        trained.step(rows(1), Y)
        trained.step(rows(2), Y)
    assert same(state(first), state(second))


def test_an_enumeration_is_set_by_its_words():
    """By value, capitals not mattering; unknown words name the known ones."""
    assert registry.build(registry.parse("sign-symmetry:variant=brsf,scale=2"), classes=3) == M.SignSymmetry(
        variant=SignVariant.BRSF, scale=2.0
    )
    assert registry.build(registry.parse("signsymmetry:variant=FRSF"), classes=3).variant is SignVariant.FRSF
    assert list(options.settable(M.SignSymmetry)) == ["variant", "scale"]
    with pytest.raises(MethodError, match=r"variant=sf was given, expected usf, brsf, frsf"):
        registry.parse("sign-symmetry:variant=sf")


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_a_scale_that_is_not_positive_is_refused(scale):
    with pytest.raises(MethodError, match="give a number above 0"):
        M.SignSymmetry(scale=scale)


def test_a_word_for_the_variant_and_a_part_without_layers_are_refused():
    with pytest.raises(MethodError, match=r"variant='brsf' was given; give one of SignVariant\.USF"):
        M.SignSymmetry(variant="brsf")
    with pytest.raises(MethodError, match="SignSymmetry changes linear layers and convolutions, and part 1 has none"):
        trainer(M.SignSymmetry(), nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3)).double())
