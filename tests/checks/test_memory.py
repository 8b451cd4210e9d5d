"""The figure counted on a copy without memory is the figure of a real step, and the trainer stays as it is."""

import pytest
import torch
from torch.nn import functional

import modulewise as mw
from modulewise.metering import measure_step


@pytest.mark.parametrize("recompute", [False, True])
def test_counted_without_memory_equals_a_real_step_to_the_byte(recompute: bool) -> None:
    torch.manual_seed(0)
    model = mw.models.build("resnet32", shape=(3, 16, 16), classes=10)
    x, y = torch.randn(8, 3, 16, 16), torch.arange(8) % 10
    partition = mw.Partition(model, parts=4, example=x)
    trainer = mw.Trainer(
        partition,
        mw.methods.DGL(classes=10),
        loss=functional.cross_entropy,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        recompute=recompute,
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    counted = mw.checks.memory(trainer, x, y)
    assert trainer.steps == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    trainer.step(x, y)
    real = measure_step(
        lambda: trainer.step(x, y),
        model=model,
        heads=trainer.objectives,
        optimizers=list(trainer.updater.optimizers.values()),
        inputs=[x, y],
    )
    assert counted.peak_bytes == real.peak_bytes
    assert counted.at_peak == real.at_peak


def test_recomputation_inside_parts_lowers_the_peak() -> None:
    model = mw.models.build("resnet32", shape=(3, 16, 16), classes=10)
    x, y = torch.empty(64, 3, 16, 16), torch.zeros(64, dtype=torch.long)
    partition = mw.Partition(model, parts=2, example=torch.randn(2, 3, 16, 16))
    peaks = [
        mw.checks.memory(
            mw.Trainer(
                partition,
                mw.methods.DGL(classes=10),
                loss=functional.cross_entropy,
                optimizer=torch.optim.SGD,
                recompute=recompute,
            ),
            x,
            y,
        ).peak_bytes
        for recompute in (False, True)
    ]
    assert peaks[1] < 0.6 * peaks[0]
