"""The angle to end-to-end backpropagation: known angles are measured, and the trainer is as before bit for bit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from small_networks import CLASSES, CUTS, Residual, images, perceptron, rows, seeded, trainer_of
from torch import Tensor, nn

import modulewise as mw
from modulewise.checks import alignment
from modulewise.checks.alignment import compared
from modulewise.errors import DataError, NonFiniteLossError
from modulewise.method import Family, Locality, PartwiseMethod, Reach
from modulewise.methods import Backprop
from modulewise.methods.reference.backprop import ChainRule
from modulewise.objective import Context, Objective, Role, Signal, Site

M = mw.methods
PARTS = ("0", "1")


def double(make: Callable[[], nn.Module] = perceptron) -> nn.Module:
    return seeded(make).double()


def batch() -> tuple[Tensor, Tensor]:
    x, y = rows()
    return x.double(), y


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """dL/d(parameter) by one plain backward through the whole model."""
    loss = F.cross_entropy(model(x), y)
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True))


def literal_angle(a: list[float], b: list[float]) -> float:
    """The arc cosine of the formula, number by number."""
    dot = sum(u * v for u, v in zip(a, b, strict=True))
    return math.degrees(math.acos(dot / math.sqrt(sum(u * u for u in a)) / math.sqrt(sum(v * v for v in b))))


def flat(tensors: list[Tensor]) -> list[float]:
    return torch.cat([t.detach().reshape(-1) for t in tensors]).tolist()


def stepped(trainer: mw.Trainer, x: Any, y: Any, part: int) -> list[Tensor]:
    """How a part's parameters move in one step of a copy with gradient descent at rate 1, turned uphill."""
    twin = copy.deepcopy(trainer)
    before = [p.detach().clone() for p in twin.partition.part(part).parameters()]
    twin.step(x, y)
    return [old - new.detach() for old, new in zip(before, twin.partition.part(part).parameters(), strict=True)]


class Added(Objective):
    """The chain rule, and a loss linear in the part's parameters, whose gradient is therefore a chosen vector."""

    def __init__(self, site: Site, pushes: list[tuple[Tensor, Tensor]], *, alone: bool) -> None:
        super().__init__()
        self.chain, self.pushes, self.alone = ChainRule(site), pushes, alone
        self.waits, self.reads_input_gradient = self.chain.waits, self.chain.reads_input_gradient

    def forward(self, context: Context) -> Signal:
        signal, added = self.chain(context), sum((p * v).sum() for p, v in self.pushes)
        if self.alone:
            return Signal(loss=added)
        return Signal(loss=added if signal.loss is None else signal.loss + added, gradient=signal.gradient)

    def messages(self, context: Context) -> Any:
        return self.chain.messages(context)


@dataclass(frozen=True)
class Pushed(PartwiseMethod):
    """End-to-end gradients with a chosen vector added to every part's, or that vector alone."""

    pushes: Callable[[int], list[tuple[Tensor, Tensor]]]
    alone: bool = False

    family: ClassVar = Family.REFERENCE
    locality: ClassVar = Locality(Reach.GLOBAL)
    references: ClassVar = Backprop.references

    def objective(self, site: Site) -> Objective:
        return Added(site, self.pushes(site.part), alone=self.alone)


class TestKnownAngles:
    @pytest.mark.parametrize("settings", [{}, {"accumulate": 3}, {"clip_norm": 0.01}, {"recompute": True}])
    def test_backpropagation_has_angle_zero_and_ratio_one_to_the_last_bit_with_dropout_and_batch_norm(self, settings):
        x, y = images()
        trainer = trainer_of(seeded(partial(Residual, dropout=0.4)), Backprop(), CUTS, x, **settings)
        trainer.step(x, y)
        found = alignment(trainer, x, y).parts
        assert [(p.part, p.angle, p.cosine, p.ratio) for p in found] == [(k, 0.0, 1.0, 1.0) for k in range(4)]

    @pytest.mark.parametrize("degrees", [30.0, 1e-5, 90.0, 135.0])
    def test_a_direction_turned_by_some_degrees_is_measured_so(self, degrees):
        """d = g + c with c orthogonal to g: |c| = |g| tan(30), and for 135 degrees d = g + c - 2 g."""
        model, (x, y) = double(), batch()
        plain = gradients(model, x, y)
        generator = torch.Generator().manual_seed(1)
        angle = math.radians(degrees)

        def pushes(part: int) -> list[tuple[Tensor, Tensor]]:
            named = [(n, p) for n, p in model.named_parameters() if n.startswith(f"{part}.")]
            g = torch.cat([plain[n].reshape(-1) for n, _ in named])
            c = torch.randn(g.shape, generator=generator, dtype=g.dtype)
            c -= g * (c @ g) / (g @ g)
            wanted = math.cos(angle) * g + math.sin(angle) * c * g.norm() / c.norm()
            added = (wanted - g).split([p.numel() for _, p in named])
            return [(p, v.view_as(p)) for (_, p), v in zip(named, added, strict=True)]

        found = alignment(trainer_of(model, Pushed(pushes), PARTS, x), x, y).parts
        assert [p.angle for p in found] == pytest.approx([degrees] * 3, rel=1e-8)
        assert [p.cosine for p in found] == pytest.approx([math.cos(angle)] * 3, abs=1e-12)
        assert [p.ratio for p in found] == pytest.approx([1.0] * 3, rel=1e-12)

    def test_a_random_direction_is_nearly_at_a_right_angle(self):
        """The cosine of n random entries has standard deviation 1 / sqrt(n); here n = 112, 204 and 52."""
        model, (x, y) = double(), batch()
        generator = torch.Generator().manual_seed(2)

        def pushes(part: int) -> list[tuple[Tensor, Tensor]]:
            own = [p for n, p in model.named_parameters() if n.startswith(f"{part}.")]
            return [(p, torch.randn(p.shape, generator=generator, dtype=p.dtype)) for p in own]

        found = alignment(trainer_of(model, Pushed(pushes, alone=True), PARTS, x), x, y)
        for part, entries in zip(found.parts, (112, 204, 52), strict=True):
            assert 0 < abs(part.cosine) < 3.5 / math.sqrt(entries)
            assert part.angle == pytest.approx(math.degrees(math.acos(part.cosine)))

    def test_feedback_alignment_with_the_weights_as_feedback_has_angle_zero_and_with_others_has_not(self):
        x, y = batch()
        tied = trainer_of(double(), M.FeedbackAlignment(feedback=lambda _, module: module.weight), PARTS, x)
        assert alignment(tied, x, y).angles == pytest.approx([0.0] * 3, abs=1e-10)
        random = alignment(trainer_of(double(), M.FeedbackAlignment(), PARTS, x), x, y).angles
        assert random[2] == 0.0
        assert all(10 < angle < 170 for angle in random[:2])

    @pytest.mark.parametrize("method", [M.DGL(classes=CLASSES), M.DirectFeedbackAlignment(outputs=CLASSES)])
    def test_local_parts_have_the_angle_of_the_formula_and_the_last_one_that_of_the_task_loss(self, method):
        x, y = batch()
        trainer = trainer_of(double(), method, PARTS, x, optimizer=partial(torch.optim.SGD, lr=1.0))
        found, plain = alignment(trainer, x, y), gradients(double(), x, y)
        assert (found.parts[2].angle, found.parts[2].ratio) == (0.0, 1.0)
        for part in range(3):
            ours = flat(stepped(trainer, x, y, part))
            theirs = flat([g for name, g in plain.items() if name.startswith(f"{part}.")])
            if part < 2:
                assert found.angles[part] == pytest.approx(literal_angle(ours, theirs), rel=1e-8)
                assert found.angles[part] > 5
            assert found.parts[part].ratio == pytest.approx(math.hypot(*ours) / math.hypot(*theirs), rel=1e-10)

    def test_a_method_with_its_own_update_is_measured_by_how_parameters_change(self):
        model = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES))).double()
        x, y = batch()
        trainer = mw.Trainer(mw.Partition(model, cuts=["1"], example=x), M.BCD(), loss=F.cross_entropy)
        plain = gradients(model, x, y)
        found = alignment(trainer, x, y)
        for part in range(2):
            ours = flat(stepped(trainer, x, y, part))
            theirs = flat([g for name, g in plain.items() if name.startswith(("0.", "2.")[part])])
            assert found.angles[part] == pytest.approx(literal_angle(ours, theirs), rel=1e-8)
            assert found.parts[part].ratio == pytest.approx(math.hypot(*ours) / math.hypot(*theirs), rel=1e-10)

    def test_windows_of_time_have_the_one_angle_of_their_parameters(self):
        x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        for method, exact in ((Backprop(), True), (M.DGL(classes=CLASSES), False)):
            model = seeded(partial(mw.models.rnn_rows, (1, 8, 8), CLASSES))
            partition = mw.TimePartition(model, windows=3, example=x)
            trainer = mw.Trainer(partition, method, loss=F.cross_entropy, optimizer=partial(torch.optim.SGD, lr=0.1))
            first, *others = alignment(trainer, x, torch.arange(4)).angles
            assert others == [None, None]
            assert (first == 0.0) is exact


class TestNoAngle:
    def test_a_part_without_trainable_parameters_has_none(self):
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Linear(16, CLASSES))
        model[2].requires_grad_(False)
        x, y = rows()
        found = alignment(trainer_of(model, Backprop(), ("0", "1", "2"), x), x, y)
        assert found.angles == (0.0, None, None, 0.0)
        assert [(p.cosine, p.ratio) for p in found.parts[1:3]] == [(None, None)] * 2
        assert str(found) == "part 0: 0.0 degrees, length x1; part 1: -; part 2: -; part 3: 0.0 degrees, length x1"

    def test_a_direction_of_zero_or_without_a_finite_length_has_none(self):
        one = torch.ones(2)
        for other in (torch.zeros(2), torch.full((2,), math.nan), torch.full((2,), math.inf)):
            assert compared(0, [one], [other]).angle is compared(0, [other], [one]).ratio is None


def everything(trainer: mw.Trainer) -> dict[str, Any]:
    """All that a step may change, as comparable values."""
    facts: dict[str, Any] = {"random": torch.get_rng_state(), "counts": [trainer.steps, trainer.progress]}
    facts["steps"] = dict(trainer.updater.steps)
    for where, module in enumerate((trainer.partition.model, *trainer.objectives)):
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            facts[f"{where}.{name}"] = (id(tensor), tensor.detach().clone(), tensor.grad)
        facts[f"{where} modes"] = [m.training for m in module.modules()]
    for key, optimizer in trainer.updater.optimizers.items():
        facts[f"optimizer {key}"] = optimizer.state_dict()
        facts[f"hooks {key}"] = len(optimizer._optimizer_step_pre_hooks)
    for key, scheduler in trainer.updater.schedulers.items():
        facts[f"scheduler {key}"] = scheduler.state_dict()
    if trainer.solver is not None:
        facts["solver"] = trainer.solver.state_dict()
    for part, objective in enumerate(trainer.objectives):
        facts[f"rule {part}"] = None if objective.rule is None else objective.rule.state_dict()
    return copy.deepcopy(facts)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(u, v) for u, v in zip(a, b, strict=True))
    return bool(a == b)


class Replacing(nn.Module):
    """Counts its calls in a buffer that it puts a new tensor in the place of."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, h: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return h * (1 + 0.1 * self.calls)


METHODS = [
    Backprop(),
    M.DGL(classes=CLASSES),
    M.DifferenceTargetPropagation(),
    M.SyntheticGradients(classes=CLASSES),
    M.FeedbackAlignment(),
    M.LocalUpdates(classes=CLASSES),
    M.DDG(),
    M.KolenPollack(),
    M.SimplifiedDTP(outputs=CLASSES),
]


class TestNoTrace:
    @pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
    @pytest.mark.parametrize("steps", [0, 2])
    def test_all_state_is_as_before_and_training_goes_on_as_without(self, method, steps):
        x, y = images()
        settings = {
            "optimizer": partial(torch.optim.Adam, lr=0.01),
            "scheduler": partial(torch.optim.lr_scheduler.StepLR, step_size=1),
        }
        make = partial(trainer_of, method=method, cuts=CUTS, x=x, **settings)
        measured, plain = (make(seeded(partial(Residual, dropout=0.3))) for _ in range(2))
        for trainer in (measured, plain):
            for _ in range(steps):
                trainer.step(x, y)
        measured.partition.model.stem[0].weight.grad = torch.ones_like(measured.partition.model.stem[0].weight)
        plain.partition.model.stem[0].weight.grad = torch.ones_like(measured.partition.model.stem[0].weight)
        before = everything(measured)
        first = alignment(measured, x, y)
        assert same(before, everything(measured))
        assert alignment(measured, x, y) == first
        if isinstance(method, M.DDG) and steps == 0:
            assert first.angles == (None, None, None, 0.0)  # no gradient of an earlier step is there yet
        else:
            assert any(angle for angle in first.angles) or isinstance(method, Backprop)
        for trainer in (measured, plain):
            trainer.step(x, y)
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                measured.partition.model.state_dict().values(), plain.partition.model.state_dict().values(), strict=True
            )
        )

    def test_buffers_that_a_module_replaces_come_back_themselves(self):
        model = nn.Sequential(nn.Linear(6, 8), Replacing(), nn.Linear(8, CLASSES))
        x, y = rows()
        trainer = trainer_of(model, M.DGL(classes=CLASSES), ("1",), x)
        buffer, value = model[1].calls, model[1].calls.clone()
        alignment(trainer, x, y)
        assert model[1].calls is buffer
        assert torch.equal(buffer, value)

    @pytest.mark.parametrize("steps", [0, 1])
    def test_so_is_a_solver(self, steps, monkeypatch):
        """One that draws random numbers as well."""
        x, y = rows()
        trainer = mw.Trainer(
            mw.Partition(
                seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES))), cuts=["1"], example=x
            ),
            M.BCD(),
            loss=F.cross_entropy,
        )
        for _ in range(steps):
            trainer.step(x, y)
        step = trainer.solver.step
        monkeypatch.setattr(trainer.solver, "step", lambda *batch, **words: torch.rand(1) and step(*batch, **words))
        before = everything(trainer)
        alignment(trainer, x, y)
        assert same(before, everything(trainer))

    def test_so_it_is_after_an_error(self):
        x, y = rows()
        trainer = trainer_of(seeded(perceptron), M.DGL(classes=CLASSES), PARTS, x)
        trainer.step(x, y)
        before = everything(trainer)
        with pytest.raises(NonFiniteLossError):
            alignment(trainer, torch.full_like(x, math.nan), y)
        with pytest.raises(DataError):
            alignment(trainer, x, y[:3])
        assert same(before, everything(trainer))

    def test_a_part_that_has_no_optimiser_yet_is_given_none(self):
        x, y = rows()
        trainer = trainer_of(seeded(perceptron), M.DGL(classes=CLASSES), PARTS, x)
        alignment(trainer, x, y)
        assert trainer.updater.optimizers == {}
        trainer.step(x, y)
        trainer.updater.release(0)
        alignment(trainer, x, y)
        assert (0, Role.PART) not in trainer.updater.optimizers
