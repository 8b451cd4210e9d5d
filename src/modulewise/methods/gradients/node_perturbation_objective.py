"""What a part with learned feedback weights does: estimate by noise, fit the weights, send errors through them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call  # type: ignore[attr-defined,unused-ignore]

from ...errors import MethodError
from ...losses import sum_squared_error
from ...objective import Context, Objective, Role, Signal, Site
from ..objectives import TaskLoss
from .sample_losses import sample_losses

__all__ = ["Perturbed", "fed_back", "first_layer", "perturbation_estimate"]

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def perturbation_estimate(losses: Tensor, perturbed: Tensor, noise: Tensor, *, scale: float) -> Tensor:
    """The gradient of every sample's loss by one perturbation h + c xi: lambda = (L~ - L) xi / c.

    Its mean over noise of zero mean and unit variance is dL/dh for a loss linear in h, and up to terms of order c^2
    for any other where the noise is symmetric.

    Args:
        losses: L, (N,).
        perturbed: L~, (N,).
        noise: xi, (N, ...).
        scale: c, > 0.

    >>> perturbation_estimate(torch.tensor([1.0]), torch.tensor([1.5]), torch.tensor([[1.0, -1.0]]), scale=0.5)
    tensor([[ 1., -1.]])
    """
    change = ((perturbed - losses) / scale).to(noise.dtype)
    return change.reshape(-1, *[1] * (noise.dim() - 1)) * noise


def fed_back(layer: nn.Module, weight: Tensor, error: Tensor, *, like: Tensor) -> Tensor:
    """An error at a layer's output, taken to its input through other weights: B^T e, or a transposed convolution.

    Args:
        layer: a linear or convolutional layer.
        weight: B, in the layer's weight's place.
        error: e, (N, ...) like the layer's output.
        like: the layer's input, (N, ...).

    >>> fed_back(nn.Linear(2, 1), torch.tensor([[3.0, 5.0]]), torch.tensor([[2.0]]), like=torch.zeros(1, 2)).tolist()
    [[6.0, 10.0]]
    """
    with torch.enable_grad():
        entered = like.detach().requires_grad_()
        left = functional_call(layer, {"weight": weight}, (entered,))
        (back,) = torch.autograd.grad(left, entered, error.to(left.dtype), create_graph=True)
    return back


def first_layer(site: Site) -> tuple[str, nn.Module]:
    """The first linear or convolutional layer of a part, with its name.

    Raises:
        MethodError: the part has none, or one of a boundary of another size.
    """
    for outer, top in site.modules():
        for inner, module in top.named_modules():
            if isinstance(module, _LAYERS):
                name = ".".join(word for word in (outer, inner) if word)
                assert site.input is not None
                inputs = module.in_features if isinstance(module, nn.Linear) else module.in_channels
                # A linear layer on the channels of images reads something pooled.
                pooled = isinstance(module, nn.Linear) and site.input.spatial and site.input.channel_axis == 1
                if inputs not in ((site.input.features,) if pooled else (site.input.channels, site.input.features)):
                    raise MethodError(
                        f"part {site.part} reads {site.input.channels} channels and its first layer, {name}, {inputs}; "
                        "learned feedback needs a layer on what enters the part: cut the model right before one"
                    )
                return name, module
    raise MethodError(
        f"part {site.part} has no linear or convolutional layer to learn feedback weights for; cut the model so that "
        "every part has one"
    )


class Perturbed(Objective):
    """A part above the first: follows the error sent to it, and sends its own down through learned weights B.

    Args:
        site: where the objective sits; a part that reads a boundary.
        scale: c of the perturbation of what enters the part, > 0.
        draw: h -> noise xi like h.
    """

    role: ClassVar[Role] = Role.FEEDBACK

    waits = True
    rounds = 1
    reads_input_gradient = True

    def __init__(self, site: Site, *, scale: float, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        name, layer = first_layer(site)
        self.taps, self._layer, self._top = (name,), [layer], site.parts - 1
        self.looks_ahead = not site.last
        self.feedback = nn.Parameter(torch.empty_like(layer.weight))  # type: ignore[arg-type]
        nn.init.kaiming_uniform_(self.feedback, a=5**0.5)
        self.task, self._last, self._scale, self._draw = TaskLoss(site.loss), site.last, scale, draw
        self._losses: Tensor | None = None
        self._estimate: Tensor | None = None
        self._sent: Tensor | None = None

    def rehearse(self, context: Context) -> None:
        """Run on from a perturbed input, with the weights of the step's forward pass."""
        assert context.run is not None
        with torch.no_grad():
            losses = self._of_samples(context, context.h_out) if self._last else context.feedback[self._top]
            noise = self._draw(context.h_in)
            output = context.run(context.h_in + self._scale * noise)
            if context.ahead is not None:
                output = context.ahead(output)
            perturbed = self._of_samples(context, output)
            self._losses = losses
            self._estimate = perturbation_estimate(losses, perturbed, noise, scale=self._scale)

    def rehearsed(self, context: Context) -> Mapping[int, Any]:
        """The estimate to the part itself; in the last part the losses to those below as well."""
        estimate, losses, self._estimate, self._losses = self._estimate, self._losses, None, None
        below = dict.fromkeys(range(1, context.part), losses) if self._last else {}
        return {**below, context.part: estimate}

    def forward(self, context: Context) -> Signal:
        """The task loss or the error from above for the part, the squared error of B e for B."""
        entered, left = context.taps[self.taps[0]]
        count = len(context.h_in)
        if self._last:
            loss = self.task.loss(context.h_out, context.labels)
            (error,) = torch.autograd.grad(loss, left, retain_graph=True)
        else:
            gradient = context.feedback[context.part + 1]
            (error,) = torch.autograd.grad(context.h_out, left, gradient.to(context.h_out.dtype), retain_graph=True)
        guess = fed_back(self._layer[0], self.feedback, count * error.detach(), like=entered)
        if guess.numel() != context.h_in.numel():
            raise MethodError(
                f"part {context.part} reads {tuple(context.h_in.shape)} and its first layer, {self.taps[0]}, "
                f"{tuple(guess.shape)}; cut the model right before that layer"
            )
        guess = guess.reshape(context.h_in.shape)
        self._sent = (guess.detach() / count).to(context.h_in.dtype)
        fit = sum_squared_error(guess, context.feedback[context.part].to(guess.dtype))
        if self._last:
            return Signal(loss=loss + fit, report=loss)
        return Signal(loss=fit, gradient=gradient.to(context.h_out.dtype))

    def messages(self, context: Context) -> Mapping[int, Tensor]:
        """B e / N, to the part below."""
        assert self._sent is not None, "messages are made after forward"
        sent, self._sent = self._sent, None
        return {context.part - 1: sent}

    def _of_samples(self, context: Context, output: Any) -> Tensor:
        return sample_losses(self.task.loss, output, context.labels)
