"""Predictions of auxiliary heads: early exits, and the ensemble of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MethodError
from ..objective import Objective
from ..partition import Partition
from ..partition.tree import plain
from .features import evaluating, frozen_boundaries

__all__ = ["ensemble", "exits"]


def exits(
    partition: Partition, objectives: Sequence[Objective], x: Any, *, parts: Sequence[int] | None = None
) -> dict[int, Tensor]:
    """The logits z_j of the head of every part j, and of the last part those of the model.

    Parts above the highest one asked for do not run, so that one part is an early exit. In eval mode and
    without gradients; the model and the heads are left as they were.

    Args:
        partition: the trained parts.
        objectives: one a part, as in `trainer.objectives`; those of parts before the last have a `classifier`.
        x: the model's input (N, ...).
        parts: which exits, one or more of 0 .. K - 1; all where left out.

    Returns:
        Logits by part, each (N, classes).

    Raises:
        MethodError: an unknown part, a part whose objective has no head, or a model without logits.

    >>> import modulewise as mw
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> partition = mw.Partition(model, cuts=["1"], example=torch.randn(2, 4))
    >>> sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1)
    >>> trainer = mw.Trainer(partition, mw.methods.Greedy(3), loss=nn.functional.cross_entropy, optimizer=sgd)
    >>> {part: z.shape for part, z in exits(partition, trainer.objectives, torch.randn(5, 4), parts=[0]).items()}
    {0: torch.Size([5, 3])}
    """
    x, last = plain(x), len(partition) - 1
    wanted = sorted(set(range(last + 1) if parts is None else parts))
    if not wanted or wanted[0] < 0 or wanted[-1] > last:
        raise MethodError(f"parts={parts} was given, expected one or more of 0 to {last}")
    heads = {part: _head(objectives, part) for part in wanted if part != last}
    boundaries = frozen_boundaries(partition, min(wanted[-1] + 1, last), x, {})
    logits = {}
    with torch.no_grad(), ExitStack() as stack:
        for part, head in heads.items():
            stack.enter_context(evaluating(head))
            logits[part] = head(boundaries[part])
        if wanted[-1] == last:
            stack.enter_context(evaluating(partition.model))
            fed = {index: boundaries[index] for index in partition.reads(x, last)} if last else {}
            logits[last] = _logits(partition.run(last, x, fed))
    return logits


def ensemble(
    partition: Partition, objectives: Sequence[Objective], x: Any, *, parts: Sequence[int] | None = None
) -> Tensor:
    """The ensemble of the auxiliary outputs, Z = sum_j 2^j z_j / sum_j 2^j: every exit counts twice the one below.

    Args:
        partition: the trained parts.
        objectives: one a part, as in `trainer.objectives`.
        x: the model's input (N, ...).
        parts: which exits, one or more of 0 .. K - 1; all where left out. `range(k + 1)` is the ensemble of
            a network that ends after part k.

    Returns:
        Z (N, classes).

    Raises:
        MethodError: an unknown part, a part whose objective has no head, a model without logits, or logits
            of different shapes.

    References:
        E. Belilovsky, M. Eickenberg, E. Oyallon, Greedy Layerwise Learning Can Scale to ImageNet, ICML 2019,
        https://arxiv.org/abs/1812.11446

    Departs from the paper: divided by the sum of the weights, as in the authors' scripts, which changes no
    decision and keeps the scale of logits.

    >>> import modulewise as mw
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> partition = mw.Partition(model, cuts=["1"], example=torch.randn(2, 4))
    >>> sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1)
    >>> trainer = mw.Trainer(partition, mw.methods.Greedy(3), loss=nn.functional.cross_entropy, optimizer=sgd)
    >>> ensemble(partition, trainer.objectives, torch.randn(5, 4)).shape
    torch.Size([5, 3])
    """
    logits = exits(partition, objectives, x, parts=parts)
    shapes = {part: tuple(z.shape) for part, z in logits.items()}
    if len(set(shapes.values())) > 1:
        raise MethodError(
            f"exits give logits of shapes {shapes}, an ensemble needs equal ones; choose parts= that agree"
        )
    weights = {part: 2.0 ** (part - max(logits)) for part in logits}
    return torch.stack([weights[part] * z for part, z in logits.items()]).sum(0) / sum(weights.values())


def _head(objectives: Sequence[Objective], part: int) -> nn.Module:
    objective = objectives[part] if part < len(objectives) else None
    head = None if objective is None else objective.classifier
    if head is None:
        raise MethodError(
            f"part {part} has {'no objective' if objective is None else type(objective).__name__}, an exit before the "
            "last part needs an objective with a `classifier`; choose other parts= or a method such as Greedy"
        )
    return head


def _logits(output: Any) -> Tensor:
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise MethodError(f"the model returns a {type(output).__name__}, expected logits as a tensor or as `.logits`")
    return logits
