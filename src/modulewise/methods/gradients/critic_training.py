"""Critic training: every part follows the gradient of a learned guess of the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...errors import MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Context, Objective, Role, Signal, Site
from ..objectives import TaskLoss
from .loss_critics import LossCritic
from .sample_losses import sample_losses

__all__ = ["CriticTraining", "critic_loss"]


def critic_loss(guess: Tensor, losses: Tensor) -> Tensor:
    """The critic's squared error, 1/N sum_n (guess_n - L_n)^2, of guesses (N,) and losses (N,) of samples.

    Raises:
        MethodError: there is not one guess a sample.

    >>> critic_loss(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    tensor(2.)
    """
    if guess.shape != losses.shape:
        raise MethodError(f"critic= gave {tuple(guess.shape)} for {len(losses)} samples; give one guess a sample, (N,)")
    return (guess - losses).square().mean()


class _Judged(Objective):
    """The last part: minimises the task loss and tells every earlier part the loss of every sample."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.task, self._receivers = TaskLoss(site.loss), range(site.part)

    def forward(self, context: Context) -> Signal:
        """The task loss."""
        return self.task.forward(context)

    def messages(self, context: Context) -> Mapping[int, Tensor]:
        """The losses (N,), to every earlier part."""
        if not self._receivers:
            return {}
        with torch.no_grad():
            return dict.fromkeys(self._receivers, sample_losses(self.task.loss, context.h_out, context.labels))


class _Criticised(Objective):
    """An earlier part: follows its critic's gradient; the critic learns from the losses sent later."""

    role: ClassVar[Role] = Role.FEEDBACK

    hears = True

    def __init__(self, site: Site, critic: nn.Module) -> None:
        super().__init__()
        self.critic, self._sender = critic, site.parts - 1

    def forward(self, context: Context) -> Signal:
        """The gradient of the mean guess; the mean guess is what is shown."""
        h = context.h_out.detach().requires_grad_()
        guess = self.critic(h, context.labels).mean()
        (gradient,) = torch.autograd.grad(guess, h)
        return Signal(gradient=gradient, report=guess)

    def hear(self, context: Context) -> Signal:
        """The critic's squared error against the losses that arrived."""
        guess = self.critic(context.h_out.detach(), context.labels)
        return Signal(loss=critic_loss(guess, context.feedback[self._sender].to(guess.dtype)))


@dataclass(frozen=True, kw_only=True)
class CriticTraining(PartwiseMethod):
    """Critic training: part k follows d/dh_k of 1/N sum_n c_k(h_kn, y_n), a critic's guess of the loss of a sample.

    The last part minimises the task loss and sends L_n, the loss of every sample, to all critics, which minimise
    1/N sum_n (c_k(h_n, y_n) - L_n)^2. A critic that is the loss of the remaining network gives backpropagation. Only
    numbers come back, one a sample: the gradient is the critic's own.

    Args:
        classes: number of classes of integer labels, >= 2; needed where `labelled`.
        labelled: condition critics on labels.
        width: channels of the default critic's hidden layers, >= 1; None for 128 on images and 1024 otherwise.
        critic: site -> module with forward(h, y) -> (N,), the guessed loss of every sample; the default is
            `LossCritic`.

    Raises:
        MethodError: labels are asked for without a number of classes, width is below 1, or (in the first step) the task
            loss cannot be taken sample by sample.

    References:
        W. M. Czarnecki, G. Swirszcz, M. Jaderberg, S. Osindero, O. Vinyals, K. Kavukcuoglu, Understanding synthetic
        gradients and decoupled neural interfaces, ICML 2017, https://arxiv.org/abs/1703.00522

    Departs from the paper: it names the method among others and gives no network or setting for it; the default critic
    follows the gradient predictors of decoupled neural interfaces.

    >>> CriticTraining(classes=10, width=64).labelled
    True
    """

    classes: int | None = None
    labelled: bool = True
    width: int | None = None
    critic: Callable[[Site], nn.Module] | None = None

    family: ClassVar[Family] = Family.GRADIENTS
    locality: ClassVar[Locality] = Locality(Reach.GRADIENTS)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "W. M. Czarnecki, G. Swirszcz, M. Jaderberg, S. Osindero, O. Vinyals, K. Kavukcuoglu",
            "Understanding synthetic gradients and decoupled neural interfaces",
            "ICML",
            2017,
            "https://arxiv.org/abs/1703.00522",
        ),
    )

    def __post_init__(self) -> None:
        if self.labelled and self.critic is None and (self.classes is None or self.classes < 2):
            raise MethodError(f"labelled=True was given with classes={self.classes}; give classes=2 or more")
        if self.width is not None and not self.width >= 1:
            raise MethodError(f"width={self.width} was given; give 1 or more, or None for 128 and 1024")

    def objective(self, site: Site) -> Objective:
        """A critic for every part but the last, which minimises the task loss."""
        if site.last:
            return _Judged(site)
        return _Criticised(site, (self.critic or self._default)(site))

    def _default(self, site: Site) -> nn.Module:
        width = self.width or (128 if len(site.boundary.spatial) == 2 else 1024)
        return LossCritic(site.boundary, classes=self.classes if self.labelled else None, width=width)
