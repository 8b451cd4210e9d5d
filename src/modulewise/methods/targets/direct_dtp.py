"""Direct difference target propagation: learned feedback from the output to every part at once."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from ...errors import MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Objective, Site
from ..objectives import TaskLoss
from .difference_reconstruction import FeedbackTraining
from .direct_dtp_objective import DirectPart, FeedbackSource

__all__ = ["DirectDTP", "DirectFeedback"]


class DirectFeedback(StrEnum):
    """What leads from the output to a part, and how it learns.

    Attributes:
        LINEAR: weights Q_k on the output, by the difference reconstruction loss.
        RANDOM_HIDDEN: weights on tanh(R a), R fixed, random and shared; the part below the last as in LINEAR.
        CONTROL: as LINEAR, by the plain reconstruction loss.
    """

    LINEAR = "linear"
    RANDOM_HIDDEN = "rhl"
    CONTROL = "control"


@dataclass(frozen=True, kw_only=True)
class DirectDTP(PartwiseMethod):
    """Direct DTP: ||h_k - t_k||^2 with t_k = h_k + Q_k phi(a_target) - Q_k phi(a), Q_k learned, straight to part k.

    a is the model's raw output, a_target = a - step_size N dL/da; phi is the identity or, with a random hidden layer,
    tanh(R a). The last part minimises the task loss. In the feedback phase h_k is corrupted, h~ = h_k + noise e with
    e ~ N(0, I), all later parts run on it up to a~, and Q_k minimises the difference reconstruction loss

        1/noise^2 ||h_k + Q_k phi(a~) - Q_k phi(a) - h~||^2 + decay ||Q_k||^2,

    in the control instead ||Q_k a~ + b_k - h~||^2 + decay ||Q_k||^2. On linear parts the minimiser of the former is
    J^T (J J^T + decay I)^-1 with J = da/dh_k: t_k is then the target of `GaussNewtonTargets(damping=decay)`.

    Cost: in a round each part before the last runs all later parts twice (once in the control), so about K^2 part
    forwards in all (`Context.ahead`).

    Args:
        outputs: number of elements of one sample's output (the classes, in classification), >= 1.
        feedback: linear, rhl or control.
        hidden: units of the random hidden layer, >= 1.
        step_size: length of the step from the output to its target, > 0.
        noise: standard deviation of the corruption, in units of h, > 0.
        decay: factor of the squared feedback weights in their loss, >= 0.
        rounds: updates of the feedback weights in every step, >= 1.
        warmup: steps at the start in which feedback alone learns, >= 0.

    Raises:
        MethodError: an argument is out of range, or a sample's output has another number of elements.

    References:
        A. Meulemans, F. S. Carzaniga, J. A. K. Suykens, J. Sacramento, B. F. Grewe, A Theoretical Framework for Target
        Propagation, NeurIPS 2020, https://arxiv.org/abs/2006.14331. Departs from the paper: feedback learns within
        every step (there 6 epochs alone, `warmup`, and then an epoch for each epoch of the parts); the last part
        follows its true gradient, not step_size times it; weights on a random hidden layer are not followed by another
        tanh, as in the published runs. Published decays are of Adam, beside a mean over F features: F / 2 times as
        large here.

    >>> DirectDTP(outputs=10, feedback=DirectFeedback.RANDOM_HIDDEN).hidden
    1024
    """

    outputs: int
    feedback: DirectFeedback = DirectFeedback.LINEAR
    hidden: int = 1024
    step_size: float = 0.061
    noise: float = 0.091
    decay: float = 1e-4
    rounds: int = 1
    warmup: int = 0

    name: ClassVar[str] = "ddtp"
    family: ClassVar[Family] = Family.TARGETS
    locality: ClassVar[Locality] = Locality(Reach.TARGETS)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "A. Meulemans, F. S. Carzaniga, J. A. K. Suykens, J. Sacramento, B. F. Grewe",
            "A Theoretical Framework for Target Propagation",
            "NeurIPS",
            2020,
            "https://arxiv.org/abs/2006.14331",
        ),
    )

    def __post_init__(self) -> None:
        if not isinstance(self.feedback, DirectFeedback):
            raise MethodError(f"feedback={self.feedback!r} was given, expected a member of DirectFeedback")
        if not (self.outputs >= 1 and self.hidden >= 1 and self.step_size > 0):
            raise MethodError(
                f"outputs={self.outputs}, hidden={self.hidden}, step_size={self.step_size} were given; give outputs "
                ">= 1, hidden >= 1 and step_size > 0"
            )
        self._training()

    def objective(self, site: Site) -> Objective:
        """The task loss and the source of all feedback at the top, feedback weights in every part below."""
        if site.parts == 1:
            return TaskLoss(site.loss)
        hidden = self.hidden if self.feedback is DirectFeedback.RANDOM_HIDDEN else None
        if site.last:
            return FeedbackSource(
                site, outputs=self.outputs, hidden=hidden, step_size=self.step_size, warmup=self.warmup
            )
        below_last = site.part == site.parts - 2
        return DirectPart(
            site,
            self._training(),
            inputs=self.outputs if hidden is None or below_last else hidden,
            plain=self.feedback is DirectFeedback.CONTROL,
        )

    def _training(self) -> FeedbackTraining:
        return FeedbackTraining(noise=self.noise, decay=self.decay, rounds=self.rounds, warmup=self.warmup)
