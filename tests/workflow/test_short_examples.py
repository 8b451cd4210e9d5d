"""What the four short examples show is so: exits, export, recalibration, averages, each against plain torch."""

import importlib.util
import re
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(request, capsys):
    """The names that an example ends with, and what it printed."""
    return {**runpy.run_path(str(EXAMPLES / request.param)), "printed": capsys.readouterr().out}


@pytest.mark.parametrize("example", ["early_exits.py"], indirect=True)
def test_samples_leave_at_the_first_head_that_is_sure(example):
    """Sample by sample, with all heads run: the same guesses, every sample once, some early and some late."""
    exits = example["mw"].exits(example["partition"], example["trainer"].objectives, example["x"])
    for index, guess in enumerate(example["guesses"].tolist()):
        rows = [exits[part][index].softmax(0) for part in range(3)]
        sure = next((row for row in rows[:2] if float(row.max()) >= example["SURE"]), rows[2])
        assert guess == int(sure.argmax())
    gone = example["gone"]
    assert sum(gone.values()) == len(example["y"])
    assert gone[0] > 0
    assert gone[2] > 0


@pytest.mark.parametrize("example", ["export_without_heads.py"], indirect=True)
def test_the_exported_program_is_the_plain_model(example):
    """Its tensors are those of a network that was never in a partition, and no more; ONNX is there or named."""
    plain = example["mw"].models.mlp((1, 8, 8), 10, width=64)
    program = torch.export.export(example["model"], (example["x"],))
    assert set(program.state_dict) == set(plain.state_dict())
    plain.load_state_dict(program.state_dict)
    assert torch.equal(plain.eval()(example["x"]), example["model"](example["x"]))
    assert example["same"]
    assert example["heads"] > 0
    left_out = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    assert ("ONNX: left out" in example["printed"]) == bool(left_out)
    assert left_out or re.search(r"ONNX: [1-9]\d{4,} bytes", example["printed"])  # 13,130 parameters of four bytes


@pytest.mark.parametrize("example", ["recalibrate_batch_norm.py"], indirect=True)
def test_the_statistics_are_those_of_one_pass_over_the_final_parts(example):
    """Of the first part, against `update_bn` of torch on the layers before its cut; the test loss moves."""
    model, cut = example["model"], example["partition"].cuts[0]
    names = [name for name, _ in model.named_children()]
    first = nn.Sequential(*[module for _, module in model.named_children()][: names.index(cut.partition(".")[0]) + 1])
    found = {name: buffer.clone() for name, buffer in first.named_buffers()}
    update_bn(example["whole"], first)
    assert found
    for name, buffer in first.named_buffers():
        torch.testing.assert_close(buffer, found[name])
    assert example["before"].loss != example["after"].loss


@pytest.mark.parametrize("example", ["averaged_weights.py"], indirect=True)
def test_averages_are_put_in_and_taken_out(example):
    """The kept weights score as the averages did, and the model as before; both parts averaged every update."""
    trainer, model = example["trainer"], example["model"]
    assert set(example["averages"].updates.values()) == {3 * len(example["train"])}
    assert trainer.evaluate(example["test"]) == example["last"]
    model.load_state_dict(example["weights"])
    assert trainer.evaluate(example["test"]) == example["averaged"] != example["last"]
