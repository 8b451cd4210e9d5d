"""A signal of the whole network projected to the input of every layer, whatever arrives from above."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import CheckpointError, MethodError
from ..seeding import seed_of
from .layerwise import LayerwiseRule

__all__ = ["DirectFeedback", "projected_error"]


def projected_error(error: Tensor, feedback: Tensor, like: Tensor) -> Tensor:
    """The error at an activation: e B, as a tensor like it.

    Args:
        error: the signal, (N, ...) with E elements a sample.
        feedback: B, (E, F) with F elements of the activation a sample.
        like: the activation, (N, ...) with F elements a sample.

    Raises:
        MethodError: the sizes do not fit.

    >>> projected_error(torch.ones(1, 2), torch.ones(2, 4), torch.zeros(1, 2, 2))
    tensor([[[2., 2.],
             [2., 2.]]])
    """
    if len(error) != len(like):
        raise MethodError(
            f"an activation has {len(like)} rows for {len(error)} samples, direct feedback needs one row a sample; "
            "cut where there is one, or choose a method without direct feedback"
        )
    given = (error[0].numel(), like[0].numel())
    if given != tuple(feedback.shape):
        raise MethodError(
            f"a sample has {given[0]} outputs and {given[1]} features at the boundary, the feedback matrix is "
            f"{tuple(feedback.shape)}; give the method the number of outputs of one sample, and samples of one size"
        )
    return (error.flatten(1).to(feedback.dtype) @ feedback).reshape(like.shape).to(like.dtype)


class _Signal:
    """What the layers of a part follow, from the beginning of its backward on."""

    def __init__(self) -> None:
        self.now: Tensor | None = None


class _Announce(torch.autograd.Function):
    """Forward: the loss. Backward: whatever the loss is multiplied with, the signal is multiplied with as well."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, error: Tensor, signal: _Signal) -> Tensor:
        ctx.save_for_backward(error)
        ctx.signal = signal
        return loss.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None, None]:
        (error,) = ctx.saved_tensors
        ctx.signal.now = error * factor
        return factor, None, None


class _Projected(torch.autograd.Function):
    """Forward: y. Backward: the error to y as it is (dW and db are autograd's), and e B to x."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, feedback: Tensor, signal: _Signal) -> Tensor:
        ctx.save_for_backward(feedback)
        ctx.signal, ctx.like = signal, x.new_empty(()).expand(x.shape)
        return y.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (feedback,) = ctx.saved_tensors
        assert ctx.signal.now is not None, "a loss is announced before it is differentiated"
        return error, projected_error(ctx.signal.now, feedback, ctx.like), None, None


@final
class DirectFeedback(LayerwiseRule):
    """The error at the input of every linear layer and convolution is e B, whatever the error at its output.

    B (E, F), with F the elements of one sample of the layer's input, has entries from N(0, scale^2 / F), so that
    with scale 1 the signal's length is kept on average. What stands between two layers (norms, activations,
    pooling, biases, skips) follows the chain rule from the nearest layer above. Each row of an input is a sample.

    Args:
        seed: seed of the draws; a layer's B depends on the seed and its name alone, and is drawn when first met.
        elements: E, elements of one sample of the signal, >= 1.
        scale: length of the projected signal relative to the signal, > 0.

    >>> layer, rule = nn.Linear(3, 2), DirectFeedback(seed=0, elements=4)
    >>> x, e = torch.ones(1, 3, requires_grad=True), torch.ones(1, 4)
    >>> with rule.installed([("layer", layer)]):
    ...     loss = layer(x).sum()
    >>> rule.announced(loss, e).backward()
    >>> torch.equal(x.grad, e @ rule.state_dict()["layer"])
    True
    """

    compiles: ClassVar[bool] = False  # a compiled backward does not see the signal pass

    def __init__(self, *, seed: int, elements: int, scale: float = 1.0) -> None:
        self._seed, self._elements, self._scale = seed, elements, scale
        self._drawn: dict[str, Tensor] = {}
        self._signal = _Signal()

    def announced(self, loss: Tensor, error: Tensor) -> Tensor:
        """The loss, which makes e known to the layers when it is differentiated, times whatever multiplies the loss.

        Args:
            loss: scalar with a graph.
            error: e (N, ...) with E elements a sample, detached.
        """
        made: Tensor = _Announce.apply(loss, error, self._signal)
        return made

    def forget(self) -> None:
        """Let the signal go after a backward."""
        self._signal.now = None

    def prepare(self, name: str, module: nn.Module) -> None:
        """Nothing yet: the size of B is that of the input."""

    def passed(self, name: str, module: nn.Module, y: Tensor, x: Tensor) -> Tensor:
        """The output y with the projected signal for x."""
        made: Tensor = _Projected.apply(y, x, self._matrix(name, x), self._signal)
        return made

    def state_dict(self) -> dict[str, Tensor]:
        """The matrices drawn so far, by layer name."""
        return dict(self._drawn)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take matrices back; layers that the state does not name are drawn when first met."""
        self._drawn = {name: matrix.detach().clone() for name, matrix in state.items()}

    def _matrix(self, name: str, x: Tensor) -> Tensor:
        """The layer's B, on the device of its input, in the type of the layer's first input but at least single."""
        features = x[0].numel()
        if name not in self._drawn:
            generator = torch.Generator().manual_seed(seed_of(self._seed, name))
            dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
            drawn = torch.randn(self._elements, features, generator=generator, device=generator.device)
            self._drawn[name] = (drawn * (self._scale / features**0.5)).to(dtype)
        if self._drawn[name].shape != (self._elements, features):
            kept = tuple(self._drawn[name].shape)
            raise CheckpointError(
                f"the feedback matrix of {name!r} is {kept}, its layer's {(self._elements, features)}; load the "
                "checkpoint of this model, and give samples of one size"
            )
        self._drawn[name] = self._drawn[name].to(x.device)
        return self._drawn[name]
