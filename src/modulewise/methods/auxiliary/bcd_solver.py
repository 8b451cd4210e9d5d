"""The solver of block coordinate descent: closed-form sweeps over the layers of a partition's perceptron."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import CheckpointError, MethodError
from ...method import Solver
from .bcd_updates import Blocks, Penalties, bcd_shares, bcd_sweep, initial_blocks
from .linear_chain import linear_chain

if TYPE_CHECKING:
    from ...partition import Partition

__all__ = ["CoordinateSweeps"]


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
        raise MethodError(f"labels {given} were given to block coordinate descent; give integers (N,)")
    if int(y.min()) < 0 or int(y.max()) >= outputs:
        raise MethodError(f"labels from {int(y.min())} to {int(y.max())} were given for {outputs} outputs")
    return F.one_hot(y, outputs).to(like)


class CoordinateSweeps(Solver):
    """The auxiliary variables of one full batch, and the layers that they train.

    Args:
        partition: its model is a chain of Linear and ReLU.
        penalties: weights of the objective's penalties.

    Raises:
        MethodError: the model is another one, or a step is given another batch than the first.
    """

    def __init__(self, partition: Partition, penalties: Penalties) -> None:
        self._model, self._penalties = partition.model, penalties
        chain = linear_chain(partition.model)
        self._layers: list[nn.Linear] = [layer for _, layer in chain]
        names = [f"{name}.weight".lstrip(".") for name, _ in chain]
        self._members = [
            [layer for layer, name in enumerate(names) if name in part.parameter_names] for part in partition.parts
        ]
        self._batch: int | None = None
        self._preactivations: tuple[Tensor, ...] = ()
        self._activations: tuple[Tensor, ...] = ()

    @torch.no_grad()
    def step(self, x: Any, y: Any, *, step: int) -> dict[int, Tensor]:
        """One sweep over the full batch; every part's share of the objective after it."""
        like = self._layers[0].weight
        if like.dtype not in (torch.float32, torch.float64) or not isinstance(x, Tensor):
            raise MethodError(
                f"weights in {like.dtype} and x of type {type(x).__name__} were given to block coordinate descent; "
                "give float32 or float64 weights and a tensor"
            )
        rows = x.flatten(1).to(like)
        targets = _targets(y, self._layers[-1].out_features, like)
        blocks = bcd_sweep(self._blocks(x, rows, y), targets, self._penalties)
        self._preactivations, self._activations = blocks.preactivations, blocks.activations[1:]
        for layer, weight, bias in zip(self._layers, blocks.weights, blocks.biases, strict=True):
            layer.weight.copy_(weight)
            if bias is not None:
                layer.bias.copy_(bias)
        shares = bcd_shares(blocks, targets, self._penalties)
        return {part: shares[members].sum() for part, members in enumerate(self._members)}

    def _blocks(self, x: Tensor, rows: Tensor, y: Tensor) -> Blocks:
        """The present blocks: of a forward pass on the first batch, kept ever after."""
        weights = tuple(layer.weight.detach() for layer in self._layers)
        biases = tuple(None if layer.bias is None else layer.bias.detach() for layer in self._layers)
        batch = _checksum(x, y)
        if self._batch is None:
            blocks = initial_blocks(rows, weights, biases)
            self._check_model(x, blocks.activations[-1])
            self._batch = batch
            return blocks
        if batch != self._batch:
            raise MethodError(
                "another batch was given than in the step before; block coordinate descent keeps variables for every "
                "sample: give the whole training set as one batch, unshuffled, in every step"
            )
        return Blocks(weights, biases, self._preactivations, (rows, *self._activations))

    def _check_model(self, x: Tensor, outputs: Tensor) -> None:
        """Refuse a model whose forward is not the chain of its layers."""
        given = self._model(x[:2])
        same = isinstance(given, Tensor) and given.shape == outputs[:2].shape
        if not same or not torch.allclose(given, outputs[:2], rtol=1e-3, atol=1e-4):
            raise MethodError(
                "the model's output is not that of its linear layers with a ReLU between each two, in the order of "
                "model.named_modules(); block coordinate descent trains plain perceptrons only"
            )

    def state_dict(self) -> dict[str, Tensor]:
        """The auxiliary variables and the batch they belong to; empty before the first step."""
        if self._batch is None:
            return {}
        state = {f"preactivations.{index}": u for index, u in enumerate(self._preactivations)}
        state |= {f"activations.{index}": v for index, v in enumerate(self._activations)}
        return state | {"batch": torch.tensor(self._batch)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the auxiliary variables back."""
        layers = range(len(self._layers))
        expected = {"batch"} | {f"{kind}.{i}" for kind in ("preactivations", "activations") for i in layers}
        if state and set(state) != expected:
            raise CheckpointError(
                f"a checkpoint with {len(state)} tensors was given for a perceptron of {len(layers)} layers, which "
                f"has {len(expected)}; load the checkpoint of this model"
            )
        self._batch = int(state["batch"]) if state else None
        like = self._layers[0].weight.detach()
        self._preactivations = tuple(state[f"preactivations.{i}"].to(like) for i in layers) if state else ()
        self._activations = tuple(state[f"activations.{i}"].to(like) for i in layers) if state else ()
