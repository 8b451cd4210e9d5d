"""The feedback phase, the look ahead and rules that learn: who is asked when, with which weights, and what moves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_networks import CUTS, Residual, differing, images, perceptron, rows, seeded, state, trainer_of
from torch import Tensor, nn

import modulewise as mw
from modulewise.objective import LayerRule


def plain_sgd(parameters: Iterable[Tensor]) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.1)


class Guessing(mw.Objective):
    """Rehearses a scale towards the mean of h_out, looks ahead, tells the part below and itself."""

    role = mw.Role.FEEDBACK
    waits = True
    looks_ahead = True

    def __init__(self, site: mw.Site, log: list[Any], rounds: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))
        self.rounds, self.log, self.loss, self.last = rounds, log, site.loss, site.last

    def rehearse(self, context: mw.Context) -> mw.Signal:
        assert not context.h_out.requires_grad
        self.log.append(("rehearse", context.part, dict(context.feedback)))
        return mw.Signal(loss=(self.scale - context.h_out.mean()).square())

    def rehearsed(self, context: mw.Context) -> Mapping[int, Any]:
        with torch.no_grad():
            self.log.append(("ahead", context.part, context.ahead(context.h_out), context.h_out))
        return {context.part - 1: f"from {context.part}", context.part: float(self.scale.detach())}

    def forward(self, context: mw.Context) -> mw.Signal:
        self.log.append(("learn", context.part, dict(context.feedback)))
        if self.last:
            return mw.Signal(loss=self.loss(context.h_out, context.labels))
        return mw.Signal(loss=context.h_out.square().mean())


@dataclass(frozen=True)
class Rehearsing(mw.PartwiseMethod):
    """For these tests."""

    rounds: int = 2
    log: list[Any] = field(default_factory=list)

    family, locality, references = mw.Family.TARGETS, mw.Locality(mw.Reach.TARGETS), ()

    def objective(self, site: mw.Site) -> mw.Objective:
        return Guessing(site, self.log, self.rounds)


def test_objectives_are_asked_from_the_top_down_before_any_part_learns_and_hear_the_rehearsals_above():
    method, (x, y) = Rehearsing(), rows()
    trainer_of(seeded(perceptron), method, ("0", "1"), x).step(x, y)
    assert [entry[:2] for entry in method.log] == [
        *[("rehearse", 2), ("rehearse", 2), ("ahead", 2)],
        *[("rehearse", 1), ("rehearse", 1), ("ahead", 1)],
        *[("rehearse", 0), ("rehearse", 0), ("ahead", 0)],
        *[("learn", 2), ("learn", 1), ("learn", 0)],
    ]
    assert [entry[2] for entry in method.log if entry[0] == "rehearse"] == [
        *[{}, {}],
        *[{2: "from 2"}, {2: "from 2"}],
        *[{1: "from 1"}, {1: "from 1"}],
    ]


def test_a_message_to_itself_is_there_when_the_part_learns_and_no_other_message_of_the_phase_is():
    method, (x, y) = Rehearsing(), rows()
    trainer = trainer_of(seeded(perceptron), method, ("0", "1"), x, optimizer=plain_sgd)
    trainer.step(x, y)
    learned = {entry[1]: entry[2] for entry in method.log if entry[0] == "learn"}
    assert learned == {part: {part: float(o.scale.detach())} for part, o in enumerate(trainer.objectives)}


def test_own_parameters_step_after_every_round_as_in_plain_torch():
    method, (x, y) = Rehearsing(rounds=3), rows()
    model = seeded(perceptron)
    with torch.no_grad():
        means = [model[:k](x).mean() for k in (1, 2, 3)]
    trainer = trainer_of(model, method, ("0", "1"), x, optimizer=plain_sgd)
    trainer.step(x, y)
    for objective, mean in zip(trainer.objectives, means, strict=True):
        scale = nn.Parameter(torch.zeros(()))
        optimizer = plain_sgd([scale])
        for _ in range(3):
            optimizer.zero_grad()
            (scale - mean).square().backward()
            optimizer.step()
        assert torch.equal(objective.scale, scale)


def test_looking_ahead_gives_the_output_of_the_forward_with_its_draws_and_leaves_buffers_alone():
    """With dropout and batch norm in later parts: the output seen from every part is the one the last part has."""
    method, (x, y) = Rehearsing(rounds=1), images()
    models = [seeded(lambda: Residual(dropout=0.4)) for _ in range(2)]
    trainer_of(models[0], method, CUTS, x).step(x, y)
    seen = {entry[1]: entry[2:] for entry in method.log if entry[0] == "ahead"}
    output = seen[3][1]
    assert sorted(seen) == [0, 1, 2, 3]
    assert all(torch.equal(ahead, output) for ahead, _ in seen.values())
    trainer_of(models[1], mw.methods.Backprop(), CUTS, x).step(x, y)
    buffers = [dict(model.named_buffers()) for model in models]
    assert differing(buffers[0], buffers[1]) == []


class AheadGradient(Guessing):
    """dL/dh_out through the later parts, by looking ahead with gradients."""

    def rehearse(self, context: mw.Context) -> None:
        return None

    def rehearsed(self, context: mw.Context) -> Mapping[int, Any]:
        h = context.h_out.clone().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.loss(context.ahead(h), context.labels), h)
        return {context.part: gradient}

    def forward(self, context: mw.Context) -> mw.Signal:
        return mw.Signal(gradient=context.feedback[context.part])


class LookingAhead(Rehearsing):
    def objective(self, site: mw.Site) -> mw.Objective:
        return AheadGradient(site, self.log, 1)


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_by_looking_ahead_in_the_phase_are_those_of_backpropagation(recompute):
    """Every weight is that of the forward pass, whatever part learns first; dropout and batch norm included."""
    x, y = images()
    models = [seeded(lambda: Residual(dropout=0.4)) for _ in range(2)]
    for model, method in zip(models, (LookingAhead(), mw.methods.Backprop()), strict=True):
        trainer = trainer_of(model, method, CUTS, x, optimizer=plain_sgd, recompute=recompute)
        trainer.step(x, y)
    for a, b in zip(state(models[0]).values(), state(models[1]).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("windows", [2, 3])
def test_windows_of_time_rehearse_their_one_inverse_round_by_round(windows):
    """Every window but the first has its rounds, and the weights of the network step once, at the end."""
    x, y = torch.randn(6, 6, 4, generator=torch.Generator().manual_seed(5)), torch.arange(6) % 3
    layer = seeded(lambda: nn.RNN(4, 5, batch_first=True))
    partition = mw.TimePartition(mw.models.RecurrentNetwork(layer, outputs=3, every=False), windows=windows, example=x)
    method = mw.methods.SimplifiedDTP(outputs=3, rounds=4)
    trainer, asked = mw.Trainer(partition, method, loss=F.cross_entropy, optimizer=plain_sgd), []
    for role in (mw.Role.PART, mw.Role.FEEDBACK):
        optimizer = trainer.updater.optimizer(0, role)
        optimizer.register_step_pre_hook(
            lambda optimizer, *_, role=role: asked.append(
                (role, any(p.grad is not None for p in parameters(optimizer)))
            )
        )
    trainer.step(x, y)
    assert asked[:-2] == [(mw.Role.FEEDBACK, True)] * (4 * (windows - 1))
    assert sorted(asked[-2:]) == [(mw.Role.FEEDBACK, False), (mw.Role.PART, True)]


def parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


class Late(Rehearsing):
    def objective(self, site: mw.Site) -> mw.Objective:
        objective = super().objective(site)
        objective.delay = 1 - site.last
        return objective


def test_looking_ahead_late_is_refused():
    with pytest.raises(mw.errors.MethodError, match=r"part 0 has delay=1 and looks ahead"):
        trainer_of(seeded(perceptron), Late(), ("0", "1"), rows()[0])


class Hasty(Rehearsing):
    def objective(self, site: mw.Site) -> mw.Objective:
        objective = super().objective(site)
        objective.waits = not site.last
        return objective


def test_a_later_part_that_does_not_wait_is_refused():
    with pytest.raises(mw.errors.MethodError, match=r"part 0 rehearses .* part 2 does not wait"):
        trainer_of(seeded(perceptron), Hasty(), ("0", "1"), rows()[0])


def test_no_graph_and_no_gradient_of_the_phase_outlives_it():
    x, y = rows()
    trainer = trainer_of(seeded(perceptron), Rehearsing(), ("0", "1"), x)
    trainer.step(x, y)
    assert all(p.grad is None for o in trainer.objectives for p in o.parameters())
    assert all(p.grad is None for p in trainer.partition.model.parameters())


class Counting(LayerRule):
    """Counts how often it is asked to learn, and doubles the gradients."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    @contextmanager
    def installed(self, modules: Iterable[tuple[str, nn.Module]]) -> Iterator[None]:
        yield

    def learn(self, modules: Iterable[tuple[str, nn.Module]]) -> None:
        modules = list(modules)
        self.asked.append([name for name, _ in modules])
        for _, module in modules:
            for parameter in module.parameters(recurse=False):
                parameter.grad *= 2

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        pass


@dataclass(frozen=True)
class Ruled(mw.PartwiseMethod):
    """Backpropagation with a rule that doubles gradients."""

    rule: Counting

    family, locality, references = mw.Family.GRADIENTS, mw.Locality(mw.Reach.GLOBAL), ()

    def objective(self, site: mw.Site) -> mw.Objective:
        objective = mw.methods.Backprop().objective(site)
        objective.rule = self.rule
        return objective


@pytest.mark.parametrize("slices", [1, 2])
def test_a_rule_learns_once_a_step_of_every_part_when_all_slices_have_been(slices):
    rule, (x, y) = Counting(), rows()
    model, plain = seeded(perceptron), seeded(perceptron)
    trainer_of(model, Ruled(rule), ("0", "1"), x, accumulate=slices, optimizer=plain_sgd).step(x, y)
    assert rule.asked == [["2"], ["1", "1.0", "1.1", "1.2"], ["0", "0.0", "0.1", "0.2"]]
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.2)
    F.cross_entropy(plain(x), y).backward()
    optimizer.step()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)
