"""The solver of gated linear networks: online gradient steps, one sample after the other, all neurons at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import CheckpointError, MethodError
from ...method import Solver
from ...models.gated import GatedLinear, GatedNetwork

if TYPE_CHECKING:
    from ...partition import Partition

__all__ = ["OnlineGates", "online_pass"]

_CHUNK = 1024


def _learn(rows: Tensor, index: Tensor, features: Tensor, target: Tensor, *, rate: float, limit: float) -> Tensor:
    """One sample, one layer: move the active weights; the log-odds before the move (classes, units).

    Args:
        rows: all weights (classes * units * 2^contexts, inputs + 1), changed in place.
        index: the active row of every neuron (classes * units,).
        features: (inputs + 1,), or (classes, inputs + 1).
        target: 0 or 1 for every class (classes,).
        rate: learning rate; 0 leaves the weights.
        limit: bound on |w|.
    """
    active = rows.index_select(0, index).view(len(target), -1, rows.shape[1])
    log_odds = (active @ features.unsqueeze(-1)).squeeze(-1)
    if rate > 0:
        error = log_odds.sigmoid() - target[:, None]
        active.addcmul_(error.unsqueeze(-1), features.unsqueeze(-2), value=-rate).clamp_(-limit, limit)
        rows.index_copy_(0, index, active.flatten(0, 1))
    return log_odds


def _active(layer: GatedLinear, z: Tensor) -> Tensor:
    """The row of every neuron's active weights (N, classes * units), in the weights as rows."""
    contexts = layer.context(z).flatten(1)
    return contexts + layer.weight.shape[2] * torch.arange(contexts.shape[1], device=z.device)


def online_pass(
    layers: Sequence[GatedLinear], z: Tensor, targets: Tensor, *, rates: Sequence[float], limit: float
) -> Tensor:
    """Let every neuron learn from the samples in order; predictions are those before the sample's own step.

    Args:
        layers: from the input on; their weights are changed in place, unless they require no gradient.
        z: side information and base log-odds (N, side).
        targets: 0 or 1, one class against the rest (N, classes).
        rates: learning rate of every sample.
        limit: bound on |w|.

    Returns:
        The log loss of every layer, a mean over its neurons and classes and a sum over samples (layers,).

    >>> layer = GatedLinear(1, 1, classes=1, side=1, contexts=0, clip=0.01)
    >>> with torch.no_grad():
    ...     _ = online_pass([layer], torch.tensor([[2.0]]), torch.tensor([[1.0]]), rates=[0.0], limit=9.0)
    ...     _.round(decimals=4)  # log-odds (2 + 1) / 2
    tensor([0.2014])
    """
    count = len(z)
    rows = [layer.weight.view(-1, layer.weight.shape[-1]) for layer in layers]
    indices = [_active(layer, z) for layer in layers]
    seen = [z.new_empty(count, *layer.weight.shape[:2]) for layer in layers]
    base = layers[0].features(z)
    for n in range(count):
        features = base[n]
        for k, layer in enumerate(layers):
            if k:
                features = layer.features(seen[k - 1][n])
            rate = rates[n] if layer.weight.requires_grad else 0.0
            seen[k][n] = _learn(rows[k], indices[k][n], features, targets[n], rate=rate, limit=limit)
    return torch.stack([(F.softplus(s) - targets[:, :, None] * s).flatten(1).mean(1).sum() for s in seen])


class OnlineGates(Solver):
    """The step counter of a gated linear network and the layers that learn.

    Args:
        partition: its model is a `GatedNetwork`.
        rate: the largest learning rate.
        decay: the learning rate at sample t is min(rate, decay / t).
        limit: bound on |w|.

    Raises:
        MethodError: the model is another one.
    """

    def __init__(self, partition: Partition, *, rate: float, decay: float, limit: float) -> None:
        model = partition.model
        if not isinstance(model, GatedNetwork):
            raise MethodError(
                f"a model of type {type(model).__name__} was given, a gated linear network trains its own neurons "
                "only; make the model with models.gln (--model gln)"
            )
        self._rate, self._decay, self._limit = rate, decay, limit
        self._layers = model.layers
        self._members = [
            [k for k, name in enumerate(self._layers) if f"{name}.weight" in part.parameter_names]
            for part in partition.parts
        ]
        self._seen = 0

    @torch.no_grad()
    def step(self, x: Any, y: Any, *, step: int) -> dict[int, Tensor]:
        """One pass over the batch in its order; for every part the mean log loss of its neurons, before each step."""
        z, targets = self._read(x, y)
        layers = list(self._layers.values())
        total = z.new_zeros(len(layers))
        for side, wanted in zip(z.split(_CHUNK), targets.split(_CHUNK), strict=True):
            rates = [min(self._rate, self._decay / (self._seen + n)) for n in range(1, len(side) + 1)]
            total += online_pass(layers, side, wanted, rates=rates, limit=self._limit)
            self._seen += len(side)
        shares = total / len(z)
        return {part: shares[members].mean() for part, members in enumerate(self._members)}

    def _read(self, x: Any, y: Any) -> tuple[Tensor, Tensor]:
        """Side information (N, side) and one-against-the-rest targets (N, classes), in the weights' type."""
        head = self._layers["head"]
        classes = head.weight.shape[0]
        if not isinstance(x, Tensor) or not isinstance(y, Tensor) or y.dim() != 1 or y.is_floating_point():
            raise MethodError(
                "a gated linear network was given something else than a tensor x (N, ...) and integer classes y (N,)"
            )
        z = x.flatten(1).to(head.weight.dtype)
        # Reading values on another device would make the host wait for it at every step.
        if y.device.type == "cpu" and (int(y.min()) < 0 or int(y.max()) >= classes):
            raise MethodError(f"labels from {int(y.min())} to {int(y.max())} were given for {classes} classes")
        if z.device.type == "cpu" and not bool(torch.isfinite(z).all()):
            raise MethodError("x has entries that are not finite; no weight was changed, inspect this batch")
        return z, (y[:, None] == torch.arange(classes, device=y.device)).to(z.dtype)

    def state_dict(self) -> dict[str, Tensor]:
        """How many samples were seen, which the learning rate depends on."""
        return {"seen": torch.tensor(self._seen)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the counter back."""
        if set(state) != {"seen"}:
            raise CheckpointError(
                f"a checkpoint with {sorted(state)} was given for a gated linear network, which keeps the number of "
                "samples seen; load the checkpoint of this method"
            )
        self._seen = int(state["seen"])
