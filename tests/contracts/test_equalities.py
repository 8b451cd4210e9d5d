"""The standing equalities: what mathematics says is equal is equal bit for bit, through `Trainer.step`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
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
    sgd,
    state,
    trainer_of,
)
from torch import Tensor, nn

import modulewise as mw
from modulewise.seeding import seed_of, set_generators

M = mw.methods
STEPS = 5
SEED = 9


def residual(**settings: Any) -> Residual:
    return seeded(lambda: Residual(**settings))


def batches(make: Callable[..., tuple[Tensor, Tensor]] = images) -> list[tuple[Tensor, Tensor]]:
    """Another batch every step, so that nothing hangs on one."""
    return [make(8, seed) for seed in range(STEPS)]


def train(model: nn.Module, method: Any, cuts: Sequence[str] = CUTS, **settings: Any) -> mw.Trainer:
    data = batches(images if isinstance(model, Residual) else rows)
    trainer = trainer_of(model, method, cuts, data[0][0], seed=SEED, **settings)
    for x, y in data:
        trainer.step(x, y)
    return trainer


def end_to_end(model: nn.Module, forward: Callable[[Tensor, int], Tensor] | None = None, clip: float | None = None):
    """Five steps of an ordinary training loop."""
    optimizer = sgd(model.parameters())
    for step, (x, y) in enumerate(batches(images if isinstance(model, Residual) else rows)):
        optimizer.zero_grad()
        F.cross_entropy(model(x) if forward is None else forward(x, step), y).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return model


def seeded_stages(stages: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[Tensor, int], Tensor]:
    """A forward whose draws in every part start where the library's do."""

    def forward(x: Tensor, step: int) -> Tensor:
        for part, stage in enumerate(stages):
            set_generators(seed_of(SEED, step, part))
            x = stage(x)
        return x

    return forward


def short(method: Any) -> str:
    """The method and its numbers, without functions, whose addresses differ from process to process."""
    numbers = {k: v for k, v in vars(method).items() if isinstance(v, float) or k == "depth"}
    return f"{getattr(method, 'name', type(method).__name__)}{numbers or ''}"


LOCAL = [
    M.Greedy(classes=CLASSES),
    M.Greedy(classes=CLASSES, depth=2),
    M.DGL(classes=CLASSES),
    M.PredSim(classes=CLASSES),
    M.PredSim(classes=CLASSES, beta=0.0),
    M.PredSim(classes=CLASSES, beta=1.0),
    M.KernelProxy(),
    M.AugLocal(classes=CLASSES),
    M.BoostResNet(classes=CLASSES),
    M.DDG(),
    M.FeaturesReplay(),
    M.DeepCascade(classes=CLASSES),
    M.ForwardForward(classes=CLASSES),
    M.GreedyInfoMax(),
    M.HSICBottleneck(classes=CLASSES),
    M.InfoPro(classes=CLASSES),
    M.LoCo(),
    M.LocalErrors(classes=CLASSES),
    M.LocalUpdates(classes=CLASSES),
    M.MAN(classes=CLASSES),
    M.PHSIC(classes=CLASSES),
    M.SGR(classes=CLASSES),
    M.SyntheticGradients(classes=CLASSES),
    M.SyntheticGradients(classes=CLASSES, mix=0.5, true_targets=True),
    M.SyntheticInputs(classes=CLASSES),
    M.CriticTraining(classes=CLASSES),
    M.LocalCritic(classes=CLASSES),
    M.NodePerturbation(),
    M.DTPDRL(outputs=CLASSES),
    M.DifferenceTargetPropagation(),
    M.TargetPropagation(),
    M.SimplifiedDTP(outputs=CLASSES),
    M.AuxiliaryOutputSDTP(outputs=CLASSES),
    M.LocalDRL(outputs=CLASSES),
    M.FixedWeightDTP(outputs=CLASSES),
    M.GaitProp(),
    M.DirectDTP(outputs=CLASSES),
    M.GaussNewtonTargets(),
    M.DirectFeedbackAlignment(outputs=CLASSES, layerwise=False),
    M.DRTP(classes=CLASSES, layerwise=False),
    M.DeeplySupervised(M.PredSim(classes=CLASSES)),
    M.Backprop(),
    M.Checkpointed(),
]


@pytest.mark.parametrize("method", LOCAL, ids=short)
def test_one_part_equals_end_to_end_backpropagation(method):
    model = residual()
    train(model, method, cuts=())
    assert differing(state(model), state(end_to_end(residual()))) == []


def test_every_method_that_ends_in_the_task_loss_is_among_them():
    """All but those that change the last part's layers or loss, and those with an update of their own.

    FA, sign-symmetry, WM and KP change the layers of the last part, TRGL adds its transport there; solvers
    have updates of their own; SyntheticBPTT and TPTT take windows of time alone (tests/partition/test_time_partition).
    """
    solvers = {name for name in M.__all__ if issubclass(getattr(M, name), mw.SolverMethod)}
    others = solvers | {
        "FeedbackAlignment",
        "KolenPollack",
        "SignSymmetry",
        "WeightMirror",
        "TRGL",
        "SyntheticBPTT",
        "TargetPropThroughTime",
    }
    assert {type(m).__name__ for m in LOCAL} == set(M.__all__) - others


class TestEndToEndByMessages:
    """Parts that send dL/d(input) equal autograd on the whole model: parameters and buffers, five momentum steps."""

    methods = pytest.mark.parametrize("method", [M.Backprop(), M.Checkpointed()], ids=str)
    recompute = pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])

    @methods
    @recompute
    @pytest.mark.parametrize("cuts", [CUTS, ("one",), ("stem", "one.0", "one.1", "two")], ids=len)
    def test_a_residual_network(self, method, recompute, cuts):
        model = residual()
        train(model, method, cuts, recompute=recompute)
        assert differing(state(model), state(end_to_end(residual()))) == []

    @methods
    @pytest.mark.parametrize("cuts", [("a", "b", "c"), ("a", "b"), ("a",)], ids=len)
    def test_skips_from_earlier_boundaries(self, method, cuts):
        """Two and three later parts send messages about one boundary."""
        model = seeded(Skipping)
        trainer = train(model, method, cuts)
        assert bool(trainer.partition.ports) == (len(cuts) > 1)
        assert differing(state(model), state(end_to_end(seeded(Skipping)))) == []

    @methods
    @recompute
    def test_dropout_seeded_at_the_same_places(self, method, recompute):
        model, plain = residual(dropout=0.4), residual(dropout=0.4)
        train(model, method, recompute=recompute)
        end_to_end(plain, seeded_stages(plain.stages()))
        assert differing(state(model), state(plain)) == []
        assert differing(state(model), state(end_to_end(residual()))) != []

    @methods
    @pytest.mark.parametrize("clip", [0.1, 0.5, 1e6])
    def test_the_norm_of_all_gradients_is_clipped(self, method, clip):
        model = residual()
        train(model, method, clip_norm=clip)
        assert differing(state(model), state(end_to_end(residual(), clip=clip))) == []
        assert (differing(state(model), state(end_to_end(residual()))) == []) == (clip > 1)

    @methods
    @pytest.mark.parametrize("slices", [2, 4])
    def test_accumulation_equals_torchs_own(self, method, slices):
        """Slices of a power of two, whose weights round nothing: batch statistics are those of the slices."""
        model, plain = residual(), residual()
        train(model, method, accumulate=slices)
        optimizer = sgd(plain.parameters())
        for x, y in batches():
            optimizer.zero_grad()
            for part_x, part_y in zip(x.chunk(slices), y.chunk(slices), strict=True):
                (F.cross_entropy(plain(part_x), part_y) / slices).backward()
            optimizer.step()
        assert differing(state(model), state(plain)) == []

    @methods
    @pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16], ids=str)
    def test_lower_precision_equals_torchs_own_loop(self, method, precision):
        """With a gradient scaler of the same scale in half precision; messages between parts lose nothing."""
        model, plain = residual(norm=lambda n: nn.GroupNorm(2, n)), residual(norm=lambda n: nn.GroupNorm(2, n))
        train(model, method, precision=precision)
        optimizer = sgd(plain.parameters())
        scaler = torch.amp.GradScaler("cpu", enabled=precision is torch.float16)
        for x, y in batches():
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=precision):
                loss = F.cross_entropy(plain(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        assert differing(state(model), state(plain)) == []


RECOMPUTED = [
    m for m in LOCAL if type(m).__name__ not in ("Checkpointed", "GaitProp", "NodePerturbation") and m.views == 1
]


@pytest.mark.parametrize("method", RECOMPUTED, ids=short)
def test_recomputing_inside_parts_changes_nothing(method):
    kept, recomputed = residual(dropout=0.2), residual(dropout=0.2)
    rate = {"optimizer": lambda p: torch.optim.SGD(p, lr=1e-4, momentum=0.9)}  # a predictor's loss is large
    trainers = [train(kept, method, **rate), train(recomputed, method, recompute=True, **rate)]
    a, b = (state(trainer.partition.model, *trainer.objectives) for trainer in trainers)
    assert differing(a, b) == []


class TrueGradient(nn.Module):
    """What a perfect predictor returns: N dL/dh, found by running the later parts."""

    def __init__(self, partition: mw.Partition, site: mw.Site) -> None:
        super().__init__()
        self.run = lambda k, h: partition.run(k, partition.blank(len(h)), {k - 1: h}, recomputing=True)
        self.later = range(site.part + 1, site.parts)
        self.loss = site.loss

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        leaf = h.detach().requires_grad_()
        with torch.enable_grad():
            output = leaf
            for part in self.later:
                output = self.run(part, output)
            (gradient,) = torch.autograd.grad(self.loss(output, y), leaf)
        return gradient * len(h)


def test_synthetic_gradients_that_are_true_equal_end_to_end_backpropagation():
    model = residual(norm=lambda n: nn.GroupNorm(2, n))
    partition = mw.Partition(model, cuts=CUTS, example=images()[0])
    method = M.SyntheticGradients(labelled=False, predictor=lambda site: TrueGradient(partition, site))
    trainer = mw.Trainer(partition, method, loss=F.cross_entropy, optimizer=sgd, seed=SEED)
    for x, y in batches():
        trainer.step(x, y)
    assert differing(state(model), state(end_to_end(residual(norm=lambda n: nn.GroupNorm(2, n))))) == []


def test_synthetic_gradients_with_skips_learn_from_every_reader():
    """On a boundary that several parts read, the predictor hears the sum of what they send."""

    class Noting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, h: Tensor, y: Tensor) -> Tensor:
            return torch.zeros_like(h) + self.weight

    model, (x, y) = seeded(Skipping), rows()
    method = M.SyntheticGradients(labelled=False, predictor=lambda site: Noting())
    trainer = trainer_of(model, method, ("a", "b"), x, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    early = model.a(x).detach().requires_grad_()
    middle = model.b(early).detach().requires_grad_()
    late = model.c(middle + early)
    F.cross_entropy(model.d(late * early + middle), y).backward()
    # Part 1 follows a guess of zero and so sends a gradient of zero; part 2 sends its true one.
    expected = 2 * early.grad.sum()  # of 1/N sum_n ||w - N g_n||^2 at w = 0, one step of length 1
    trainer.step(x, y)
    assert torch.allclose(trainer.objectives[0].predictor.weight.detach(), expected, rtol=1e-5)
    assert expected.abs() > 1e-3


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda n: nn.GroupNorm(2, n)], ids=["batch", "group"])
def test_feedback_alignment_tied_to_the_live_weights_equals_end_to_end_backpropagation(norm):
    model = residual(norm=norm)
    train(model, M.FeedbackAlignment(feedback=lambda name, module: module.weight))
    assert differing(state(model), state(end_to_end(residual(norm=norm)))) == []


def test_feedback_alignment_with_drawn_weights_does_not():
    model = residual()
    train(model, M.FeedbackAlignment())
    assert differing(state(model), state(end_to_end(residual()))) != []


def local_loss(objective: nn.Module, h: Tensor, x: Tensor, y: Tensor, part: int, step: int) -> Tensor:
    return objective(mw.Context(h_in=None, h_out=h, x=x, y=y, views=1, part=part, step=step)).loss


@pytest.mark.parametrize("method", [M.PredSim(classes=CLASSES), M.DGL(classes=CLASSES), M.KernelProxy()], ids=short)
def test_deeply_supervised_equals_one_backward_of_the_summed_losses(method):
    model, plain = residual(), residual()
    trainer = trainer_of(model, M.DeeplySupervised(method), CUTS, images()[0], seed=SEED)
    heads = [copy.deepcopy(objective.inner) for objective in trainer.objectives]
    optimizer = sgd([*plain.parameters(), *(p for head in heads for p in head.parameters())])
    for step, (x, y) in enumerate(batches()):
        losses, h = [], x
        for part, stage in enumerate(plain.stages()):
            h = stage(h)
            losses.append(local_loss(heads[part], h, x, y, part, step))
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        shown = trainer.step(x, y)
        assert [float(shown[part]) for part in range(4)] == [loss.item() for loss in losses]
    assert differing(state(model), state(plain)) == []
    ours = state(*(o.inner for o in trainer.objectives))
    assert not ours or differing(ours, state(*heads)) == []


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_hand_written_dgl_loop_equals_the_library(dropout):
    model, plain = residual(dropout=dropout), residual(dropout=dropout)
    trainer = trainer_of(model, M.DGL(classes=CLASSES), CUTS, images()[0], seed=SEED)
    heads = [copy.deepcopy(o.head) for o in trainer.objectives[:-1]]
    stages = plain.stages()
    owners: list[nn.Module] = [plain.stem, plain.one, plain.two, plain.head]
    optimizers = [sgd(owner.parameters()) for owner in owners]
    head_optimizers = [sgd(head.parameters()) for head in heads]
    for step, (x, y) in enumerate(batches()):
        shown, h = trainer.step(x, y), x
        for part, stage in enumerate(stages):
            set_generators(seed_of(SEED, step, part))
            h = stage(h.detach())
            loss = F.cross_entropy(heads[part](h) if part < 3 else h, y)
            loss.backward()
            for optimizer in (optimizers[part], *head_optimizers[part : part + 1]):
                optimizer.step()
                optimizer.zero_grad()
            assert torch.equal(shown[part], loss.detach())
    assert differing(state(model), state(plain)) == []
    assert differing(state(*(o.head for o in trainer.objectives[:-1])), state(*heads)) == []
    assert len(state(*heads)) > 6


@pytest.mark.parametrize("method", [M.DGL(classes=CLASSES), M.PredSim(classes=CLASSES), M.KernelProxy()], ids=short)
def test_side_by_side_equals_part_by_part_on_recorded_activations(method):
    """Nothing but the boundary passes from part to part: fed the same ones, a part alone learns the same."""
    model, alone = residual(dropout=0.2), residual(dropout=0.2)
    trainer = trainer_of(model, method, CUTS, images()[0], seed=SEED)
    objectives = copy.deepcopy(list(trainer.objectives))
    recorded: list[dict[int, Tensor]] = []
    for step, (x, y) in enumerate(batches()):
        recorded.append({-1: x})
        handles = [
            objective.register_forward_pre_hook(
                lambda _, args, step=step: recorded[step].update({args[0].part: args[0].h_out.detach().clone()})
            )
            for objective in trainer.objectives
        ]
        trainer.step(x, y)
        for handle in handles:
            handle.remove()
    for part, (stage, owner) in enumerate(zip(alone.stages(), [*alone.children()], strict=True)):
        optimizers = [sgd(p) for p in (list(owner.parameters()), list(objectives[part].parameters())) if p]
        for step, (x, y) in enumerate(batches()):
            set_generators(seed_of(SEED, step, part))
            h = stage(recorded[step][part - 1])
            assert torch.equal(h, recorded[step][part])
            set_generators(seed_of(SEED, step, part, "objective"))
            local_loss(objectives[part], h, x, y, part, step).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    assert differing(state(model), state(alone)) == []


@pytest.mark.parametrize("method", [m for m in LOCAL if type(m).__name__ in ("DGL", "PredSim", "Backprop")], ids=short)
def test_a_loop_of_steps_and_every_way_to_fit_are_one(method):
    """`step` in a loop, `fit` over a list and `fit` over our loader, twice as many batches as one epoch has."""
    split = mw.data.Split(*images(24))
    loader = mw.data.Loader(split, batch_size=8, seed=4)
    listed = [list(loader), list(loader)]
    results = []

    def fresh() -> mw.Trainer:
        return trainer_of(residual(dropout=0.2).train(), method, CUTS, images()[0], seed=SEED)

    for x, y in (batch for epoch in listed for batch in epoch):
        trainer = results[0] if results else results.append(fresh()) or results[0]
        trainer.step(x, y)
    results.append(fresh())
    results[-1].fit(mw.data.Loader(split, batch_size=8, seed=4), epochs=2)
    results.append(fresh())
    for epoch in listed:
        results[-1].fit(epoch, epochs=1)
    results.append(fresh())
    for x, y in (batch for epoch in listed for batch in epoch):
        engine_batch = results[-1].batch(x, y)
        with results[-1].guarded():
            for part in range(4):
                engine_batch.up(part)
            engine_batch.down()
        results[-1].steps += 1
    states = [state(t.partition.model, *t.objectives) for t in results]
    assert [differing(states[0], other) for other in states[1:]] == [[], [], []]
    assert [t.steps for t in results] == [6] * 4


def test_frozen_parts_stay_bit_identical_in_sequential():
    """From the moment a part is final neither its parameters nor its buffers move, whatever trains above it."""
    model = residual(dropout=0.2)
    trainer = trainer_of(model, M.DGL(classes=CLASSES), CUTS, images()[0])
    owners: list[nn.Module] = [model.stem, model.one, model.two, model.head]
    final: dict[int, dict[str, Tensor]] = {}
    seen: list[int] = []

    def note(epoch: Any) -> None:
        seen.append(epoch.part)
        for part in range(epoch.part):
            before = final.setdefault(part, state(owners[part]))
            assert differing(before, state(owners[part])) == []

    untouched = state(*owners[1:])
    moved: list[list[str]] = []
    trainer.fit(
        [images(8, seed) for seed in range(3)],
        epochs=2,
        schedule=mw.schedules.sequential,
        callbacks=[lambda e: moved.append(differing(untouched, state(*owners[1:]))) if e.part == 0 else None, note],
    )
    assert moved == [[], []], "parts that have not begun do not move either"
    assert seen == [0, 0, 1, 1, 2, 2, 3, 3]
    assert sorted(final) == [0, 1, 2]
    assert differing(untouched, state(*owners[1:])) == list(untouched)


def test_bcd_never_rises_through_the_trainer():
    """Every full-batch sweep lowers F or leaves it, to 1e-12 relative in float64."""
    model = seeded(lambda: nn.Sequential(*[m for part in perceptron() for m in _flat(part)])).double()
    x, y = rows(40)
    partition = mw.Partition(model, cuts=("1", "3"), example=x.double())
    trainer = mw.Trainer(partition, M.BCD(), loss=F.cross_entropy)
    totals = [float(sum(trainer.step(x.double(), y).values())) for _ in range(60)]
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(totals))
    assert totals[-1] < 0.9 * totals[0]


def _flat(module: nn.Module) -> list[nn.Module]:
    layers = [module] if not isinstance(module, nn.Sequential) else list(module)
    return [layer for layer in layers if isinstance(layer, nn.Linear | nn.ReLU)]


def test_the_comparison_itself_sees_one_changed_bit():
    model = perceptron()
    before = state(model)
    with torch.no_grad():
        model[0][0].bias[0] = torch.nextafter(model[0][0].bias[0], torch.tensor(9.0))
    assert differing(before, state(model)) == ["0.0.0.bias"]
