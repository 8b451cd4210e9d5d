"""A solver for lifted networks: activations of one mini-batch as variables, for the length of a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, MethodError, NonFiniteLossError
from ...method import Solver
from .lifted_chain import Lifted, OutputLoss, affine, input_weight, lifted_forward
from .linear_chain import chain_members, linear_chain

if TYPE_CHECKING:
    from ...partition import Partition

__all__ = ["LiftedBlocks", "LiftedSolver"]


class LiftedBlocks(ABC):
    """What a lifted network does with the variables of a mini-batch."""

    @abstractmethod
    def learn(self, lifted: Lifted, loss: OutputLoss) -> Lifted:
        """All blocks updated in turn; the activations given are those of a forward pass, without the output."""

    @abstractmethod
    def shares(self, lifted: Lifted, loss: OutputLoss) -> Tensor:
        """Every layer's terms of the objective, (L,)."""


class LiftedSolver(Solver):
    """Binds a lifted network to the linear layers of a partition; nothing is kept from step to step but the weights.

    Args:
        partition: its model is a chain of Linear and ReLU in float32 or float64.
        blocks: the method's updates.
        cross_entropy: the loss at the output; otherwise squared error.
        who: the method's name, for messages.

    Raises:
        MethodError: the model is another one, or a step is given labels or an input of another kind.
    """

    def __init__(self, partition: Partition, blocks: LiftedBlocks, *, cross_entropy: bool, who: str) -> None:
        self._blocks, self._cross_entropy, self._who = blocks, cross_entropy, who
        chain = linear_chain(partition.model, parts=partition.parts)
        self._layers: list[nn.Linear] = [layer for _, layer in chain]
        self._members = chain_members(chain, partition.parts)
        for name, layer in chain:
            if layer.weight.dtype not in (torch.float32, torch.float64):
                raise MethodError(
                    f"module {name!r} has weights in {layer.weight.dtype}, but {who} solves linear systems; convert "
                    "the model with .float()"
                )
        self._check_model(partition.model, partition.example)

    @torch.no_grad()
    def step(self, x: Any, y: Any, *, step: int) -> dict[int, Tensor]:
        """Update weights from one batch; every part's share of the objective after it."""
        like = self._layers[0].weight
        rows = self._rows(x)
        loss = OutputLoss(self._targets(y, rows), self._cross_entropy)
        lifted = self._blocks.learn(lifted_forward(self._lifted(rows)), loss)
        shares = self._blocks.shares(lifted, loss)
        losses = {part: shares[members].sum() for part, members in enumerate(self._members)}
        if like.device.type == "cpu":
            for part, value in losses.items():
                if not bool(torch.isfinite(value)):
                    raise NonFiniteLossError(part=part, step=step, stepped=())
        for layer, below, map_ in zip(self._layers, lifted.activations, lifted.maps, strict=False):
            if layer.weight.requires_grad:
                layer.weight.copy_(input_weight(below, map_))
            if layer.bias is not None and layer.bias.requires_grad:
                layer.bias.copy_(map_[:, -1])
        return losses

    def _lifted(self, rows: Tensor) -> Lifted:
        """The present weights and the input."""
        maps, free = [], []
        for layer in self._layers:
            weight, trained = layer.weight.detach(), layer.weight.requires_grad
            columns = torch.full_like(weight[0], trained, dtype=torch.bool)
            if layer.bias is not None:
                weight = torch.cat([weight, layer.bias.detach()[:, None]], 1)
                columns = torch.cat([columns, torch.full_like(columns[:1], layer.bias.requires_grad)])
            maps.append(weight)
            free.append(columns)
        return Lifted(tuple(maps), tuple(free), (rows,))

    def _rows(self, x: Any) -> Tensor:
        like, inputs = self._layers[0].weight, self._layers[0].in_features
        if not isinstance(x, Tensor) or x.dim() < 2 or x.flatten(1).shape[1] != inputs:
            given = f"x of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"x of type {type(x).__name__}"
            raise MethodError(
                f"{given} was given to {self._who}; give a tensor with {inputs} values a sample, (N, ...)"
            )
        return x.detach().flatten(1).to(like)

    def _targets(self, y: Any, rows: Tensor) -> Tensor:
        """One-hot rows (N, classes) of integer labels (N,)."""
        outputs = self._layers[-1].out_features
        whole = isinstance(y, Tensor) and not (y.is_floating_point() or y.is_complex() or y.dtype is torch.bool)
        if not whole or y.shape != rows.shape[:1]:
            given = f"{tuple(y.shape)} of {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise MethodError(f"labels {given} were given to {self._who}; give integers ({len(rows)},), one a row of x")
        if y.device.type == "cpu" and (int(y.min()) < 0 or int(y.max()) >= outputs):
            raise MethodError(f"labels from {int(y.min())} to {int(y.max())} were given for {outputs} outputs")
        return (y.to(rows.device)[:, None] == torch.arange(outputs, device=rows.device)).to(rows)

    @torch.no_grad()
    def _check_model(self, model: nn.Module, example: Any) -> None:
        """Refuse a model whose forward is not the chain of its layers, on two rows of the example."""
        rows = self._rows(example)[:2]
        lifted = lifted_forward(self._lifted(rows))
        expected = affine(lifted.activations[-1], lifted.maps[-1])
        given = model(example[:2].to(rows.device))
        same = isinstance(given, Tensor) and given.shape == expected.shape
        if not same or not torch.allclose(given, expected, rtol=1e-3, atol=1e-4):
            raise MethodError(
                "the model's output is not that of its linear layers with a ReLU between each two, in the order of "
                f"model.named_modules(); {self._who} trains plain perceptrons only"
            )

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing: the variables start at a forward pass in every step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take nothing back.

        Raises:
            CheckpointError: tensors were given.
        """
        if state:
            raise CheckpointError(
                f"a checkpoint with solver tensors {sorted(state)[:3]} was given to {self._who}, which keeps none; "
                "load the checkpoint of the same method"
            )
