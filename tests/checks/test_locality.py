"""The audit by intervention: it catches leaks and false labels, passes honest methods, and leaves no trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

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
from modulewise.checks import LocalityReport, locality
from modulewise.method import Family, Locality, PartwiseMethod, Reach
from modulewise.methods.objectives import TaskLoss
from modulewise.objective import Context, Objective, Signal, Site

M = mw.methods
PARTS = ("0", "1")


def declared(method: Any, reach: Reach, window: int = 1) -> Any:
    """The same method under another label."""
    kind = type(method)
    other = type(f"Declared{kind.__name__}", (kind,), {"locality": Locality(reach, window)})
    return other(**{f.name: getattr(method, f.name) for f in fields(kind) if f.init})


def audit(method: Any, *, model: nn.Module | None = None, cuts: Any = PARTS, **settings: Any) -> LocalityReport:
    x, y = rows()
    return locality(trainer_of(model or seeded(perceptron), method, cuts, x, **settings), x, y)


class _Linear(Objective):
    """A linear head on h_out; subclasses leak."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.part, self.last, self.task = site.part, site.last, TaskLoss(site.loss)
        self.head = nn.Identity() if site.last else nn.Linear(site.boundary.features, CLASSES)

    def own(self, context: Context) -> Tensor:
        return self.task.loss(self.head(context.h_out), context.y)

    def forward(self, context: Context) -> Signal:
        return Signal(loss=self.own(context))


class _ByMessage(_Linear):
    """Learns from its own loss, and quietly from the gradient that the part above sends."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.waits, self.reads_input_gradient = not site.last, site.part > 0

    def forward(self, context: Context) -> Signal:
        sent = context.feedback.get(context.part + 1)
        return Signal(loss=self.own(context), gradient=sent)

    def messages(self, context: Context) -> Mapping[int, Any]:
        return {context.part - 1: 0.1 * context.h_in.grad} if context.part else {}


class _ByLabels(_Linear):
    """Sends labels down in a message, which no loss of its own shows."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.waits = not site.last

    def forward(self, context: Context) -> Signal:
        y = context.feedback.get(context.part + 1, context.y)
        return Signal(loss=self.task.loss(self.head(context.h_out), y))

    def messages(self, context: Context) -> Mapping[int, Any]:
        return {context.part - 1: context.y} if context.part else {}


class _ByKeptGraph(_Linear):
    """Keeps its boundary with the graph, for the next part's loss to reach back through when this one has stepped."""

    kept: ClassVar[dict[int, Tensor]] = {}

    def forward(self, context: Context) -> Signal:
        loss = self.own(context)
        below = self.kept.pop(context.part - 1, None)
        self.kept[context.part] = (context.h_out * 1.0).pow(2).mean() if not self.last else torch.zeros(())
        if below is not None:
            loss = loss + 0.1 * loss.detach() * below
        # The own backward must not free what the next part's needs.
        grads = torch.autograd.grad(loss, [p for p in _leaves(loss) if p.requires_grad], retain_graph=True)
        for leaf, grad in zip(_leaves(loss), grads, strict=True):
            leaf.grad = grad if leaf.grad is None else leaf.grad + grad
        return Signal(report=loss.detach(), loss=loss.detach())


def _leaves(loss: Tensor) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        nodes += [below for below, _ in node.next_functions]
    return list(found.values())


class _SharedHead(_Linear):
    """One head for all parts: what one part learns, another part reads."""

    shared: ClassVar[dict[int, nn.Module]] = {}

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        if not site.last:
            self.wide = nn.Linear(site.boundary.features, 12)
            self.head = self.shared.setdefault(site.parts, nn.Linear(12, CLASSES))

    def own(self, context: Context) -> Tensor:
        h = context.h_out if self.last else self.head(self.wide(context.h_out))
        return self.task.loss(h, context.y)


class _NextWeights(_Linear):
    """A head that runs the next part's own weights: strict gradient, but it reads a neighbour."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.later = [] if site.last else [block.module for block in site.blocks()]

    def own(self, context: Context) -> Tensor:
        h = context.h_out
        for module in self.later:
            h = torch.func.functional_call(module, {n: p.detach() for n, p in module.named_parameters()}, (h,))
        return self.task.loss(h, context.y)


def method_of(kind: type[Objective], reach: Reach = Reach.STRICT, window: int = 1) -> PartwiseMethod:
    @dataclass(frozen=True)
    class Made(PartwiseMethod):
        """A method of one objective."""

        family: ClassVar[Family] = Family.PROXY
        locality: ClassVar[Locality] = Locality(reach, window)
        references: ClassVar[tuple[Any, ...]] = ()

        def objective(self, site: Site) -> Objective:
            return kind(site)

    return Made()


class TestLeaks:
    def test_an_honest_method_passes(self):
        report = audit(method_of(_Linear))
        assert report.ok
        assert report.observed is Reach.STRICT
        assert report.influence == {}
        assert str(report) == "declared strict, observed strict"

    def test_a_gradient_in_a_message(self):
        report = audit(method_of(_ByMessage))
        assert not report.ok
        assert report.observed is Reach.GLOBAL
        assert {(1, 0), (2, 1), (2, 0)} <= set(report.influence)
        assert any("of part 2 changes the update of part 0" in v for v in report.violations)

    def test_labels_in_a_message(self):
        report = audit(method_of(_ByLabels))
        assert not report.ok
        assert report.influence[1, 0] == {"labels"}

    def test_a_gradient_that_arrives_after_the_part_has_stepped(self):
        """It would be in the next update; what lies in wait on the parameters is counted."""
        _ByKeptGraph.kept.clear()
        report = audit(method_of(_ByKeptGraph))
        assert not report.ok
        assert "labels" in report.influence[1, 0]

    def test_a_head_shared_between_parts(self):
        _SharedHead.shared.clear()
        report = audit(method_of(_SharedHead))
        assert not report.ok
        assert {"head"} <= report.influence[1, 0] | report.influence[0, 1]

    def test_a_head_that_reads_a_later_part_is_a_port(self):
        report = audit(method_of(_NextWeights))
        assert not report.ok
        assert report.observed is Reach.PORT
        assert report.influence == {(1, 0): {"weights"}}
        assert audit(method_of(_NextWeights, Reach.PORT)).ok


class TestLabels:
    """The declaration is compared with what was seen, both ways."""

    @pytest.mark.parametrize("reach", [Reach.STRICT, Reach.PORT])
    @pytest.mark.parametrize(
        "method",
        [M.Backprop(), M.DirectFeedbackAlignment(outputs=CLASSES), M.DifferenceTargetPropagation()],
        ids=lambda m: type(m).__name__,
    )
    def test_feedback_is_not_local(self, method, reach):
        report = audit(declared(method, reach), optimizer=lambda p: torch.optim.SGD(p, lr=1e-3))
        assert not report.ok
        assert (2, 1) in report.influence

    @pytest.mark.parametrize("reach", [Reach.GLOBAL, Reach.GRADIENTS, Reach.TARGETS])
    def test_a_local_method_claims_no_feedback(self, reach):
        report = audit(declared(M.DGL(classes=CLASSES), reach))
        assert not report.ok
        assert "no part's signal reaches another" in report.violations[0]

    def test_a_strict_method_is_no_port(self):
        report = audit(declared(M.DGL(classes=CLASSES), Reach.PORT))
        assert report.violations == ("no part reads a neighbour: it is strict",)

    def test_backpropagation_is_wider_than_a_window(self):
        report = audit(declared(M.Backprop(), Reach.WINDOW, 2))
        assert any("of part 2 changes the update of part 0" in v for v in report.violations)
        assert not any("of part 2 changes the update of part 1" in v for v in report.violations)

    def test_a_method_that_reaches_one_part_only_is_not_global(self):
        class Neighbour(_Linear):
            """Follows a gradient from the part above, which sends that of its own loss alone."""

            def __init__(self, site: Site) -> None:
                super().__init__(site)
                self.hears = False
                self.waits, self.reads_input_gradient = site.part == 1, site.part == 2

            def forward(self, context: Context) -> Signal:
                return Signal(loss=self.own(context), gradient=context.feedback.get(2))

            def messages(self, context: Context) -> Mapping[int, Any]:
                return {1: context.h_in.grad} if context.part == 2 else {}

        report = audit(method_of(Neighbour, Reach.GLOBAL))
        assert report.violations == ("part 0 does not learn from the last part",)
        assert audit(method_of(Neighbour, Reach.WINDOW, 2)).ok

    def test_a_skip_makes_a_strict_method_a_port(self):
        x, y = rows()
        trainer = trainer_of(seeded(Skipping), M.DGL(classes=CLASSES), ("a", "b"), x)
        report = locality(trainer, x, y)
        assert report.ok
        assert (report.declared.reach, report.observed) == (Reach.PORT, Reach.PORT)

    def test_one_part_influences_no_other(self):
        for method in (M.DGL(classes=CLASSES), M.Backprop()):
            report = audit(method, cuts=())
            assert report.ok
            assert report.influence == {}


class TestNoTrace:
    """After the audit the trainer is as it was: it goes on as if none had been."""

    settings: ClassVar[list[Any]] = [
        pytest.param(M.DGL(classes=CLASSES), {}, id="DGL"),
        pytest.param(M.Backprop(), {"clip_norm": 1.0}, id="Backprop"),
        pytest.param(M.FeedbackAlignment(), {}, id="FeedbackAlignment"),
        pytest.param(M.DGL(classes=CLASSES), {"precision": torch.float16}, id="half"),
        pytest.param(M.DGL(classes=CLASSES), {"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-3)}, id="adamw"),
        pytest.param(
            M.PredSim(classes=CLASSES),
            {"scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 1)},
            id="scheduled",
        ),
    ]

    def facts(self, trainer: mw.Trainer) -> dict[str, Any]:
        updater = trainer.updater
        return {
            "steps": trainer.steps,
            "updates": dict(updater.steps),
            "optimizers": {key: str(o.state_dict()) for key, o in updater.optimizers.items()},
            "schedulers": {key: str(s.state_dict()) for key, s in updater.schedulers.items()},
            "scalers": {key: s.state_dict() for key, s in updater.scalers.items()},
            "rules": [str(o.rule.state_dict()) for o in trainer.objectives if o.rule is not None],
            "hooks": [(len(o._forward_hooks), len(o._forward_pre_hooks), sorted(vars(o))) for o in trainer.objectives],
            "gradients": [p.grad for p in trainer.partition.model.parameters()],
        }

    @pytest.mark.parametrize(("method", "settings"), settings)
    @pytest.mark.parametrize("warm", [0, 2])
    def test_everything_is_put_back(self, method, settings, warm):
        x, y = images()
        trainer = trainer_of(seeded(lambda: Residual(dropout=0.2)), method, CUTS, x, **settings)
        for _ in range(warm):
            trainer.step(x, y)
        generator, before = torch.get_rng_state(), self.facts(trainer)
        tensors = state(trainer.partition.model, *trainer.objectives)
        assert locality(trainer, x, y).ok
        assert self.facts(trainer) == before
        assert torch.equal(generator, torch.get_rng_state())
        assert differing(tensors, state(trainer.partition.model, *trainer.objectives)) == []

    @pytest.mark.parametrize(("method", "settings"), settings)
    def test_it_goes_on_as_if_there_had_been_no_audit(self, method, settings):
        x, y = images()
        results = []
        for audited in (False, True):
            trainer = trainer_of(seeded(lambda: Residual(dropout=0.2)), method, CUTS, x, **settings)
            for step in range(4):
                trainer.step(x, y)
                if audited and step == 1:
                    locality(trainer, x, y)
            results.append(state(trainer.partition.model, *trainer.objectives))
        assert differing(*results) == []

    def test_also_where_a_step_of_the_audit_fails(self):
        x, y = rows()
        calls = []

        def loss(output: Tensor, y: Tensor) -> Tensor:
            calls.append(1)
            return F.cross_entropy(output, y) * (float("nan") if len(calls) > 4 else 1)

        trainer = trainer_of(seeded(perceptron), M.DGL(classes=CLASSES), PARTS, x, loss=loss)
        tensors = state(trainer.partition.model, *trainer.objectives)
        with pytest.raises(mw.ModulewiseError, match="not finite"):
            locality(trainer, x, y)
        assert differing(tensors, state(trainer.partition.model, *trainer.objectives)) == []
        assert all("forward" not in vars(o) and "messages" not in vars(o) for o in trainer.objectives)
        assert trainer.steps == 0

    def test_a_method_with_its_own_update_is_not_audited_and_not_touched(self):
        x, y = rows()
        model = seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, CLASSES)))
        trainer = mw.Trainer(mw.Partition(model, cuts=["1"], example=x), M.BCD(), loss=F.cross_entropy)
        before = state(model)
        report = locality(trainer, x, y)
        assert str(report) == "declared targets, observed not audited"
        assert differing(before, state(model)) == []


def test_the_audit_asks_for_nothing_but_a_trainer_and_a_batch():
    """Also with optimisers by role and several slices a step."""
    x, y = rows()
    for method, expected in ((M.DGL(classes=CLASSES), Reach.STRICT), (M.Backprop(), Reach.GLOBAL)):
        trainer = trainer_of(
            seeded(perceptron), method, PARTS, x, accumulate=2, optimizer=lambda p, *, part, role: sgd(p)
        )
        assert locality(trainer, x, y).observed is expected
