"""What experiments offer for published settings: rates in steps and of the last part, more optimisers, several views,
a limit on test samples, statistics handed to methods, and scores of frozen features."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy
import pytest
import torch
from torch import nn

from modulewise import methods, registry
from modulewise.cli import main
from modulewise.compare import Descent, Experiment, RateSchedule, configurations, run
from modulewise.compare.assembling import Workshop
from modulewise.compare.measuring import measure
from modulewise.compare.scoring import frozen_scores, hidden_features, hidden_scores
from modulewise.data import Normalize
from modulewise.errors import DataError, ModulewiseError, PartitionError
from modulewise.method import Method
from modulewise.objective import Role
from modulewise.partition import Partition
from modulewise.report import command_line

SMALL = Experiment(methods=("dgl:head=linear",), model="mlp", parts=(2,), epochs=6, train_limit=64, probe=False)
STEPS = replace(SMALL, schedule_lr=RateSchedule.STEPS, milestones=(2, 5), decay=0.5, lr=0.4)


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch):
    """Collecting garbage before memory is measured would take most of the time."""
    monkeypatch.setattr("gc.collect", lambda *_: 0)


def trainer(experiment):
    (row,) = configurations(experiment)
    return Workshop(experiment).trainer(row, seed=0)


class TestRates:
    def test_steps_are_those_of_a_hand_made_loop(self):
        """Plain gradient descent on the whole set: weights move by rate * gradient, with the rate of the table."""
        experiment = replace(
            STEPS, methods=("backprop",), parts=(1,), batch_size=64, momentum=0.0, weight_decay=0.0, normalize=False
        )
        (row,) = configurations(experiment)
        workshop = Workshop(experiment)
        model, loader = workshop.model(0), workshop.loader(row, seed=0)
        rates = [0.4, 0.4, 0.2, 0.2, 0.2, 0.1]
        for rate in rates:
            for x, y in loader:
                gradients = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
                with torch.no_grad():
                    for weight, gradient in zip(model.parameters(), gradients, strict=True):
                        weight -= rate * gradient
        made = workshop.trainer(row, seed=0)
        made.fit(workshop.loader(row, seed=0), epochs=6)
        for expected, found in zip(model.parameters(), made.partition.model.parameters(), strict=True):
            torch.testing.assert_close(found, expected)

    def test_the_last_part_may_have_a_rate_of_its_own(self):
        made = trainer(replace(SMALL, parts=(3,), lr=0.4, last_lr=0.01))
        rates = [made.updater.optimizer(part, Role.PART).param_groups[0]["lr"] for part in range(3)]
        assert rates == [0.4, 0.4, 0.01]
        assert made.updater.optimizer(1, Role.HEAD).param_groups[0]["lr"] == 0.4

    def test_feedback_may_have_a_rate_of_its_own_in_every_part_which_heads_do_not_take(self):
        """The inverses of difference target propagation are feedback; the heads of DGL are not."""
        inverses = replace(
            SMALL, methods=("difference-target-propagation",), parts=(3,), lr=0.4, last_lr=0.01, feedback_lr=0.07
        )
        for feedback_lr, expected in ((0.07, 0.07), (None, 0.4)):
            made = trainer(replace(inverses, feedback_lr=feedback_lr)).updater
            found = [made.optimizer(part, Role.FEEDBACK) for part in range(3)]
            assert {optimizer.param_groups[0]["lr"] for optimizer in found if optimizer is not None} == {expected}
            assert any(found)
            assert [made.optimizer(part, Role.PART).param_groups[0]["lr"] for part in range(3)] == [0.4, 0.4, 0.01]
        heads = trainer(replace(SMALL, lr=0.4, feedback_lr=0.07))
        assert heads.updater.optimizer(0, Role.HEAD).param_groups[0]["lr"] == 0.4

    @pytest.mark.parametrize(
        ("descent", "kind"),
        [
            (Descent.SGD, torch.optim.SGD),
            (Descent.ADAM, torch.optim.Adam),
            (Descent.ADAMW, torch.optim.AdamW),
            (Descent.RMSPROP, torch.optim.RMSprop),
        ],
    )
    def test_every_optimiser_has_the_rate_and_the_decay_of_the_experiment(self, descent, kind):
        optimizer = trainer(replace(SMALL, optimizer=descent, lr=0.02, weight_decay=0.3)).updater.optimizer(
            0, Role.PART
        )
        assert type(optimizer) is kind
        assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (0.02, 0.3)

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"milestones": ()}, "milestones go with steps"),
            ({"schedule_lr": RateSchedule.COSINE}, "milestones go with steps"),
            ({"milestones": (5, 2)}, "expected increasing numbers"),
            ({"milestones": (2, 2)}, "expected increasing numbers"),
            ({"milestones": (0, 2)}, "expected increasing numbers"),
            ({"milestones": (2, 6)}, "expected increasing numbers"),
            ({"decay": 1.0}, "decay=1.0, expected"),
            ({"decay": 0.0}, "decay=0.0, expected"),
            ({"last_lr": 0.0}, "last_lr=0.0"),
            ({"last_lr": float("nan")}, "last_lr=nan"),
            ({"feedback_lr": 0.0}, "feedback_lr=0.0"),
            ({"feedback_lr": float("nan")}, "feedback_lr=nan"),
            ({"test_limit": 0}, "test_limit=0"),
        ],
    )
    def test_settings_that_contradict_each_other_are_refused(self, changes, complaint):
        with pytest.raises(ModulewiseError, match=complaint):
            replace(STEPS, **changes)

    def test_an_experiment_survives_being_written_down(self):
        experiment = replace(STEPS, last_lr=0.1, feedback_lr=0.2, test_limit=9, optimizer=Descent.RMSPROP)
        assert Experiment.from_json(experiment.to_json()) == experiment

    def test_the_command_line_of_the_report_says_them_and_is_understood(self, tmp_path, capsys):
        experiment = replace(STEPS, last_lr=0.1, feedback_lr=0.2, test_limit=9, optimizer=Descent.ADAMW)
        words = command_line(experiment, out=tmp_path / "o").split()[1:]
        for flag in (
            "--milestones 2,5",
            "--decay 0.5",
            "--last-lr 0.1",
            "--feedback-lr 0.2",
            "--test-limit 9",
            "--schedule-lr steps",
        ):
            assert flag in " ".join(words)
        assert main(words) == 0
        capsys.readouterr()


class TestTestLimit:
    def test_so_many_test_samples_are_drawn_the_same_ones_every_time(self):
        limited = [Workshop(replace(SMALL, test_limit=20)).material.test for _ in range(2)]
        whole = Workshop(SMALL).material.test
        assert len(limited[0]) == 20
        assert torch.equal(limited[0].x, limited[1].x)
        assert all((whole.x == x).flatten(1).all(1).any() for x in limited[0].x)
        assert not torch.equal(limited[0].x, whole.x[:20])
        assert len(Workshop(replace(SMALL, test_limit=10**6)).material.test) == len(whole)


class TestViews:
    TWO = replace(SMALL, methods=("loco",), augment=("crop:1",), epochs=1, batch_size=32, model="cnn", parts=(3,))

    def test_a_method_of_two_views_is_fed_two_that_differ_and_measured_with_them(self):
        (row,) = configurations(self.TWO)
        assert row.views == methods.LoCo.views == 2
        workshop = Workshop(self.TWO)
        for x, y in (next(iter(workshop.loader(row, seed=0))), workshop.batch(32, views=2)):
            assert (len(x), len(y)) == (64, 32)
            assert not torch.equal(x[:32], x[32:])
        figures = measure(workshop, [row], repeats=1)[row]
        assert figures.locality_ok
        assert figures.peak_breakdown["inputs"] == 4 * 64 * 8 * 8 + 8 * 32  # x of both views, and y once

    def test_it_trains_and_is_scored_on_plain_samples(self):
        (result,) = run(self.TWO)
        assert result.error is None
        assert 0 <= result.test_accuracy <= 1

    def test_without_augmentation_its_views_would_be_equal_and_it_is_refused(self):
        with pytest.raises(ModulewiseError, match=r"loco compares 2 views .* add one such as --augment"):
            run(replace(self.TWO, augment=()))

    def test_a_control_has_the_views_of_the_method_that_it_wraps(self):
        (row,) = configurations(replace(self.TWO, methods=("deeply-supervised(loco)",)))
        assert row.views == 2
        assert configurations(SMALL)[0].views == 1


@dataclass(frozen=True)
class Undoes(Method):
    """A method that asks for the statistics of the data."""

    classes: int
    normalize: Normalize | None = None
    weight: float = 1.0

    family: ClassVar = methods.DGL.family
    locality: ClassVar = methods.DGL.locality
    references: ClassVar = methods.DGL.references


class TestStatistics:
    @pytest.fixture(autouse=True)
    def _known(self, monkeypatch):
        monkeypatch.setattr(methods, "Undoes", Undoes, raising=False)
        monkeypatch.setattr(methods, "__all__", [*methods.__all__, "Undoes"])

    def test_a_method_that_asks_for_them_gets_those_of_the_training_data(self):
        normalize = Normalize(mean=(0.5,), std=(0.2,))
        name = registry.parse("undoes:weight=2")
        assert registry.build(name, classes=3, normalize=normalize) == Undoes(3, normalize, 2.0)
        assert registry.build(name, classes=3).normalize is None
        assert registry.build(registry.parse("dgl"), classes=3, normalize=normalize) == methods.DGL(classes=3)

    def test_they_are_not_to_be_set_by_words(self):
        with pytest.raises(ModulewiseError, match="no option 'normalize'"):
            registry.parse("undoes:normalize=1")

    def test_a_workshop_hands_them_over(self, monkeypatch):
        seen = []
        original = registry.build
        monkeypatch.setattr(
            registry, "build", lambda name, **given: seen.append(given.get("normalize")) or original(name, **given)
        )
        workshop = Workshop(SMALL)
        workshop.trainer(configurations(SMALL)[0], seed=0)
        assert seen[-1] is workshop.material.normalize is not None


class TestScores:
    def test_nearest_neighbours_are_those_of_a_plain_loop(self):
        generator = torch.Generator().manual_seed(0)
        x, held = torch.randn(40, 3, generator=generator), torch.randn(15, 3, generator=generator)
        y, y_held = torch.arange(40) % 3, torch.arange(15) % 3
        hits = 0
        for sample, label in zip(held, y_held, strict=True):
            distances = [1 - float(sample @ other / (sample.norm() * other.norm())) for other in x]
            nearest = sorted(range(40), key=distances.__getitem__)[:7]
            votes = [sum(int(y[index]) == c for index in nearest) for c in range(3)]
            hits += votes.index(max(votes)) == int(label)
        assert frozen_scores((x, y), (held, y_held), neighbours=7).neighbours == pytest.approx(hits / 15)

    def test_the_linear_classifier_is_at_the_minimum_of_its_formula(self):
        """Its gradient, by a plain loop over samples in NumPy, vanishes at the weights that it predicts by."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        generator = torch.Generator().manual_seed(1)
        x = torch.randn(60, 2, generator=generator)
        y = (x[:, 0] + 0.5 * torch.randn(60, generator=generator) > 0).long()
        held = torch.randn(200, 2, generator=generator)
        labels = (held[:, 0] > 0).long()
        z = StandardScaler().fit(x.numpy())
        fitted = LogisticRegression(C=1.0, max_iter=1000).fit(z.transform(x.numpy()), y.numpy())
        gradient = fitted.coef_[0].copy()  # of penalty / 2 ||w||^2, penalty 1
        for row, label in zip(z.transform(x.numpy()), y.tolist(), strict=True):
            p = 1 / (1 + numpy.exp(-(row @ fitted.coef_[0] + fitted.intercept_[0])))
            gradient += (p - label) * row
        assert abs(gradient).max() < 1e-2
        guesses = fitted.predict(z.transform(held.numpy()))
        expected = float((torch.from_numpy(guesses) == labels).double().mean())
        assert frozen_scores((x, y), (held, labels)).linear == pytest.approx(expected)
        assert expected > 0.8

    def test_the_scale_of_a_feature_does_not_matter_to_the_linear_one(self):
        generator = torch.Generator().manual_seed(2)
        x, y = torch.randn(50, 3, generator=generator), torch.arange(50) % 2
        scaled = x * torch.tensor([1e-3, 1.0, 1e3])
        assert frozen_scores((x, y), (x, y)).linear == frozen_scores((scaled, y), (scaled, y)).linear

    def test_fewer_samples_than_neighbours_all_vote(self):
        x, y = torch.eye(3), torch.tensor([0, 0, 1])
        assert frozen_scores((x, y), (x, y)).neighbours == pytest.approx(2 / 3)

    def test_one_class_and_features_that_are_not_finite_are_refused(self):
        x, y = torch.eye(3), torch.tensor([0, 0, 1])
        with pytest.raises(DataError, match="all of one class"):
            frozen_scores((x, torch.zeros(3, dtype=torch.int64)), (x, y))
        with pytest.raises(DataError, match="not finite"):
            frozen_scores((x / 0, y), (x, y))

    def test_features_are_those_before_the_last_part_averaged_over_positions(self):
        network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
        partition = Partition(network, cuts=["1"], example=torch.randn(2, 1, 8, 8))
        x = torch.randn(5, 1, 8, 8)
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        torch.testing.assert_close(hidden_features(partition, x), network[:2](x).mean((2, 3)))
        batches = [(x, torch.tensor([0, 1, 0, 1, 1]))]
        whole = hidden_features(partition, x), batches[0][1]
        assert hidden_scores(partition, batches, batches) == frozen_scores(whole, whole)
        assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())

    def test_a_single_part_has_no_hidden_features(self):
        partition = Partition(nn.Sequential(nn.Linear(3, 2)), cuts=[], example=torch.randn(2, 3))
        with pytest.raises(PartitionError, match="one part has no hidden one"):
            hidden_features(partition, torch.randn(2, 3))


def test_a_delayed_method_is_measured_when_every_part_has_a_batch_to_learn_from():
    """Delayed gradients then take backpropagation's operations."""
    experiment = replace(SMALL, methods=("backprop", "ddg"), parts=(4,), model="mlp")
    whole, delayed = measure(Workshop(experiment), configurations(experiment), repeats=1).values()
    assert delayed.flops == whole.flops
