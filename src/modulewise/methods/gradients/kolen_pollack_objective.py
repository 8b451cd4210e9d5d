"""The objective of the Kolen-Pollack method: feedback weights that get the increments of the weights, and decay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from ...errors import MethodError
from ...layer_rules import FollowingWeights
from ...layer_rules.weights import DrawnWeights
from ...objective import Context, Objective, Role, Signal, Site
from ..reference.backprop import ChainRule

__all__ = ["Following", "kolen_pollack_decay"]


def kolen_pollack_decay(weights: Sequence[Tensor], feedback: Sequence[Tensor], *, decay: float) -> Tensor:
    """decay/2 (sum ||W||^2 + sum ||B - c||^2), c = W held constant: its gradients are decay W and decay (B - W).

    Added to the gradient of W, which B receives as well, the second makes decay B; so written, a factor on the loss
    (a gradient scaler, a slice of a batch) leaves the two increments equal.

    Args:
        weights: every W once.
        feedback: every B, of the shape of its W.
        decay: > 0.

    >>> kolen_pollack_decay([torch.tensor([2.0])], [torch.tensor([1.0])], decay=0.5)
    tensor(1.2500)
    """
    own = torch.stack([w.square().sum() for w in dict.fromkeys(weights)]).sum()
    apart = torch.stack([(b - w.detach()).square().sum() for w, b in zip(weights, feedback, strict=True)]).sum()
    return decay / 2 * (own + apart)


@final
class Following(Objective):
    """Backpropagation's share of a part, errors passing back by parameters B that follow the weights.

    Args:
        site: where the objective sits.
        layers: the part's layers, by name.
        decay: of W and B, > 0.
        scale: width of B's first distribution, relative to torch's initial weights, > 0.
        seed: seed of B's first value, by layer name.

    Raises:
        MethodError: the weight of a layer is no parameter.
    """

    role: ClassVar[Role] = Role.FEEDBACK

    def __init__(self, site: Site, layers: Mapping[str, nn.Module], *, decay: float, scale: float, seed: int) -> None:
        super().__init__()
        self.inner = ChainRule(site)
        self.waits, self.reads_input_gradient = self.inner.waits, self.inner.reads_input_gradient
        self._decay = decay
        self._weights = {name: _parameter(name, module, site.part) for name, module in layers.items()}
        drawn = DrawnWeights(seed=seed, scale=scale)
        # No name of a parameter may hold a dot or be empty.
        self._keys = {name: "/" + name.replace(".", "/") for name in layers}
        self.feedback = nn.ParameterDict(
            {self._keys[name]: nn.Parameter(drawn.get(name, module)) for name, module in layers.items()}
        )
        self.rule = FollowingWeights({module: self.feedback[self._keys[name]] for name, module in layers.items()})

    def forward(self, context: Context) -> Signal:
        """Backpropagation's signal, shown as it is, and the decay of the weights and their feedback."""
        signal = self.inner.forward(context)
        trained = [name for name, weight in self._weights.items() if weight.requires_grad]
        if not trained:
            return signal
        decay = kolen_pollack_decay(
            [self._weights[name] for name in trained],
            [self.feedback[self._keys[name]] for name in trained],
            decay=self._decay,
        )
        return replace(signal, loss=decay if signal.loss is None else signal.loss + decay, report=signal.shown())

    def messages(self, context: Context) -> Mapping[int, Tensor]:
        """dL/d(boundary), to the part below every boundary read."""
        return self.inner.messages(context)


def _parameter(name: str, module: nn.Module, part: int) -> nn.Parameter:
    """The layer's weight, which B is to follow."""
    weight = module._parameters.get("weight")
    if weight is None:
        raise MethodError(
            f"the weight of layer {name!r} in part {part} is computed by a hook, KolenPollack needs a parameter; "
            "take the hook (weight or spectral norm) away"
        )
    return weight
