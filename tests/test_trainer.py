"""The trainer's surface: bad arguments, labels, inputs and outputs of every kind, prediction, compilation."""

from __future__ import annotations

import logging
import shutil
from collections import UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    sgd,
    state,
    trainer_of,
)
from torch import Tensor, nn

import modulewise as mw
from modulewise.errors import DataError, MethodError

M = mw.methods
PARTS = ("0", "1")


def small(method: Any = None, **settings: Any) -> mw.Trainer:
    return trainer_of(seeded(perceptron), method or M.DGL(classes=CLASSES), PARTS, rows()[0], **settings)


class TestArguments:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"optimizer": None}, "DGL needs optimizer="),
            ({"precision": torch.float64}, r"precision=torch\.float64, expected torch\.float32"),
            ({"accumulate": 0}, "accumulate=0, expected at least 1"),
            ({"clip_norm": 0.0}, r"clip_norm=0\.0, expected a positive number"),
            ({"clip_norm": -1.0}, r"clip_norm=-1\.0"),
            ({"compile": True, "recompute": True}, "compile=True and recompute=True were both given"),
        ],
        ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
    )
    def test_refused_in_one_line(self, settings, message):
        with pytest.raises(MethodError, match=message) as caught:
            small(**settings)
        assert "\n" not in str(caught.value)

    def test_something_else_than_a_method(self):
        with pytest.raises(MethodError, match="method is the class DGL, expected an instance of"):
            small(M.DGL)

    def test_a_method_with_its_own_update_takes_no_optimiser(self):
        model = seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, CLASSES)))
        partition = mw.Partition(model, cuts=["1"], example=rows()[0])
        with pytest.raises(MethodError, match="BCD has its own update and takes no optimizer"):
            mw.Trainer(partition, M.BCD(), loss=F.cross_entropy, optimizer=sgd)

    def test_everything_but_partition_and_method_is_keyword_only(self):
        partition = small().partition
        with pytest.raises(TypeError):
            mw.Trainer(partition, M.DGL(classes=CLASSES), F.cross_entropy, sgd)


class TestLabels:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda y: y + 1, "labels reach from 4 to 4 outside 0 to 3"),
            (lambda y: y - 1, "labels reach from -1 to -1 outside"),
            (lambda y: torch.tensor([-100, -5, 0, 1, 2, 3, 0, 1]), "from -5 to -5"),
            (lambda y: y[:5], "y has 5 rows for 8 of x"),
            (lambda y: y[0], "y has 1 rows for 8 of x"),
            (lambda y: y.repeat(2), "y has 16 rows for 8 of x"),
        ],
    )
    @pytest.mark.parametrize(
        "method", [M.DGL(classes=CLASSES), M.DeeplySupervised(M.DGL(classes=CLASSES))], ids=["DGL", "all"]
    )
    def test_that_do_not_fit_are_refused_before_anything_is_done(self, change, message, method):
        trainer, (x, y) = small(method), rows()
        before = state(trainer.partition.model, *trainer.objectives)
        with pytest.raises(DataError, match=message) as caught:
            trainer.step(x, change(y))
        assert "\n" not in str(caught.value)
        assert differing(before, state(trainer.partition.model, *trainer.objectives)) == []
        assert trainer.steps == 0

    def test_ignored_ones_are_let_through(self):
        trainer, (x, y) = small(), rows()
        y[3] = -100
        assert all(bool(torch.isfinite(loss)) for loss in trainer.step(x, y).values())

    def test_a_batch_without_a_tensor(self):
        with pytest.raises(DataError, match="x is list without a tensor"):
            small().step([1, 2], rows()[1])

    def test_labels_of_any_other_kind_are_the_losss_own_matter(self):
        trainer, (x, y) = small(M.Backprop(), loss=lambda output, y: F.cross_entropy(output, torch.tensor(y))), rows()
        assert trainer.step(x, y.tolist())

    def test_soft_targets(self):
        x, y = rows()
        trainer = small(M.Backprop())
        assert trainer.step(x, F.one_hot(y, CLASSES).float())


class TestStep:
    def test_losses_are_by_part_detached_scalars(self):
        for method in (M.DGL(classes=CLASSES), M.Backprop(), M.SyntheticGradients(classes=CLASSES, width=4)):
            losses = small(method).step(*rows())
            assert list(losses) == [0, 1, 2]
            assert all(loss.shape == () and not loss.requires_grad for loss in losses.values())

    def test_losses_do_not_follow_the_weights(self):
        """What is returned is a value: later steps leave it alone."""
        trainer = small()
        first = trainer.step(*rows())
        values = {part: float(loss) for part, loss in first.items()}
        trainer.step(*rows())
        assert {part: float(loss) for part, loss in first.items()} == values

    def test_the_model_given_is_the_model_trained(self):
        model = seeded(perceptron)
        trainer = trainer_of(model, M.DGL(classes=CLASSES), PARTS, rows()[0])
        identities, before = [id(p) for p in model.parameters()], state(model)
        trainer.step(*rows())
        assert [id(p) for p in model.parameters()] == identities
        assert differing(before, state(model)) == list(before)
        assert trainer.partition.model is model

    def test_locality_is_the_methods_unless_a_skip_makes_it_a_port(self):
        assert str(small().locality) == "strict"
        x = rows()[0]
        assert str(trainer_of(seeded(Skipping), M.DGL(classes=CLASSES), ("a", "b"), x).locality) == "port"
        assert str(trainer_of(seeded(Skipping), M.Backprop(), ("a", "b"), x).locality) == "global"

    def test_seeds_decide_heads(self):
        heads = [state(*small(seed=seed).objectives[:-1]) for seed in (0, 0, 1)]
        assert differing(heads[0], heads[1]) == []
        assert differing(heads[0], heads[2]) != []

    def test_the_callers_generator_decides_nothing(self):
        results = []
        for disturbance in (1, 2):
            torch.manual_seed(disturbance)
            trainer = trainer_of(seeded(lambda: perceptron(0.5)), M.DGL(classes=CLASSES), PARTS, rows()[0])
            before = torch.get_rng_state()
            trainer.step(*rows())
            assert torch.equal(before, torch.get_rng_state())
            results.append(state(trainer.partition.model))
        assert differing(*results) == []

    def test_every_step_draws_anew(self):
        """Dropout masks of two steps differ, of two parts too."""
        masks: list[Tensor] = []
        model = seeded(lambda: perceptron(0.5))
        trainer = trainer_of(
            model, M.DGL(classes=CLASSES), PARTS, rows()[0], optimizer=lambda p: torch.optim.SGD(p, lr=0.0)
        )
        model[0][2].register_forward_hook(lambda m, args, out: masks.append(out == 0))
        for _ in range(2):
            trainer.step(*rows())
        assert not torch.equal(masks[0], masks[1])

    def test_a_loss_with_parameters_of_its_own(self):
        class Scaled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scale = nn.Parameter(torch.ones(()))

            def forward(self, output: Tensor, y: Tensor) -> Tensor:
                return F.cross_entropy(output * self.scale, y)

        loss = Scaled()
        small(loss=loss).step(*rows())
        assert float(loss.scale.detach()) != 1.0


class Inputs(nn.Module):
    """Two inputs, of which the second is a side input of a later part."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, features: Tensor, scale: Tensor) -> Tensor:
        h = torch.tanh(self.b(torch.tanh(self.a(features)))) * scale
        return self.c(h)


class TestInputs:
    def given(self) -> dict[str, Tensor]:
        return {"features": rows()[0], "scale": torch.linspace(1, 2, 8)[:, None]}

    @pytest.mark.parametrize("kind", [dict, UserDict, lambda d: tuple(d.values()), lambda d: list(d.values())])
    def test_mappings_and_tuples_equal_the_whole_model(self, kind):
        model, plain, x = seeded(Inputs), seeded(Inputs), kind(self.given())
        trainer = trainer_of(model, M.Backprop(), ("a", "b"), x)
        y = rows()[1]
        for _ in range(3):
            trainer.step(x, y)
        optimizer = sgd(plain.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(plain(**self.given()), y).backward()
            optimizer.step()
        assert differing(state(model), state(plain)) == []
        model.eval()
        assert torch.equal(trainer.predict(x), model(**self.given()))

    def test_slices_take_rows_of_every_tensor(self):
        model, sliced = seeded(Inputs).double(), seeded(Inputs).double()
        x, y = {name: t.double() for name, t in self.given().items()}, rows()[1]
        for net, slices in ((model, 1), (sliced, 3)):
            trainer_of(net, M.Backprop(), ("a", "b"), x, accumulate=slices).step(x, y)
        for name, expected in state(model).items():
            torch.testing.assert_close(state(sliced)[name], expected, rtol=1e-10, atol=1e-12)

    def test_another_batch_size_than_the_examples(self):
        trainer = small()
        for n in (3, 8, 17):
            assert len(trainer.step(*rows(n))) == 3


@dataclass
class Output:
    """What a model of another library returns."""

    logits: Tensor
    hidden: Tensor


class Pair(NamedTuple):
    """A tuple of outputs."""

    logits: Tensor
    extra: Tensor


class Wrapped(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.body, self.head, self.kind = nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, CLASSES), kind

    def forward(self, x: Tensor) -> Any:
        h = self.body(x)
        return self.kind(self.head(h), h)


class TestOutputs:
    """The loss gets the model's output as it is."""

    @pytest.mark.parametrize("kind", [Output, Pair])
    @pytest.mark.parametrize(
        "method", [M.DGL(classes=CLASSES), M.Backprop(), M.DirectFeedbackAlignment(outputs=CLASSES)]
    )
    def test_the_loss_gets_it_raw(self, kind, method):
        seen: list[type] = []

        def loss(output: Any, y: Tensor) -> Tensor:
            seen.append(type(output))
            return F.cross_entropy(output.logits, y)

        model = seeded(lambda: Wrapped(kind))
        trainer = trainer_of(model, method, ("body",), rows()[0], loss=loss)
        before = state(model)
        trainer.step(*rows())
        assert set(seen) == {kind}
        assert differing(before, state(model)) == list(before)
        assert isinstance(trainer.predict(rows()[0]), kind)
        assert trainer.evaluate([rows()]).accuracy is not None

    def test_an_output_with_more_than_a_loss_reads(self):
        model, plain = seeded(lambda: Wrapped(Pair)), seeded(lambda: Wrapped(Pair))

        def loss(output: Any, y: Tensor) -> Tensor:
            return F.cross_entropy(output.logits, y) + output.extra.square().mean()

        trainer_of(model, M.Backprop(), ("body",), rows()[0], loss=loss).step(*rows())
        optimizer = sgd(plain.parameters())
        loss(plain(rows()[0]), rows()[1]).backward()
        optimizer.step()
        assert differing(state(model), state(plain)) == []


class TestEvaluation:
    def test_loss_and_accuracy_against_plain_torch(self):
        """Unequal batches: a mean over samples, not over batches."""
        trainer = trainer_of(seeded(Residual), M.DGL(classes=CLASSES), CUTS, images()[0])
        trainer.step(*images())
        batches = [images(8, 1), images(3, 2)]
        found = trainer.evaluate(batches)
        model = trainer.partition.model
        model.eval()
        with torch.no_grad():
            outputs = torch.cat([model(x) for x, _ in batches])
        y = torch.cat([y for _, y in batches])
        assert found.samples == 11
        assert found.loss == pytest.approx(float(F.cross_entropy(outputs, y)), rel=1e-6)
        assert found.accuracy == pytest.approx(float((outputs.argmax(1) == y).float().mean()))

    def test_a_perfect_and_a_useless_model(self):
        class Echo(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.sign = nn.Linear(CLASSES, CLASSES), 1.0
                nn.init.eye_(self.a.weight)
                nn.init.zeros_(self.a.bias)

            def forward(self, x: Tensor) -> Tensor:
                return self.sign * self.a(x)

        y = torch.arange(8) % CLASSES
        trainer = trainer_of(Echo(), M.Backprop(), (), F.one_hot(y, CLASSES).float())
        assert trainer.evaluate([(F.one_hot(y, CLASSES).float(), y)]).accuracy == 1.0
        trainer.partition.model.sign = -1.0
        assert trainer.evaluate([(F.one_hot(y, CLASSES).float(), y)]).accuracy == 0.0

    def test_outputs_without_classes_have_no_accuracy(self):
        trainer = small(M.Backprop(), loss=lambda output, y: F.mse_loss(output, y))
        assert trainer.evaluate([(rows()[0], torch.zeros(8, CLASSES))]).accuracy is None

    def test_no_batch(self):
        with pytest.raises(DataError, match="no batch"):
            small().evaluate([])

    def test_nothing_is_changed(self):
        trainer = trainer_of(seeded(lambda: Residual(dropout=0.3)), M.DGL(classes=CLASSES), CUTS, images()[0])
        model = trainer.partition.model
        model.train()
        model.two.eval()
        before, modes, generator = state(model), [m.training for m in model.modules()], torch.get_rng_state()
        trainer.evaluate([images()])
        output = trainer.predict(images()[0])
        assert not output.requires_grad
        assert differing(before, state(model)) == []
        assert [m.training for m in model.modules()] == modes
        assert torch.equal(generator, torch.get_rng_state())

    def test_prediction_is_in_eval_mode(self):
        trainer = trainer_of(seeded(lambda: perceptron(0.5)), M.DGL(classes=CLASSES), PARTS, rows()[0])
        x = rows()[0]
        assert torch.equal(trainer.predict(x), trainer.predict(x))
        model = trainer.partition.model.eval()
        assert torch.equal(trainer.predict(x), model(x))


class Breaking(nn.Module):
    """A block that no compiler can take in one piece."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 12)

    def forward(self, h: Tensor) -> Tensor:
        h = torch.relu(self.inner(h))
        torch._dynamo.graph_break()
        return h * 2


@pytest.mark.filterwarnings("default")  # the compiler's own
class TestCompilation:
    @pytest.fixture
    def eager_backend(self, monkeypatch):
        """Graphs are captured but run as they are: quick, and nothing but capture is under test."""
        compile = torch.compile
        monkeypatch.setattr(torch, "compile", lambda function: compile(function, backend="eager"))
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    @pytest.mark.parametrize(
        "method", [M.DGL(classes=CLASSES), M.Backprop(), M.Checkpointed()], ids=lambda m: type(m).__name__
    )
    def test_captured_parts_give_the_same_numbers(self, eager_backend, method):
        plain, captured = small(method), small(method, compile=True)
        for seed in range(3):
            plain.step(*rows(8, seed))
            captured.step(*rows(8, seed))
        a, b = state(plain.partition.model), state(captured.partition.model)
        for name, expected in a.items():
            torch.testing.assert_close(b[name], expected, rtol=1e-5, atol=1e-7, msg=name)
        assert captured.graph_breaks == []
        assert all("_compiled_call_impl" not in vars(m) for m in captured.partition.model.modules())

    @pytest.mark.parametrize(
        ("method", "words"),
        [(M.SGR(classes=CLASSES), r"part 1 \(Reconciled\)"), (M.GaussNewtonTargets(), r"part 0 \(_Solved\)")],
        ids=lambda value: type(value).__name__,
    )
    def test_objectives_that_differentiate_a_part_themselves_are_refused(self, method, words):
        with pytest.raises(MethodError, match=rf"compile=True was given and the objective of {words} differentiates"):
            small(method, compile=True)

    def test_graph_breaks_are_reported_by_part_and_reason(self, eager_backend, caplog):
        model = seeded(lambda: nn.Sequential(*list(perceptron())[:1], Breaking(), nn.Linear(12, CLASSES)))
        trainer = trainer_of(model, M.DGL(classes=CLASSES), ("0", "1"), rows()[0], compile=True)
        assert trainer.graph_breaks == []
        with caplog.at_level(logging.WARNING, logger="modulewise"):
            trainer.step(*rows())
            found = list(trainer.graph_breaks)
            trainer.step(*rows())
        assert [(b.part, b.module) for b in found] == [(1, "1")]
        assert "graph_break" in found[0].reason
        assert "\n" not in str(found[0])
        assert str(found[0]).startswith("part 1, 1: ")
        assert trainer.graph_breaks == found, "met once, told once"
        assert [record.getMessage() for record in caplog.records if record.name.startswith("modulewise")] == [
            f"graph break in {found[0]}"
        ]

    def test_without_compilation_there_is_nothing_to_report(self):
        trainer = small()
        trainer.step(*rows())
        assert trainer.graph_breaks == []

    @pytest.mark.slow
    @pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
    def test_compiled_parts_learn_what_plain_ones_do(self):
        torch._dynamo.reset()
        plain, fast = small(), small(compile=True)
        for seed in range(3):
            plain.step(*rows(8, seed))
            fast.step(*rows(8, seed))
        for name, expected in state(plain.partition.model).items():
            torch.testing.assert_close(state(fast.partition.model)[name], expected, rtol=1e-4, atol=1e-6, msg=name)
        assert fast.graph_breaks == []
        torch._dynamo.reset()


@pytest.mark.parametrize(
    ("word", "value"), [("precision", torch.bfloat16), ("accumulate", 2), ("recompute", True), ("clip_norm", 1.0)]
)
def test_settings_of_updates_are_refused_for_a_method_with_its_own(word, value):
    problem = mw.checks.linear_problem()
    partition = mw.Partition(problem.model(), cuts=problem.cuts, example=problem.x)
    with pytest.raises(mw.errors.MethodError, match=f"BCD has its own update and takes no {word}"):
        mw.Trainer(partition, mw.methods.BCD(), loss=torch.nn.functional.cross_entropy, **{word: value})
