"""Plans: what they predict is what steps take, they fit what they were to fit, and they allocate nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import modulewise as mw
from modulewise import planning
from modulewise.method import Family, Locality, PartwiseMethod, Reach, Reference
from modulewise.objective import Context, Objective, Signal, Site
from modulewise.partition.survey import Survey

BATCH, WIDTH = 64, 48
LINEAR = mw.methods.DGL(classes=5, head=mw.heads.linear)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01)


def perceptron(layers: int = 4) -> nn.Module:
    blocks = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(layers)]
    return nn.Sequential(*blocks, nn.Linear(WIDTH, 5))


def network() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 12, 3, 2, padding=1), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(12 * 16, 5)),
    )


def shape_of(model: nn.Module) -> tuple[int, ...]:
    return (3, 8, 8) if any(isinstance(module, nn.Conv2d) for module in model.modules()) else (WIDTH,)


def task(model: nn.Module, method: mw.Method = LINEAR, **settings: Any) -> planning.Task:
    example = torch.empty(2, *shape_of(model))
    given = {"batch": BATCH, "loss": mw.losses.classification, "optimizer": sgd} | settings
    return planning.task_of(model, example=example, method=method, **given)


def inputs(model: nn.Module) -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, *shape_of(model)), torch.arange(BATCH) % 5


def measured(model: nn.Module, method: mw.Method, cuts: tuple[str, ...], optimizer: Any = sgd, **settings: Any) -> int:
    """The meter's peak of the second step on real tensors."""
    x, y = inputs(model)
    partition, loss = mw.Partition(model, cuts=cuts, example=x), mw.losses.classification
    trainer = mw.Trainer(partition, method, loss=loss, optimizer=optimizer, **settings)
    trainer.step(x, y)
    return mw.metering.measure_step(
        lambda: trainer.step(x, y),
        model=model,
        heads=trainer.objectives,
        optimizers=list(trainer.updater.optimizers.values()),
        inputs=[x, y],
    ).peak_bytes


@pytest.mark.parametrize("make", [perceptron, network])
@pytest.mark.parametrize(
    ("method", "parts", "optimizer", "settings"),
    [
        (mw.methods.Backprop(), 1, sgd, {}),
        (mw.methods.Checkpointed(), 3, sgd, {}),
        (LINEAR, 3, sgd, {}),
        (mw.methods.DGL(classes=5), 2, adam, {}),
        (mw.methods.PredSim(classes=5), 3, sgd, {}),
        (LINEAR, 2, sgd, {"recompute": True}),
        (mw.methods.SyntheticGradients(classes=5), 2, sgd, {}),
    ],
)
def test_the_predicted_peak_is_the_measured_one(
    make: Callable[[], nn.Module], method: mw.Method, parts: int, optimizer: Any, settings: dict[str, Any]
) -> None:
    """To the byte, on the CPU: for one part and several, end to end and local, two optimisers, recomputed or not."""
    model = make()
    plan = planning.predict(task(model, method, optimizer=optimizer, **settings), parts=parts)
    assert len(plan.parts) == parts
    assert plan.peak == measured(model, method, plan.cuts, optimizer, **settings)


def test_the_peak_on_its_own_is_that_of_a_model_that_is_the_part() -> None:
    """The last part, trained as a model on the boundary below it, takes as much, but for the losses of those below."""
    model = perceptron()
    plan = planning.predict(task(model), parts=3)
    first = int(plan.cuts[-1].split(".")[0]) + 1
    last = plan.parts[-1]
    assert last.alone - 2 * 4 == measured(nn.Sequential(*list(model)[first:]), mw.methods.Backprop(), ())


def test_operations_are_those_of_backpropagation_and_the_heads() -> None:
    """A matrix product of (N, a) and (a, b) is 2 N a b operations, three of them a layer, two in the first."""
    plan = planning.predict(task(perceptron(3)), parts=2)
    product = 2 * BATCH * WIDTH * WIDTH
    head = 2 * BATCH * WIDTH * 5
    assert plan.controls[0].flops == 2 * product + 2 * 3 * product + 3 * head
    below, above = plan.parts
    layers = int(plan.cuts[0].split(".")[0]) + 1
    assert below.plain_flops == below.flops - 3 * head == 2 * product + (layers - 1) * 3 * product
    assert (below.forward_flops, below.input_flops) == (layers * product, (layers - 1) * product)
    assert above.plain_flops == above.flops + product  # local: nothing below wants the gradient of the boundary
    assert above.flops == (3 - layers) * 3 * product - product + 3 * head
    assert plan.flops == below.flops + above.flops


def test_state_of_the_parts_adds_up_to_the_models() -> None:
    """Parameters, gradients and two moments of AdamW with a step count a parameter."""
    model = perceptron()
    plan = planning.predict(task(model, optimizer=adam), parts=3)
    size = 4 * sum(p.numel() for p in model.parameters())
    tensors = len(list(model.parameters()))
    assert sum(part.parameter_bytes for part in plan.parts) == size
    assert sum(part.gradient_bytes for part in plan.parts) == size
    assert sum(part.optimizer_bytes for part in plan.parts) == 2 * size + 4 * tensors


@pytest.mark.parametrize("residence", planning.Residence)
def test_the_plan_fits_and_no_fewer_parts_do(residence: planning.Residence) -> None:
    """With the peak of K parts as memory K are taken, for any K; predicted peaks fall with their number."""
    wanted = task(perceptron(), residence=residence)
    peaks = [planning.predict(wanted, parts=parts).peak for parts in range(1, 4)]
    assert peaks == sorted(peaks, reverse=True)
    for peak in peaks:
        plan = planning.find(wanted, peak)
        assert (len(plan.parts), plan.peak) == (1 + peaks.index(peak), peak)


def test_one_call_gives_the_partition_of_the_users_own_model() -> None:
    """The model is left as it was, on its device, in its mode, with its generators; the partition trains it."""
    model = perceptron()
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    limit = planning.predict(task(model), parts=3).peak
    generator = torch.get_rng_state()
    partition = mw.plan(model, example=torch.zeros(2, WIDTH), memory=limit, batch=BATCH, method=LINEAR, optimizer=sgd)
    assert torch.equal(generator, torch.get_rng_state())
    assert partition.model is model
    assert not model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert len(partition) == 3
    assert measured(model, LINEAR, partition.cuts) <= limit


def test_a_model_without_memory_is_planned_and_cut_without_memory() -> None:
    """On the meta device, at a size that no machine holds: 32 TiB of weights."""
    with torch.device("meta"):
        layers = [nn.Sequential(nn.Linear(2**20, 2**20), nn.Tanh()) for _ in range(8)]
        model = nn.Sequential(*layers, nn.Linear(2**20, 5))
    partition = mw.plan(
        model,
        example=torch.empty(2, 2**20, device="meta"),
        memory=10 * 2**43,
        batch=4,
        method=LINEAR,
        residence=planning.Residence.PART,
    )
    assert len(partition) > 1
    assert all(parameter.is_meta for parameter in model.parameters())
    assert partition.part(0).parameter_names[0] == "0.0.weight"


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    """The slice that is too large, how much it needs, and a smaller batch that is then accepted."""
    wide = nn.Sequential(nn.Linear(8, 4096), nn.Tanh(), nn.Linear(4096, 8), nn.Tanh(), nn.Linear(8, 5))
    wanted = planning.task_of(
        wide, example=torch.empty(2, 8), batch=512, method=LINEAR, loss=mw.losses.classification, optimizer=sgd
    )
    advice = r"in no number of parts.*what fits: batch \d+ in \d+ parts"
    with pytest.raises(mw.ModulewiseError, match=advice) as refused:
        planning.find(wanted, 12 * 2**20)
    batch, parts = str(refused.value).partition("what fits: batch ")[2].split(" parts")[0].split(" in ")
    assert len(planning.find(wanted.at(int(batch)), 12 * 2**20).parts) == int(parts)
    assert "more parts do not help: the slice that ends at" in str(refused.value)


@dataclass(frozen=True)
class Choosy(PartwiseMethod):
    """A method that looks at values."""

    family: ClassVar[Family] = Family.PROXY
    locality: ClassVar[Locality] = Locality(Reach.STRICT)
    references: ClassVar[tuple[Reference, ...]] = ()

    def objective(self, site: Site) -> Objective:
        return Branching()


class Branching(Objective):
    """Its loss depends on the sign of a number."""

    def forward(self, context: Context) -> Signal:
        mean = context.h_out.mean()
        return Signal(loss=mean if mean > 0 else -mean)


def test_an_objective_whose_control_flow_depends_on_values_is_refused_by_name() -> None:
    """The objective, its method and its part stand in the message."""
    with pytest.raises(mw.ModulewiseError, match=r"part 0 \(Branching of Choosy\) has control flow.* depend on values"):
        planning.predict(task(perceptron(), Choosy()), parts=2)


def test_an_optimiser_that_looks_at_values_is_refused_by_name() -> None:
    """Adafactor's step size is a number that it reads from a tensor."""
    with pytest.raises(mw.ModulewiseError, match=r"the optimiser of part 0 \(.*Adafactor.*\) has control flow"):
        planning.predict(task(perceptron(2), optimizer=torch.optim.Adafactor), parts=2)


def test_devices_get_parts_of_even_work_and_every_way_its_share() -> None:
    """Four equal layers on two devices: local learning loses its heads' work alone, pipelines their bubble."""
    model = nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(9)))
    placement = planning.place(
        planning.task_of(
            model,
            example=torch.empty(2, WIDTH),
            batch=BATCH,
            method=mw.methods.DGL(classes=WIDTH, head=mw.heads.linear),
            loss=mw.losses.classification,
            optimizer=sgd,
        ),
        planning.Devices.read("2x1GiB"),
        micro_batches=4,
    )
    assert placement.groups == ((0,), (1,))
    ways = {way.name: way for way in placement.ways}
    total = placement.plan.controls[0].flops
    assert ways["pipelined"].relative == total / max(part.flops for part in placement.plan.parts)
    assert ways["GPipe"].relative < ways["zero-bubble (ZB-H1)"].relative <= ways["zero-bubble, were it zero"].relative
    assert ways["1F1B"].peak < ways["GPipe"].peak
    assert ways["E2EBP, data parallel"].relative == 2
    assert all(way.fits for way in placement.ways)


def test_parts_that_wait_for_later_ones_are_not_said_to_run_side_by_side() -> None:
    """Backpropagation in parts has no pipelined or asynchronous row."""
    placement = planning.place(task(perceptron(), mw.methods.Backprop()), planning.Devices(2, 2**30))
    assert not {"pipelined", "asynchronous"} & {way.name for way in placement.ways}


def test_devices_too_small_are_refused_with_what_the_neediest_needs() -> None:
    """A device of a kilobyte holds nothing."""
    with pytest.raises(
        mw.ModulewiseError, match=r"the neediest device needs at least [\d.]+ [KM]iB with 2 devices a copy"
    ):
        planning.place(task(perceptron()), planning.Devices(2, 1024))
    with pytest.raises(mw.ModulewiseError, match="expected a number and a size"):
        planning.Devices.read("many")


def test_a_partition_of_a_model_with_values_is_still_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what has no values is not compared."""
    compared = []
    monkeypatch.setattr("modulewise.partition.survey.verify", lambda *a, **k: compared.append(1))
    mw.Partition(perceptron(2), cuts=["0"], example=torch.zeros(2, WIDTH))
    assert compared
    assert Survey.verify is not None
