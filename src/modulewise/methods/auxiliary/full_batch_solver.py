"""A solver for methods with variables for every sample: sweeps over one full batch, into a perceptron's own weights."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import CheckpointError, MethodError
from ...method import Solver
from .blocks import Blocks, initial_blocks
from .linear_chain import chain_members, linear_chain

if TYPE_CHECKING:
    from ...partition import Partition

__all__ = ["FullBatchSolver", "Sweeps"]


class Sweeps(ABC):
    """What a method does with the blocks of a full batch.

    Attributes:
        multiplier: whether a multiplier ties the output's pre-activation to the layer below, so that there is no
            variable V_L for the output's activation.
    """

    multiplier: ClassVar[bool] = False

    def kept(self, blocks: Blocks) -> Tensor | None:
        """What follows from the input alone and is kept from step to step; nothing unless the method says so."""
        return None

    @abstractmethod
    def sweep(self, blocks: Blocks, targets: Tensor, *, step: int, kept: Tensor | None = None) -> Blocks:
        """The blocks after one step, for one-hot targets (N, classes); `kept` is that of these blocks."""

    @abstractmethod
    def shares(self, blocks: Blocks, targets: Tensor) -> Tensor:
        """Every layer's terms of the objective, (L,)."""


def _checksum(*tensors: Tensor) -> int:
    """A number that tells batches apart: a digest of shapes, types and bytes."""
    digest = hashlib.blake2b(digest_size=7)
    for tensor in tensors:
        digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return int.from_bytes(digest.digest(), "little")


def _targets(y: Any, outputs: int, like: Tensor) -> Tensor:
    """One-hot rows (N, outputs) of integer labels (N,)."""
    if not isinstance(y, Tensor) or y.dim() != 1 or y.is_floating_point():
        given = f"{tuple(y.shape)} of {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
        raise MethodError(f"labels {given} were given to a method on auxiliary variables; give integers (N,)")
    if int(y.min()) < 0 or int(y.max()) >= outputs:
        raise MethodError(f"labels from {int(y.min())} to {int(y.max())} were given for {outputs} outputs")
    return F.one_hot(y, outputs).to(like)


class FullBatchSolver(Solver):
    """The auxiliary variables of one full batch, and the layers that they train.

    Args:
        partition: its model is a chain of Linear and ReLU.
        sweeps: the method's step and objective.

    Raises:
        MethodError: the model is another one, or a step is given another batch than the first.
    """

    def __init__(self, partition: Partition, sweeps: Sweeps) -> None:
        self._model, self._sweeps = partition.model, sweeps
        chain = linear_chain(partition.model, parts=partition.parts)
        self._layers: list[nn.Linear] = [layer for _, layer in chain]
        self._members = chain_members(chain, partition.parts)
        self._batch: int | None = None
        self._variables: dict[str, Tensor] = {}
        self._kept: Tensor | None = None

    @torch.no_grad()
    def step(self, x: Any, y: Any, *, step: int) -> dict[int, Tensor]:
        """One sweep over the full batch; every part's share of the objective after it."""
        like = self._layers[0].weight
        if like.dtype not in (torch.float32, torch.float64) or not isinstance(x, Tensor):
            raise MethodError(
                f"weights in {like.dtype} and x of type {type(x).__name__} were given to a method on auxiliary "
                "variables; give float32 or float64 weights and a tensor"
            )
        targets = _targets(y, self._layers[-1].out_features, like)
        present = self._blocks(x, x.flatten(1).to(like), y)
        self._kept = self._sweeps.kept(present) if self._kept is None else self._kept
        blocks = self._sweeps.sweep(present, targets, step=step, kept=self._kept)
        self._variables = _variables(blocks)
        for layer, weight, bias in zip(self._layers, blocks.weights, blocks.biases, strict=True):
            layer.weight.copy_(weight)
            if bias is not None:
                layer.bias.copy_(bias)
        shares = self._sweeps.shares(blocks, targets)
        return {part: shares[members].sum() for part, members in enumerate(self._members)}

    def _blocks(self, x: Tensor, rows: Tensor, y: Tensor) -> Blocks:
        """The present blocks: of a forward pass on the first batch, kept ever after."""
        weights = tuple(layer.weight.detach() for layer in self._layers)
        biases = tuple(None if layer.bias is None else layer.bias.detach() for layer in self._layers)
        batch = _checksum(x, y)
        if self._batch is None:
            blocks = initial_blocks(rows, weights, biases, multiplier=self._sweeps.multiplier)
            self._check_model(x, blocks.preactivations[-1])
            self._batch = batch
            return blocks
        if batch != self._batch:
            raise MethodError(
                "another batch was given than in the step before; the method keeps variables for every sample: give "
                "the whole training set as one batch, unshuffled, in every step"
            )
        top = len(self._layers) - (1 if self._sweeps.multiplier else 0)
        u = tuple(self._variables[f"preactivations.{layer}"] for layer in range(len(self._layers)))
        v = tuple(self._variables[f"activations.{layer}"] for layer in range(top))
        return Blocks(weights, biases, u, (rows, *v), self._variables.get("multiplier"))

    def _check_model(self, x: Tensor, outputs: Tensor) -> None:
        """Refuse a model whose forward is not the chain of its layers."""
        given = self._model(x[:2])
        same = isinstance(given, Tensor) and given.shape == outputs[:2].shape
        if not same or not torch.allclose(given, outputs[:2], rtol=1e-3, atol=1e-4):
            raise MethodError(
                "the model's output is not that of its linear layers with a ReLU between each two, in the order of "
                "model.named_modules(); the method trains plain perceptrons only"
            )

    def state_dict(self) -> dict[str, Tensor]:
        """The auxiliary variables and the batch they belong to; empty before the first step."""
        return {} if self._batch is None else self._variables | {"batch": torch.tensor(self._batch)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the auxiliary variables back."""
        layers = len(self._layers)
        top = layers - (1 if self._sweeps.multiplier else 0)
        expected = {f"preactivations.{i}" for i in range(layers)} | {f"activations.{i}" for i in range(top)}
        expected |= {"multiplier"} if self._sweeps.multiplier else set()
        if state and set(state) != expected | {"batch"}:
            raise CheckpointError(
                f"a checkpoint with {len(state)} tensors was given for a perceptron of {layers} layers, which "
                f"has {len(expected) + 1}; load the checkpoint of this model"
            )
        self._batch = int(state["batch"]) if state else None
        self._kept = None
        like = self._layers[0].weight.detach()
        self._variables = {name: state[name].to(like) for name in sorted(expected)} if state else {}


def _variables(blocks: Blocks) -> dict[str, Tensor]:
    """All auxiliary variables by name."""
    named = {f"preactivations.{index}": u for index, u in enumerate(blocks.preactivations)}
    named |= {f"activations.{index}": v for index, v in enumerate(blocks.activations[1:])}
    return named if blocks.multiplier is None else named | {"multiplier": blocks.multiplier}
