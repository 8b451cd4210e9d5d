"""Plans on paper: write results/paper/plans.jsonl, from which tools/tables.py makes the tables of docs/plans.md.

    python tools/plans.py

Models are made on the meta device and steps run on tensors without memory: nothing is trained and nothing is allocated.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import modulewise as mw
from modulewise import planning
from modulewise.planning import pipelines, placing

__all__ = ["CASES", "Case", "Decoder", "rows"]

PATH = Path(__file__).resolve().parents[1] / "results" / "paper" / "plans.jsonl"
COUNTS = (1, 8, 64, 1024)
MEMORY = 80 * 2**30
TOKENS, VOCABULARY = 4096, 32_000


class Block(nn.Module):
    """Causal attention and a gated perceptron, each on a root-mean-square norm, each with a skip.

    Args:
        width: D.
        heads: of queries; D / heads wide.
        shared: heads of keys and values.
        hidden: width of the perceptron.
    """

    def __init__(self, width: int, heads: int, shared: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.shared, size = heads, shared, width // heads
        self.before, self.between = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, shared * size, bias=False)
        self.value = nn.Linear(width, shared * size, bias=False)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """Tokens (N, T, D) to tokens."""
        n, t, _ = h.shape
        z = self.before(h)
        q, k, v = (
            layer(z).view(n, t, count, -1).transpose(1, 2)
            for layer, count in ((self.query, self.heads), (self.key, self.shared), (self.value, self.shared))
        )
        k, v = (each.repeat_interleave(self.heads // self.shared, dim=1) for each in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(mixed.transpose(1, 2).reshape(n, t, -1))
        z = self.between(h)
        return h + self.down(F.silu(self.gate(z)) * self.up(z))


class Decoder(nn.Module):
    """A decoder-only transformer without position codes, which have no weights and few operations.

    Args:
        width: D.
        layers: blocks.
        heads: of queries.
        shared: heads of keys and values.
        hidden: width of the perceptrons.
    """

    def __init__(self, width: int, layers: int, heads: int, shared: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width, heads, shared, hidden) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, T) to logits (N, T, words)."""
        h = self.embedding(tokens)
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


@dataclass(frozen=True)
class Case:
    """A model and how it is trained.

    Args:
        name: of the model.
        make: makes it.
        example: one input on the meta device (2, ...).
        method: of the local plans.
        batch: samples of a micro-batch; a copy of the model sees 8 of them a step, on one device and on several.
        depths: numbers of devices a copy is tried on.
        unit: what a sample is.
    """

    name: str
    make: Callable[[], nn.Module]
    example: Callable[[], Tensor]
    method: mw.Method
    batch: int
    depths: tuple[int, ...]
    unit: str


def _vision(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision

        model: nn.Module = getattr(torchvision.models, name)()
        return model

    return make


_tokens = partial(torch.empty, 2, TOKENS, dtype=torch.long, device="meta")
_images = partial(torch.empty, 2, 3, 224, 224, device="meta")
_words = mw.methods.DGL(VOCABULARY, head=mw.heads.linear, dense=True)
_classes = mw.methods.DGL(1000, head=partial(mw.heads.linear, pool=1))

CASES = (
    Case("transformer, 7B", partial(Decoder, 4096, 32, 32, 32, 11008), _tokens, _words, 1, (8,), "sequences"),
    Case("transformer, 70B", partial(Decoder, 8192, 80, 64, 8, 28672), _tokens, _words, 1, (8, 32), "sequences"),
    Case("ResNet-152", _vision("resnet152"), _images, _classes, 32, (8,), "images"),
    Case("ViT-H/14", _vision("vit_h_14"), _images, _classes, 32, (8,), "images"),
)


def task_of(case: Case, batch: int, residence: planning.Residence) -> planning.Task:
    """bfloat16 products on float32 weights, AdamW: 16 bytes a parameter with its gradient."""
    with torch.device("meta"):
        model = case.make()
    return planning.task_of(
        model,
        example=case.example(),
        batch=batch,
        method=case.method,
        loss=mw.losses.classification,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-4, fused=True),
        precision=torch.bfloat16,
        residence=residence,
    )


def rows(case: Case) -> list[dict[str, Any]]:
    """One row for every number of devices."""
    found = [{**_one(case), "devices": 1}]
    for count in COUNTS[1:]:
        for depth in case.depths:
            if count % depth == 0:
                found.append({**_several(case, depth), "devices": count, "depth": depth, "copies": count // depth})
    return found


def _one(case: Case) -> dict[str, Any]:
    """One device: end to end, checkpointed, and local with all parts or one part on it."""
    batch = 8 * case.batch
    facts: dict[str, Any] = {"model": case.name, "batch": batch, "unit": case.unit, "copies": 1, "depth": 1}
    for residence in planning.Residence:
        task = task_of(case, batch, residence)
        try:
            plan = planning.find(task, MEMORY)
            facts[residence.value] = {"parts": len(plan.parts), "peak": plan.peak, "time": plan.time}
        except mw.ModulewiseError as error:
            facts[residence.value] = {"refused": str(error)}
            plan = planning.predict(task, parts=8)
        facts["controls"] = [asdict(control) for control in plan.controls]
        facts["parameters"] = sum(part.parameters for part in plan.parts)
    return facts


KNOWN: dict[tuple[str, int], dict[str, Any]] = {}


def _several(case: Case, depth: int) -> dict[str, Any]:
    """A copy on several devices; copies beside it change its share of the batch alone, which is the same for each."""
    if (case.name, depth) not in KNOWN:
        KNOWN[case.name, depth] = _copy(case, depth)
    return KNOWN[case.name, depth]


def _copy(case: Case, depth: int) -> dict[str, Any]:
    batch = 8 * case.batch
    facts: dict[str, Any] = {"model": case.name, "batch": batch, "unit": case.unit}
    task = task_of(case, batch, planning.Residence.ALL)
    try:
        placement = planning.place(task, planning.Devices(depth, MEMORY), micro_batches=8)
    except mw.ModulewiseError as error:
        return facts | {"refused": str(error)}
    plan = placement.plan
    stages = placing.stages_of(plan, placement.groups)
    return facts | {
        "parts": len(plan.parts),
        "parts_a_device": max(map(len, placement.groups)),
        "ways": [asdict(way) for way in placement.ways],
        "imbalance": pipelines.bubble_free(stages) * depth / sum(stage.work for stage in stages),
        "heads": sum(stage.objective for stage in stages) / plan.controls[0].flops,
        "flops": plan.controls[0].flops,
        "boundary_bytes": max(part.output_bytes for part in plan.parts[:-1]),
        "gradient_bytes": max(sum(plan.parts[k].gradient_bytes for k in group) for group in placement.groups),
        "all_gradient_bytes": sum(part.gradient_bytes for part in plan.parts),
        "parameters": sum(part.parameters for part in plan.parts),
    }


def main(arguments: Sequence[str]) -> int:
    """Write all rows, or those of the models named, in their place among the others."""
    PATH.parent.mkdir(parents=True, exist_ok=True)
    old = [json.loads(line) for line in PATH.read_text().splitlines()] if PATH.exists() else []
    for case in CASES:
        if arguments and case.name not in arguments:
            continue
        made = rows(case)
        old = [row for row in old if row["model"] != case.name] + made
        order = [each.name for each in CASES]
        old.sort(key=lambda row: order.index(row["model"]))
        PATH.write_text("".join(json.dumps(row) + "\n" for row in old))
        print(f"{case.name}: {len(made)} rows", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
