"""Schedules through `fit`: who learns from which batch, features kept or recomputed, epochs, modes, errors."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_networks import (
    CLASSES,
    CUTS,
    Residual,
    Skipping,
    differing,
    images,
    perceptron,
    rows,
    seeded,
    state,
    trainer_of,
)
from torch import Tensor, nn

import modulewise as mw
from modulewise.engine.evaluating import correct
from modulewise.engine.fitting import Epoch
from modulewise.errors import DataError, MethodError
from modulewise.schedules import FINAL, Event, Sequential, sequential, simultaneous

M = mw.methods
PARTS = ("0", "1")


def small(method: Any = None, **settings: Any) -> mw.Trainer:
    return trainer_of(seeded(perceptron), method or M.DGL(classes=CLASSES), PARTS, rows()[0], **settings)


def residual(**settings: Any) -> mw.Trainer:
    return trainer_of(seeded(Residual), M.DGL(classes=CLASSES), CUTS, images()[0], **settings)


def noted(trainer: mw.Trainer, listed: list[tuple[Tensor, Tensor]]) -> list[tuple[int, int]]:
    """Fills with (part, batch) as the objectives meet them."""
    seen: list[tuple[int, int]] = []

    def note(_: Any, args: tuple[mw.Context]) -> None:
        seen.append((args[0].part, next(i for i, (_, y) in enumerate(listed) if args[0].y is y)))

    for objective in trainer.objectives:
        objective.register_forward_pre_hook(note)
    return seen


class TestOrder:
    batches = [rows(8, seed) for seed in range(3)]  # noqa: RUF012 - never changed

    def test_simultaneous(self):
        trainer = small()
        seen = noted(trainer, self.batches)
        history = trainer.fit(self.batches, epochs=2)
        assert seen == [(part, batch) for _ in range(2) for batch in range(3) for part in range(3)]
        assert [(e.epoch, e.part, e.steps) for e in history] == [(0, None, 3), (1, None, 6)]
        assert trainer.updater.steps == {0: 6, 1: 6, 2: 6}

    def test_sequential(self):
        trainer = small()
        seen = noted(trainer, self.batches)
        history = trainer.fit(self.batches, epochs=2, schedule=sequential)
        assert seen == [(part, batch) for part in range(3) for _ in range(2) for batch in range(3)]
        assert [(e.epoch, e.part) for e in history] == [(e, p) for p in range(3) for e in range(2)]
        assert [e.steps for e in history] == [3, 6, 9, 12, 15, 18]
        assert trainer.updater.steps == {0: 6, 1: 6, 2: 6}

    @pytest.mark.parametrize("schedule", [simultaneous, sequential], ids=["simultaneous", "sequential"])
    def test_the_state_machine_alone_gives_the_same_order(self, schedule):
        """No tensors in it: it is driven here by events."""
        trainer = small()
        seen = noted(trainer, self.batches)
        trainer.fit(self.batches, epochs=2, schedule=schedule)
        state, event, order, upstream = schedule.start(parts=3, epochs=2), Event.START, [], []
        while True:
            state, work = schedule.next(state, event)
            if work is None:
                break
            if work.batch == 3:
                event = Event.EXHAUSTED
                continue
            order.append((work.part, work.batch))
            upstream.append(work.upstream)
            event = Event.DONE
        assert order == seen
        assert set(upstream) == ({FINAL} if schedule is sequential else {0, 1, 2})

    def test_a_part_that_trains_alone_equals_the_same_part_trained_side_by_side(self):
        """Part 0 depends on nothing else, whichever schedule."""
        a, b = small(), small()
        a.fit(self.batches, epochs=1)
        b.fit(self.batches, epochs=1, schedule=sequential)
        assert differing(state(a.partition.model[0]), state(b.partition.model[0])) == []
        assert differing(state(a.partition.model[1]), state(b.partition.model[1])) != []


class TestFeatures:
    """What the finished parts give is kept where samples come back unchanged, else made again for every batch."""

    split = mw.data.Split(*images(24))

    def loader(self, **settings: Any) -> mw.data.Loader:
        return mw.data.Loader(self.split, batch_size=8, seed=2, **settings)

    def run(self, schedule: Sequential, loader: Any = None, **settings: Any) -> tuple[dict[str, Tensor], list[bool]]:
        trainer, modes = residual(**settings), []
        trainer.partition.model.stem.register_forward_hook(lambda m, *_: modes.append(m.training))
        trainer.fit(self.loader() if loader is None else loader, epochs=3, schedule=schedule)
        return state(trainer.partition.model), modes

    def test_kept_features_equal_recomputed_ones_up_to_rounding(self):
        kept, kept_modes = self.run(sequential)
        again, again_modes = self.run(Sequential(cache_bytes=0))
        for name, expected in again.items():
            torch.testing.assert_close(kept[name], expected, rtol=1e-4, atol=1e-5, msg=name)
        assert kept_modes == [True] * 9 + [False] * 3, "the stem runs once more over the data, and never again"
        assert again_modes == [True] * 9 + [False] * 27

    def test_features_larger_than_the_limit_are_made_again(self):
        """The boundaries take 24 samples x 4 bytes x 6x8x8, 8x8x8 and 12x4x4 elements."""
        third = 24 * 4 * 12 * 4 * 4
        _, modes = self.run(Sequential(cache_bytes=third))
        assert modes == [True] * 9 + [False] * (9 + 9 + 3)
        _, modes = self.run(Sequential(cache_bytes=third - 1))
        assert modes == [True] * 9 + [False] * 27

    @pytest.mark.parametrize("kind", ["augmented", "two views", "list"])
    def test_samples_that_do_not_come_back_unchanged_are_not_kept(self, kind):
        loader: Any = self.loader()
        if kind == "augmented":
            loader = self.loader(augment=lambda x, generator: x.flip(3))
        elif kind == "two views":
            loader = self.loader(views=2)
        else:
            loader = list(loader)
        trainer, modes = residual(), []
        trainer.partition.model.stem.register_forward_hook(lambda m, *_: modes.append(m.training))
        trainer.fit(loader, epochs=1, schedule=sequential)
        assert modes == [True] * 3 + [False] * 9

    def test_a_skip_from_an_earlier_boundary_is_fed_again(self):
        split = mw.data.Split(*rows(16))
        trainer = trainer_of(seeded(Skipping), M.DGL(classes=CLASSES), ("a", "b"), rows()[0])
        modes: list[bool] = []
        trainer.partition.model.a.register_forward_hook(lambda m, *_: modes.append(m.training))
        trainer.fit(mw.data.Loader(split, batch_size=8), epochs=1, schedule=sequential)
        assert modes == [True] * 2 + [False] * 4

    def test_in_lower_precision_too(self):
        kept, _ = self.run(sequential, precision=torch.bfloat16)
        again, _ = self.run(Sequential(cache_bytes=0), precision=torch.bfloat16)
        for name, expected in again.items():
            torch.testing.assert_close(kept[name], expected, rtol=3e-2, atol=3e-2, msg=name)


class TestRefused:
    @pytest.mark.parametrize(
        "method",
        [
            M.Backprop(),
            M.Checkpointed(),
            M.DeeplySupervised(M.DGL(classes=CLASSES)),
            M.SyntheticGradients(classes=CLASSES),
            M.DifferenceTargetPropagation(),
            M.DirectFeedbackAlignment(outputs=CLASSES),
            M.FeedbackAlignment(),
        ],
        ids=lambda m: type(m).__name__,
    )
    def test_feedback_needs_the_later_parts(self, method):
        trainer = small(method)
        before = state(trainer.partition.model)
        with pytest.raises(MethodError, match=r"needs later parts in the same step.*simultaneous"):
            trainer.fit([rows()], epochs=1, schedule=sequential)
        assert differing(before, state(trainer.partition.model)) == []

    def test_a_method_with_its_own_update_too(self):
        model = seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, CLASSES)))
        partition = mw.Partition(model, cuts=["1"], example=rows()[0])
        trainer = mw.Trainer(partition, M.BCD(), loss=F.cross_entropy)
        with pytest.raises(MethodError, match="BCD needs later parts"):
            trainer.fit([rows()], epochs=1, schedule=sequential)
        history = trainer.fit([rows()], epochs=3)
        assert [e.steps for e in history] == [1, 2, 3]
        assert sum(history[2].losses.values()) < sum(history[0].losses.values())

    @pytest.mark.parametrize("schedule", [simultaneous, sequential], ids=["simultaneous", "sequential"])
    def test_a_loader_without_a_batch(self, schedule):
        with pytest.raises(DataError, match="no batch, expected at least one"):
            small().fit([], epochs=1, schedule=schedule)

    def test_a_spent_iterator(self):
        with pytest.raises(DataError, match="spent iterator"):
            small().fit(iter([rows()]), epochs=2)

    @pytest.mark.parametrize("epochs", [0, -1])
    def test_no_epochs(self, epochs):
        with pytest.raises(MethodError, match=f"epochs={epochs}, expected at least 1"):
            small().fit([rows()], epochs=epochs)

    def test_labels_out_of_range(self):
        x, y = rows()
        with pytest.raises(DataError, match="classes=4"):
            small().fit([(x, y + 1)], epochs=1)


class TestEpochs:
    def test_callbacks_see_every_epoch_in_order_and_losses_are_means(self):
        batches = [rows(8, seed) for seed in range(3)]
        trainer, other, seen = small(), small(), []
        history = trainer.fit(batches, epochs=2, callbacks=[seen.append, lambda e: seen.append(e.epoch)])
        assert seen == [history[0], 0, history[1], 1]
        steps = [other.step(x, y) for x, y in batches * 2]
        for epoch in range(2):
            own = steps[3 * epoch : 3 * epoch + 3]
            expected = {part: sum(float(s[part]) for s in own) / 3 for part in range(3)}
            assert history[epoch].losses == pytest.approx(expected, rel=1e-6)
            assert history[epoch].seconds > 0
            assert history[epoch].validation is None

    @pytest.mark.parametrize("schedule", [simultaneous, sequential], ids=["simultaneous", "sequential"])
    def test_validation_is_what_evaluate_says(self, schedule):
        trainer, held = residual(), [images(8, 70), images(8, 71)]
        seen: list[tuple[Epoch, Any]] = []
        trainer.fit(
            [images()],
            epochs=2,
            schedule=schedule,
            validate=held,
            callbacks=[lambda e: seen.append((e, trainer.evaluate(held)))],
        )
        assert len(seen) == (2 if schedule is simultaneous else 8)
        assert all(epoch.validation == evaluation for epoch, evaluation in seen)

    def test_a_pass_over_more_data_than_the_first(self):
        """Parts may see passes of different lengths: `steps` counts what was done."""

        class Growing:
            length = 0

            def __iter__(self):
                self.length += 1
                return iter([rows()] * self.length)

        trainer = small()
        history = trainer.fit(Growing(), epochs=3)
        assert [e.steps for e in history] == [1, 3, 6]


class TestModes:
    @pytest.mark.parametrize("schedule", [simultaneous, sequential], ids=["simultaneous", "sequential"])
    def test_modes_are_those_of_before(self, schedule):
        trainer = residual()
        model = trainer.partition.model
        model.eval()
        model.two.train()
        before = {name: m.training for name, m in model.named_modules()}
        trainer.fit([images()], epochs=1, schedule=schedule)
        assert {name: m.training for name, m in model.named_modules()} == before
        assert int(model.stem[1].num_batches_tracked) == 1, "it was trained in train mode all the same"

    def test_also_after_an_error_in_a_callback(self):
        trainer = residual()
        trainer.partition.model.eval()

        def stop(_: Epoch) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trainer.fit([images()], epochs=1, callbacks=[stop])
        assert not any(m.training for m in trainer.partition.model.modules())
        assert trainer.progress is None
        trainer.fit([images()], epochs=1)

    def test_parts_below_run_in_eval_mode_and_the_part_in_training_in_train_mode(self):
        trainer, seen = residual(), []
        model = trainer.partition.model
        for part, owner in enumerate([model.stem, model.one, model.two, model.head]):
            owner.register_forward_hook(
                lambda m, *_, part=part: seen.append((part, m.training, torch.is_grad_enabled()))
            )
        trainer.fit([images()], epochs=1, schedule=sequential)
        expected = [[(below, False, False) for below in range(part)] + [(part, True, True)] for part in range(4)]
        assert seen == [call for calls in expected for call in calls]


class TestInputs:
    def test_a_list_of_tuples_and_our_loader_give_the_same(self):
        split = mw.data.Split(*rows(20))
        a, b = small(), small()
        a.fit(mw.data.Loader(split, batch_size=8, shuffle=False), epochs=2)
        b.fit([(split.x[i : i + 8], split.y[i : i + 8]) for i in (0, 8, 16)], epochs=2)
        assert differing(state(a.partition.model), state(b.partition.model)) == []

    @pytest.mark.parametrize("schedule", [simultaneous, sequential], ids=["simultaneous", "sequential"])
    def test_mappings_of_any_kind(self, schedule):
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Linear(6, 8), nn.Linear(8, CLASSES)

            def forward(self, features: Tensor, scale: Tensor) -> Tensor:
                return self.b(torch.relu(self.a(features)) * scale)

        x, y = rows()
        given = {"features": x, "scale": torch.linspace(1, 2, 8)[:, None]}
        model = seeded(Two)
        trainer = trainer_of(model, M.DGL(classes=CLASSES), ("a",), given)
        before = state(model)
        trainer.fit([(UserDict(given), y)], epochs=1, schedule=schedule)
        assert len(differing(before, state(model))) == 4

    def test_two_parts_may_be_fitted_in_turns(self):
        """`fit` after `fit` goes on with the step count, so that draws differ."""
        trainer = small()
        trainer.fit([rows()], epochs=2)
        trainer.fit([rows()], epochs=1, schedule=sequential)
        assert trainer.steps == 5
        assert trainer.updater.steps == {0: 3, 1: 3, 2: 3}


def test_positions_come_before_classes_where_there_are_as_many_of_both():
    """(N, T, C) with T = C: the largest logit along the last axis is the class."""
    y = torch.tensor([[0, 2, 1], [1, 1, 0]])
    logits = torch.nn.functional.one_hot(y, 3).float()
    assert bool(correct(logits, y).all())
