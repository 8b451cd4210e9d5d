"""Optimisers by part and role, clipping, schedules of rates, steps held back."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_networks import (
    CLASSES,
    differing,
    perceptron,
    rows,
    seeded,
    sgd,
    state,
    trainer_of,
)
from torch import Tensor, nn

import modulewise as mw
from modulewise.engine.updating import guarded_step
from modulewise.errors import MethodError, NonFiniteLossError
from modulewise.objective import Role

M = mw.methods
PARTS = ("0", "1")


def perceptron_of(seed: int = 3, **settings: Any) -> nn.Sequential:
    return seeded(lambda: perceptron(**settings), seed)


class TestFactories:
    def test_a_factory_with_keywords_sees_every_part_and_role(self):
        seen: list[tuple[int, Role, int]] = []

        def factory(parameters, *, part, role):
            given = list(parameters)
            seen.append((part, role, sum(p.numel() for p in given)))
            return torch.optim.SGD(given, lr=0.01)

        x, y = rows()
        trainer = trainer_of(
            perceptron_of(), M.SyntheticGradients(classes=CLASSES, width=4), PARTS, x, optimizer=factory
        )
        for _ in range(2):
            trainer.step(x, y)
        predictors = [sum(p.numel() for p in o.parameters()) for o in trainer.objectives]
        assert seen == [
            (0, Role.PART, 6 * 16 + 16),
            (0, Role.FEEDBACK, predictors[0]),
            (1, Role.PART, 16 * 12 + 12),
            (1, Role.FEEDBACK, predictors[1]),
            (2, Role.PART, 12 * CLASSES + CLASSES),
        ]
        assert sorted(trainer.updater.optimizers) == sorted((part, role) for part, role, _ in seen)

    def test_heads_have_a_role_of_their_own_and_can_have_a_rate_of_their_own(self):
        def factory(parameters, *, part, role):
            return torch.optim.SGD(parameters, lr=0.0 if role is Role.HEAD else 0.1)

        x, y = rows()
        trainer = trainer_of(perceptron_of(), M.DGL(classes=CLASSES), PARTS, x, optimizer=factory)
        model, heads = state(trainer.partition.model), state(*trainer.objectives[:-1])
        trainer.step(x, y)
        assert differing(model, state(trainer.partition.model)) == list(model)
        assert differing(heads, state(*trainer.objectives[:-1])) == []

    @pytest.mark.parametrize(
        "factory", [partial(torch.optim.SGD, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)], ids=["partial", "function"]
    )
    def test_a_factory_of_one_argument_is_called_with_one(self, factory):
        x, y = rows()
        trainer = trainer_of(perceptron_of(), M.DGL(classes=CLASSES), PARTS, x, optimizer=factory)
        trainer.step(x, y)
        assert len(trainer.updater.optimizers) == 5
        assert all(o.param_groups[0]["lr"] == 0.1 for o in trainer.updater.optimizers.values())

    def test_something_else_than_an_optimiser_is_refused(self):
        x, y = rows()
        trainer = trainer_of(perceptron_of(), M.DGL(classes=CLASSES), PARTS, x, optimizer=lambda p: list(p))
        with pytest.raises(MethodError, match=r"returned list, expected a torch\.optim\.Optimizer"):
            trainer.step(x, y)

    def test_frozen_parameters_are_given_to_no_optimiser(self):
        x, y = rows()
        model = perceptron_of()
        model[0][0].weight.requires_grad_(False)
        for parameter in model[1].parameters():
            parameter.requires_grad_(False)
        trainer = trainer_of(model, M.Backprop(), PARTS, x)
        trainer.step(x, y)
        assert sorted(trainer.updater.optimizers) == [(0, Role.PART), (2, Role.PART)]
        assert trainer.updater.optimizers[0, Role.PART].param_groups[0]["params"] == [model[0][0].bias]


class TestClipping:
    def test_local_methods_are_clipped_part_by_part_heads_included(self):
        model, plain = perceptron_of(), perceptron_of()
        x, y = rows()
        trainer = trainer_of(model, M.DGL(classes=CLASSES), PARTS, x, clip_norm=0.05)
        heads = [*copy.deepcopy([o.head for o in trainer.objectives[:-1]]), nn.Identity()]
        optimizers = [sgd([*part.parameters(), *head.parameters()]) for part, head in zip(plain, heads, strict=True)]
        norms = []
        for _ in range(3):
            trainer.step(x, y)
            h = x
            for part, head, optimizer in zip(plain, heads, optimizers, strict=True):
                h = part(h.detach())
                F.cross_entropy(head(h), y).backward()
                norms.append(torch.nn.utils.clip_grad_norm_([*part.parameters(), *head.parameters()], 0.05))
                optimizer.step()
                optimizer.zero_grad()
        assert differing(state(model), state(plain)) == []
        assert differing(state(*(o.head for o in trainer.objectives[:-1])), state(*heads[:-1])) == []
        assert all(norm > 0.05 for norm in norms)

    def test_global_methods_are_clipped_over_all_parts_and_heads(self):
        model, plain = perceptron_of(), perceptron_of()
        x, y = rows()
        trainer = trainer_of(model, M.DeeplySupervised(M.DGL(classes=CLASSES)), PARTS, x, clip_norm=0.05)
        heads = copy.deepcopy([o.inner.head for o in trainer.objectives[:-1]])
        owned = [*plain.parameters(), *(p for head in heads for p in head.parameters())]
        optimizer = sgd(owned)
        for _ in range(3):
            trainer.step(x, y)
            h0 = plain[0](x)
            h1 = plain[1](h0)
            losses = [F.cross_entropy(o, y) for o in (heads[0](h0), heads[1](h1), plain[2](h1))]
            optimizer.zero_grad()
            sum(losses).backward()
            assert torch.nn.utils.clip_grad_norm_(owned, 0.05) > 0.05
            optimizer.step()
        ours = state(model, *(o.inner.head for o in trainer.objectives[:-1]))
        for (name, a), b in zip(ours.items(), state(plain, *heads).values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, msg=name)


class TestRates:
    def scheduled(self, **settings: Any) -> mw.Trainer:
        return trainer_of(
            perceptron_of(),
            M.DGL(classes=CLASSES),
            PARTS,
            rows()[0],
            scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1),
            **settings,
        )

    def test_every_part_and_role_moves_once_an_epoch(self):
        trainer, seen = self.scheduled(), []

        def note(_: Any) -> None:
            seen.append({round(o.param_groups[0]["lr"], 8) for o in trainer.updater.optimizers.values()})

        trainer.fit([rows()] * 3, epochs=3, callbacks=[note])
        assert seen == [{0.005}, {0.0005}, {0.00005}]

    def test_in_sequential_every_part_begins_with_the_first_rate(self):
        trainer, rates = self.scheduled(), []
        for part, objective in enumerate(trainer.objectives):
            objective.register_forward_hook(
                lambda *_, part=part: rates.append(
                    (part, [round(o.param_groups[0]["lr"], 8) for o in trainer.updater.optimizers.values()][:1])
                )
            )
        trainer.fit([rows()], epochs=2, schedule=mw.schedules.sequential)
        assert rates == [(0, []), (0, [0.005]), (1, []), (1, [0.005]), (2, []), (2, [0.005])]

    def test_a_step_of_its_own_does_not_move_the_rate(self):
        trainer = self.scheduled()
        for _ in range(3):
            trainer.step(*rows())
        assert {o.param_groups[0]["lr"] for o in trainer.updater.optimizers.values()} == {0.05}


class Faulty:
    """A criterion whose value, for the head it is told of, is not finite."""

    def __init__(self, heads: int) -> None:
        self.heads, self.calls, self.bad = heads, 0, -1

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        here, self.calls = self.calls, (self.calls + 1) % self.heads
        return F.cross_entropy(logits, y) * (float("nan") if here == self.bad else 1.0)


def faulty_trainer(slices: int = 1, **settings: Any) -> tuple[mw.Trainer, Faulty]:
    criterion = Faulty(2 * slices)
    method = M.DGL(classes=CLASSES, criterion=criterion)
    return trainer_of(perceptron_of(), method, PARTS, rows()[0], accumulate=slices, **settings), criterion


def owned(trainer: mw.Trainer, part: int) -> dict[str, Tensor]:
    return state(trainer.partition.model[part], trainer.objectives[part])


class TestNotFinite:
    def test_it_stops_before_the_weights_of_that_part_are_touched(self):
        trainer, criterion = faulty_trainer()
        x, y = rows()
        trainer.step(x, y)
        before = [owned(trainer, part) for part in range(3)]
        criterion.bad = 1
        with pytest.raises(NonFiniteLossError, match=r"part 1 is not finite at step 1.*already stepped: 0;") as caught:
            trainer.step(x, y)
        assert (caught.value.part, caught.value.step, caught.value.stepped) == (1, 1, (0,))
        assert [differing(before[part], owned(trainer, part)) != [] for part in range(3)] == [True, False, False]

    def test_end_to_end_touches_nothing(self):
        x, y = rows()
        trainer = trainer_of(perceptron_of(), M.Backprop(), PARTS, x, loss=lambda o, y: F.cross_entropy(o, y).log())
        before = state(trainer.partition.model)
        with torch.no_grad():
            trainer.partition.model[2].weight.mul_(float("inf"))
        with pytest.raises(NonFiniteLossError) as caught:
            trainer.step(x, y)
        assert (caught.value.part, caught.value.stepped) == (2, ())
        after = state(trainer.partition.model)
        assert differing(before, after) == ["0.2.weight"]

    def test_the_next_batch_is_learned_as_if_nothing_had_been(self):
        """A step that fails at the first part leaves no trace; one in the middle of it leaves no gradient."""
        x, y = rows()
        clean, failed = (faulty_trainer(slices=2)[0] for _ in range(2))
        failed.method.criterion.bad = 1  # the second slice of part 0
        with pytest.raises(NonFiniteLossError, match="part 0"):
            failed.step(x, y)
        failed.method.criterion.bad, failed.method.criterion.calls = -1, 0
        for trainer in (clean, failed):
            trainer.step(x, y)
        assert differing(state(clean.partition.model), state(failed.partition.model)) == []

    def test_the_callers_generator_is_put_back(self):
        trainer, criterion = faulty_trainer()
        criterion.bad = 0
        before = torch.get_rng_state()
        with pytest.raises(NonFiniteLossError):
            trainer.step(*rows())
        assert torch.equal(before, torch.get_rng_state())


class Elsewhere(Tensor):
    """A tensor that says it is on an accelerator, and counts how often the host waits to read it."""

    reads = 0

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)

    def __bool__(self) -> bool:
        Elsewhere.reads += 1
        return bool(self.as_subclass(Tensor))

    def tolist(self) -> Any:
        Elsewhere.reads += 1
        return self.as_subclass(Tensor).tolist()

    def item(self) -> Any:
        Elsewhere.reads += 1
        return self.as_subclass(Tensor).item()


def elsewhere(trainer: mw.Trainer) -> mw.Trainer:
    """Let the trainer's checks take the accelerator's path."""
    check = trainer.updater.check
    trainer.updater.check = lambda part, step, shown: check(part, step, shown.as_subclass(Elsewhere))
    return trainer


class TestAccelerator:
    """The path without waiting, on the CPU: checks give flags, steps are taken back where a flag is false."""

    @pytest.mark.parametrize("slices", [1, 2])
    def test_finite_steps_are_the_same_bit_for_bit_and_read_once(self, slices):
        x, y = rows()
        here, there = faulty_trainer(slices)[0], elsewhere(faulty_trainer(slices)[0])
        for _ in range(3):
            here.step(x, y)
            Elsewhere.reads = 0
            there.step(x, y)
            assert Elsewhere.reads == 1
        assert (
            differing(state(here.partition.model, *here.objectives), state(there.partition.model, *there.objectives))
            == []
        )

    @pytest.mark.parametrize("slices", [1, 2])
    def test_a_part_with_a_bad_loss_is_held_back_and_named_at_the_end(self, slices):
        trainer, criterion = faulty_trainer(slices)
        elsewhere(trainer)
        x, y = rows()
        trainer.step(x, y)
        before = [owned(trainer, part) for part in range(3)]
        criterion.bad = slices  # the first slice of part 1; its second is finite
        with pytest.raises(NonFiniteLossError) as caught:
            trainer.step(x, y)
        assert (caught.value.part, caught.value.step, caught.value.stepped) == (1, 1, (0, 2))
        parameters = {name for name, _ in trainer.partition.model[1].named_parameters()}
        moved = [differing(before[part], owned(trainer, part)) for part in range(3)]
        assert not {name for name in moved[1] if name.removeprefix("0.") in parameters}
        assert moved[0]
        assert moved[2]
        buffers = [t for o in trainer.updater.optimizers.values() for s in o.state.values() for t in s.values()]
        assert all(bool(torch.isfinite(t).all()) for t in buffers if isinstance(t, Tensor))
        criterion.bad = -1
        trainer.step(x, y)
        assert all(bool(torch.isfinite(t).all()) for t in state(trainer.partition.model).values())

    def test_a_global_method_with_clipping_touches_nothing(self):
        x, y = rows()
        trainer = elsewhere(trainer_of(perceptron_of(), M.Backprop(), PARTS, x, clip_norm=1.0))
        before = state(trainer.partition.model)
        with pytest.raises(NonFiniteLossError, match="part 2"):
            trainer.step(x * float("nan"), y)
        assert differing(before, state(trainer.partition.model)) == []

    @pytest.mark.parametrize(
        "make",
        [
            lambda p: torch.optim.SGD(p, lr=0.1),
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
            lambda p: torch.optim.AdamW(p, lr=0.1),
            lambda p: torch.optim.RMSprop(p, lr=0.1),
        ],
        ids=["sgd", "momentum", "adamw", "rmsprop"],
    )
    def test_a_guarded_step(self, make):
        layers = [seeded(lambda: nn.Linear(3, 2)) for _ in range(2)]
        optimizers = [make(layer.parameters()) for layer in layers]
        for _ in range(3):
            for layer, optimizer in zip(layers, optimizers, strict=True):
                optimizer.zero_grad()
                layer(torch.ones(1, 3)).sum().backward()
            optimizers[0].step()
            guarded_step(optimizers[1], torch.tensor(True))
        assert differing(state(layers[0]), state(layers[1])) == []
        for parameter in layers[1].parameters():
            parameter.grad = torch.full_like(parameter, float("nan"))
        guarded_step(optimizers[1], torch.tensor(False))
        assert differing(state(layers[0]), state(layers[1])) == []
        values = [v for s in optimizers[1].state.values() for v in s.values() if isinstance(v, Tensor)]
        assert all(bool(torch.isfinite(v).all()) for v in values)


def test_part_updates_are_counted():
    x, y = rows()
    for method, settings in ((M.DGL(classes=CLASSES), {}), (M.Backprop(), {"clip_norm": 1.0, "accumulate": 2})):
        trainer = trainer_of(perceptron_of(), method, PARTS, x, **settings)
        for _ in range(3):
            trainer.step(x, y)
        assert trainer.updater.steps == {0: 3, 1: 3, 2: 3}
