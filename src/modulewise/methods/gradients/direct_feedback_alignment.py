"""Direct feedback alignment: the output error reaches every part through a fixed random matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Context, Objective, Signal, Site

__all__ = ["DirectFeedbackAlignment", "projected_error"]


def projected_error(error: Tensor, feedback: Tensor, like: Tensor) -> Tensor:
    """The error at a boundary: e B, as a tensor like the boundary's activation.

    Args:
        error: dL/d(output), (N, ...) with E elements a sample.
        feedback: B, (E, F) with F elements of the boundary a sample.
        like: the activation, (N, ...) with F elements a sample.

    Raises:
        MethodError: the sizes do not fit.

    >>> projected_error(torch.ones(1, 2), torch.ones(2, 4), torch.zeros(1, 2, 2))
    tensor([[[2., 2.],
             [2., 2.]]])
    """
    given = (error[0].numel(), like[0].numel())
    if given != tuple(feedback.shape):
        raise MethodError(
            f"a sample has {given[0]} outputs and {given[1]} features at the boundary, the feedback matrix "
            f"is {tuple(feedback.shape)}; give DirectFeedbackAlignment the number of outputs of one sample"
        )
    return (error.flatten(1).to(feedback.dtype) @ feedback).reshape(like.shape).to(like.dtype)


def _output_tensor(output: Any) -> Tensor:
    """The tensor whose error is sent: the raw output, or its logits."""
    tensor = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(tensor, Tensor):
        raise MethodError(
            f"the model returned {type(output).__name__}; direct feedback alignment needs a tensor or "
            "an output with .logits: wrap the model"
        )
    return tensor


class _OutputError(Objective):
    """The last part: minimises the task loss and sends its error to all earlier parts."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.loss = site.loss
        self._receivers = range(site.part)
        self._error: Tensor | None = None

    def forward(self, context: Context) -> Signal:
        """The task loss; dL/d(output) is kept until `messages`."""
        output = _output_tensor(context.h_out)
        loss = self.loss(context.h_out, context.labels)
        (self._error,) = torch.autograd.grad(loss, output, retain_graph=True)
        return Signal(loss=loss)

    def messages(self, context: Context) -> Mapping[int, Tensor]:
        """dL/d(output), to every earlier part."""
        assert self._error is not None, "messages are made after forward"
        error, self._error = self._error, None
        return dict.fromkeys(self._receivers, error)


class _Projected(Objective):
    """An earlier part: follows the output error through its fixed random matrix."""

    feedback: Tensor
    waits = True

    def __init__(self, site: Site, *, outputs: int, scale: float) -> None:
        super().__init__()
        self._sender = site.parts - 1
        features = site.boundary.features
        drawn = torch.randn(outputs, features) * (scale / features**0.5)
        self.register_buffer("feedback", drawn.to(site.boundary.dtype))

    def forward(self, context: Context) -> Signal:
        """The projected error, as the gradient of h_out."""
        return Signal(gradient=projected_error(context.feedback[self._sender], self.feedback, context.h_out))


@dataclass(frozen=True, kw_only=True)
class DirectFeedbackAlignment(PartwiseMethod):
    """Direct feedback alignment: part k follows e B_k in place of dL/dh_k, with e = dL/d(output), B_k fixed.

    Entries of B_k are drawn once from N(0, scale^2 / F), F the number of elements of h_k in one sample, so
    that with scale 1 the error's length is kept on average. Within a part errors pass back by the chain rule.

    Args:
        outputs: number of elements of one sample's output (the classes, in classification), >= 1.
        scale: length of the projected error relative to the output error, > 0.

    Raises:
        MethodError: an argument is out of range.

    References:
        A. Nøkland, Direct feedback alignment provides learning in deep neural networks, NeurIPS 2016,
        https://arxiv.org/abs/1609.01596. There every layer has a matrix of its own; here every part has.

    >>> from modulewise.partition.boundary import Boundary
    >>> site = Site(0, 2, None, Boundary("cut", (4, 3)), loss=lambda output, y: output.mean())
    >>> DirectFeedbackAlignment(outputs=10).objective(site).feedback.shape
    torch.Size([10, 3])
    """

    outputs: int
    scale: float = 1.0

    family: ClassVar[Family] = Family.GRADIENTS
    locality: ClassVar[Locality] = Locality(Reach.GRADIENTS)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "A. Nøkland",
            "Direct feedback alignment provides learning in deep neural networks",
            "NeurIPS",
            2016,
            "https://arxiv.org/abs/1609.01596",
        ),
    )

    def __post_init__(self) -> None:
        if self.outputs < 1 or self.scale <= 0:
            raise MethodError(
                f"outputs={self.outputs}, scale={self.scale} were given; give outputs >= 1 and scale above 0"
            )

    def objective(self, site: Site) -> Objective:
        """The error's source in the last part, its projection in the others."""
        return _OutputError(site) if site.last else _Projected(site, outputs=self.outputs, scale=self.scale)
