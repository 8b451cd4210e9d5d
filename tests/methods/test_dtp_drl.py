"""DTP with the difference reconstruction loss against literal loops and, on linear parts, pseudo-inverses."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from reconstruction_chains import (
    activations,
    batch,
    chain,
    close,
    damped_inverse,
    jacobian_above,
    output_move,
    step,
    trainer_of,
    weight,
    whitened,
)
from torch import nn

import modulewise as mw
from modulewise.errors import MethodError
from modulewise.methods.targets.dtp_drl_objective import FirstPart
from modulewise.objective import Role

Method = mw.methods.DTPDRL


def linear_inverse(site):
    """Linear feedback without bias."""
    return nn.Linear(site.boundary.features, site.input.features, bias=False).double()


def matrices(module):
    """The parameters but for biases: the difference correction takes that of an inverse's output away."""
    return [p for p in module.parameters() if p.dim() > 1]


def rehearsals(trainer):
    """Every context and value of the feedback phase, noted while steps run."""
    seen = []
    for objective in trainer.objectives[1:]:

        def noting(context, rehearse=objective.rehearse):
            signal = rehearse(context)
            seen.append((context, signal))
            return signal

        objective.__dict__["rehearse"] = noting
    return seen


def way_back_weights(model, inverses, part):
    """P of R_part(h~) - h = P (h~ - h), all linear: down the inverses, after up the weights."""
    product = jacobian_above(model, part)
    for later in range(len(model) - 1, part, -1):
        product = inverses[later] @ product
    return product


def closed_form(model, decay):
    """Every inverse at the minimum of its loss, given those above: (P W)^T (P W W^T P^T + decay I)^-1."""
    inverses = {}
    for part in range(len(model) - 1, 0, -1):
        inverses[part] = damped_inverse(way_back_weights(model, inverses, part) @ weight(model[part]), decay)
    return inverses


def test_the_loss_is_the_literal_loop_through_all_parts_above(monkeypatch):
    """Sample by sample: up to the output, back part by part with the difference correction, squares and weights."""
    noises, draw = [], torch.randn_like
    monkeypatch.setattr(torch, "randn_like", lambda h: noises.append(draw(h)) or noises[-1])
    model, (x, y) = chain(8, 7, 6, 5, 3, activation=nn.Tanh), batch()
    trainer = trainer_of(model, Method(outputs=3, noise=0.2, decay=0.03), x)
    seen = rehearsals(trainer)
    trainer.step(x, y)
    inverses = [None, *[o.inverse for o in trainer.objectives[1:]]]
    assert [context.part for context, _ in seen] == [3, 2, 1]
    with torch.no_grad():
        for (context, signal), noise in zip(seen, noises, strict=True):
            k, total = context.part, 0.0
            for n in range(12):
                clean = [x[n]]
                for part in model:
                    clean.append(part(clean[-1]))  # clean[j] enters part j
                corrupted = clean[k] + 0.2 * noise[n]
                value = corrupted
                for part in model[k:]:
                    value = part(value)
                for j in range(3, k - 1, -1):
                    value = clean[j] + inverses[j](value[None])[0] - inverses[j](clean[j + 1][None])[0]
                total += sum((a - b) ** 2 for a, b in zip(value.tolist(), corrupted.tolist(), strict=True)) / 0.04 / 12
            decay = sum(v**2 for p in inverses[k].parameters() if p.dim() == 2 for v in p.flatten().tolist())
            assert signal.loss.item() == pytest.approx(total + 0.03 * decay, rel=1e-10)


def test_targets_are_differences_down_from_the_outputs_target():
    model, (x, y) = chain(8, 7, 6, 5, 3, activation=nn.Tanh), batch()
    trainer = trainer_of(model, Method(outputs=3, step_size=0.4), x)
    seen = step(trainer, x, y)
    hs = activations(model, x)
    target = hs[3] + output_move(hs[3], y, 0.4)
    with torch.no_grad():
        for k in (2, 1, 0):
            inverse = trainer.objectives[k + 1].inverse
            target = torch.stack(
                [hs[k][n] + (inverse(target[n : n + 1]) - inverse(hs[k + 1][n : n + 1]))[0] for n in range(12)]
            )
            assert close(seen[k].feedback[k + 1] - hs[k], target - hs[k])
            distance = sum(
                (a - b) ** 2 for a, b in zip(hs[k].flatten().tolist(), target.flatten().tolist(), strict=True)
            )
            assert trainer.objectives[k](seen[k]).loss.item() == pytest.approx(distance / 12, rel=1e-10)


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_training_reaches_the_damped_pseudo_inverse_of_what_comes_back(decay, monkeypatch):
    """Linear inverses on linear parts, noise whose second moment is the identity: the normal equations' solution."""
    monkeypatch.setattr(torch, "randn_like", whitened)
    model, (x, y) = chain(8, 7, 6, 4, 3), batch()
    method = Method(outputs=3, decay=decay, rounds=220, inverse=linear_inverse)
    trainer = trainer_of(model, method, x, feedback_lr=0.15)
    trainer.step(x, y)
    for part, expected in closed_form(model, decay).items():
        assert close(weight(trainer.objectives[part].inverse), expected, 1e-8)


def at_the_minimum(model, x, decay, **settings):
    """A trainer whose inverses stand at their minimum and stay there."""
    trainer = trainer_of(model, Method(outputs=3, decay=decay, inverse=linear_inverse, **settings), x)
    for part, solved in closed_form(model, decay).items():
        with torch.no_grad():
            trainer.objectives[part].inverse.weight.copy_(solved)
    return trainer


def test_without_decay_targets_are_gauss_newton_targets():
    """Widths fall, so every Jacobian has full row rank and the chain of pseudo-inverses is that of the product."""
    model, (x, y) = chain(8, 7, 6, 4, 3), batch()
    seen = step(at_the_minimum(model, x, 0.0, step_size=0.4), x, y)
    exact = trainer_of(model, mw.methods.GaussNewtonTargets(step_size=0.4, damping=0.0), x)
    true = step(exact, x, y)
    hs = activations(model, x)
    move = output_move(hs[3], y, 0.4)
    for k in range(3):
        expected = move @ torch.linalg.pinv(jacobian_above(model, k)).T
        assert close(seen[k].feedback[k + 1] - hs[k], expected, 1e-8)
        assert close(seen[k].feedback[k + 1], exact.objectives[k].target(true[k]), 1e-8)


def test_targets_come_nearer_to_gauss_newton_targets_as_the_decay_falls():
    """The distance is of first order in the decay."""
    model, (x, y) = chain(8, 7, 6, 4, 3), batch()
    hs = activations(model, x)
    expected = output_move(hs[3], y, 0.4) @ torch.linalg.pinv(jacobian_above(model, 0)).T
    errors = []
    for decay in (1e-3, 1e-4, 1e-5):
        seen = step(at_the_minimum(model, x, decay, step_size=0.4), x, y)
        errors.append((seen[0].feedback[1] - hs[0] - expected).norm() / expected.norm())
    assert 8 < errors[0] / errors[1] < 12
    assert 8 < errors[1] / errors[2] < 12
    assert errors[2] < 1e-2


def test_inverses_learn_from_the_top_down_and_parts_see_them_after():
    """The rehearsal of a part uses the inverses above as they have just become; the targets use all of them."""
    model, (x, y) = chain(8, 7, 6, 5, 3, activation=nn.Tanh), batch()
    trainer = trainer_of(model, Method(outputs=3, rounds=2), x, feedback_lr=1e-2)
    before = [copy.deepcopy(o.inverse) for o in trainer.objectives[1:]]
    seen, ways = rehearsals(trainer), {}
    objective = trainer.objectives[3]
    rehearsed = objective.rehearsed

    def noting(context):
        ways["inverse"], ways["context"] = copy.deepcopy(objective.inverse), context
        return rehearsed(context)

    objective.__dict__["rehearsed"] = noting
    contexts = step(trainer, x, y)
    assert [context.part for context, _ in seen] == [3, 3, 2, 2, 1, 1]
    after = [o.inverse for o in trainer.objectives[1:]]
    for old, new in zip(before, after, strict=True):
        assert all(not torch.equal(a, b) for a, b in zip(matrices(old), matrices(new), strict=True))
    h = ways["context"].h_in
    with torch.no_grad():
        inverse, a = ways["inverse"], model[3](h)
        assert all(torch.equal(u, v) for u, v in zip(inverse.parameters(), after[2].parameters(), strict=True))
        expected = h + inverse(model[3](2 * h)) - inverse(a)
    returned = seen[2][0].feedback[3](2 * h)
    assert close(returned, expected)
    assert not returned.requires_grad
    with torch.no_grad():
        target = a + output_move(a, y, 0.069)
        assert close(contexts[2].feedback[3], h + after[2](target) - after[2](a))


def test_no_function_and_no_graph_outlives_the_step():
    model, (x, y) = chain(8, 7, 6, 5, 3, activation=nn.Tanh), batch()
    trainer = trainer_of(model, Method(outputs=3), x, lr=0.1, feedback_lr=0.01)
    kept = []
    for objective in trainer.objectives[1:]:

        def noting(context, rehearsed=objective.rehearsed):
            messages = rehearsed(context)
            kept.extend(weakref.ref(message) for message in messages.values())
            return messages

        objective.__dict__["rehearsed"] = noting
    trainer.step(x, y)
    gc.collect()
    assert len(kept) == 2
    assert all(reference() is None for reference in kept)


def test_the_loss_of_an_inverse_reaches_nothing_else():
    model, (x, y) = chain(8, 7, 6, 5, 3, activation=nn.Tanh), batch()
    trainer = trainer_of(model, Method(outputs=3), x)
    seen = rehearsals(trainer)
    trainer.step(x, y)
    for context, signal in seen:
        reached = {id(p) for p in trainer.objectives[context.part].inverse.parameters()}
        leaves, nodes = set(), [signal.loss.grad_fn]
        while nodes:
            node = nodes.pop()
            if hasattr(node, "variable"):
                leaves.add(id(node.variable))
            nodes += [parent for parent, _ in node.next_functions if parent is not None]
        assert leaves == reached


def test_the_last_part_follows_its_true_gradient():
    model, (x, y) = chain(8, 7, 6, 5, 3, activation=nn.Tanh), batch()
    h = activations(model, x)[2]
    F.cross_entropy(model[3](h), y).backward()
    expected = [p.detach() - p.grad for p in model[3].parameters()]
    model.zero_grad(set_to_none=True)
    trainer_of(model, Method(outputs=3), x, lr=1.0).step(x, y)
    assert all(torch.equal(p, e) for p, e in zip(model[3].parameters(), expected, strict=True))


@pytest.mark.parametrize(
    "method", [Method(outputs=3, warmup=2), mw.methods.DirectDTP(outputs=3, warmup=2)], ids=lambda m: m.name
)
def test_in_warmup_feedback_alone_learns(method):
    model, (x, y) = chain(8, 7, 6, 5, 3, activation=nn.Tanh), batch()
    trainer = trainer_of(model, method, x, lr=0.1, feedback_lr=0.01)
    own = [p for objective in trainer.objectives for p in matrices(objective)]
    moved = []
    for _ in range(3):
        before = [[p.detach().clone() for p in group] for group in (model.parameters(), own)]
        losses = trainer.step(x, y)
        assert sorted(losses) == [0, 1, 2, 3]
        moved.append(
            [
                all(not torch.equal(p, old) for p, old in zip(group, olds, strict=True))
                for group, olds in zip((model.parameters(), own), before, strict=True)
            ]
        )
    assert moved == [[False, True], [False, True], [True, True]]
    fresh = chain(8, 7, 6, 5, 3, activation=nn.Tanh)
    again = trainer_of(fresh, method, x, lr=0.1, feedback_lr=0.01)
    for _ in range(2):
        again.step(x, y)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), chain(8, 7, 6, 5, 3).parameters(), strict=True))


@pytest.mark.parametrize(
    "method", [Method(outputs=3, warmup=5), mw.methods.DirectDTP(outputs=3, warmup=5)], ids=lambda m: m.name
)
def test_one_part_is_plain_training_at_once(method):
    model, (x, y) = chain(8, 3), batch()
    F.cross_entropy(model(x), y).backward()
    expected = [p.detach() - p.grad for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    trainer_of(model, method, x, lr=1.0).step(x, y)
    assert all(torch.equal(p, e) for p, e in zip(model.parameters(), expected, strict=True))


def test_the_first_part_alone_has_no_inverse():
    model, (x, _) = chain(8, 7, 6, 3), batch()
    objectives = trainer_of(model, Method(outputs=3, width=9), x).objectives
    assert isinstance(objectives[0], FirstPart)
    assert [o.rounds for o in objectives] == [0, 1, 1]
    assert all(o.role is Role.FEEDBACK and o.waits for o in objectives[1:])
    assert objectives[2].inverse(torch.zeros(2, 3).double()).shape == (2, 6)
    assert objectives[2].inverse.layers[0].out_features == 9


@pytest.mark.parametrize("method", [Method(outputs=4), mw.methods.DirectDTP(outputs=4)], ids=lambda m: m.name)
def test_another_number_of_outputs_is_refused_in_the_first_step(method):
    model, (x, y) = chain(8, 7, 6, 3), batch()
    with pytest.raises(MethodError, match="outputs=4 was given and a sample of the model's output has 3 elements"):
        trainer_of(model, method, x).step(x, y)


@pytest.mark.parametrize(
    "given",
    [{"outputs": 0}, {"step_size": 0.0}, {"step_size": float("nan")}, {"width": 0}, {"noise": 0.0}, {"rounds": 0}],
    ids=str,
)
def test_arguments_out_of_range_are_refused(given):
    with pytest.raises(MethodError, match="were given; give"):
        Method(**{"outputs": 3, **given})
