"""The contract of one part: what it sees (`Context`), what it asks for (`Signal`), what it minimises (`Objective`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from torch import Tensor, nn

from .partition.boundary import Block, Boundary
from .partition.tree import map_tensors

__all__ = ["Block", "Context", "LayerRule", "Loss", "Objective", "Role", "Signal", "Site"]

Loss = Callable[[Any, Any], Tensor]
"""loss(output, y) -> scalar, on the raw output of the model."""


class Role(StrEnum):
    """What an optimiser's parameters are for."""

    PART = "part"
    HEAD = "head"
    FEEDBACK = "feedback"


@dataclass(frozen=True)
class Context:
    """All that one part may look at in one step.

    Args:
        h_in: what entered the part: the boundary below it, detached (N, ...); for part 0 the model's input x.
        h_out: what left it, with the part's own graph (detached once the part has learned); for the last part the raw
            output of the model.
        x: the model's input, as the user gave it.
        y: the labels.
        views: how many views of every sample are stacked along the batch (1 outside self-supervision).
        part: index of the part, 0 <= part < K.
        step: index of the training step.
        feedback: messages from other parts, by sender: those of earlier parts are there when the part learns, those of
            later ones once they have arrived.
        ports: boundaries below h_in that this part reads as well (a skip from an earlier boundary), by index.
        run: runs this part on another h_in (N, ...) with its present weights, recomputing without touching buffers;
            same x, same random draws; gradient mode is the caller's.
        taps: what went into the modules named in `Objective.taps` and what came out of them, with its graph.
        ahead: runs all later parts on another h_out (N, ...) up to the model's raw output, as `run` runs this one; for
            objectives that `look_ahead`.
    """

    h_in: Any
    h_out: Any
    x: Any
    y: Any
    views: int
    part: int
    step: int
    feedback: Mapping[int, Any] = field(default_factory=dict)
    ports: Mapping[int, Tensor] = field(default_factory=dict)
    run: Callable[[Any], Any] | None = None
    taps: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    ahead: Callable[[Any], Any] | None = None

    @property
    def labels(self) -> Any:
        """A label for every row of h_out: y, repeated for every view of a sample."""
        if self.views == 1:
            return self.y
        return map_tensors(lambda y: y.repeat(self.views, *[1] * (y.dim() - 1)), self.y)


@dataclass(frozen=True)
class Signal:
    """What is differentiated to update a part: a loss, a gradient to push into h_out, or both.

    Args:
        loss: scalar with a graph; its gradient reaches the part, the objective's own parameters, or both.
        gradient: dL/d(h_out), same shape as h_out.
        report: the number to show for this part, a scalar; the loss where left out.
    """

    loss: Tensor | None = None
    gradient: Tensor | None = None
    report: Tensor | None = None

    def shown(self) -> Tensor:
        """The detached number to show, which is also what the non-finite check reads."""
        value = self.report if self.report is not None else self.loss
        if value is None:
            assert self.gradient is not None, "a signal needs a loss or a gradient"
            value = self.gradient.norm()
        return value.detach()


@dataclass(frozen=True)
class Site:
    """Where in the network an objective sits.

    Args:
        part: index of the part.
        parts: K.
        input: what enters the part; None for part 0.
        output: what leaves it; None for the last part, whose output is whatever the model returns.
        loss: the task loss, minimised by the last part.
        blocks: the later modules, in order of call (made on demand).
        modules: the outermost modules that this part calls, by name (made on demand).
        x: an example of the model's input (N, ...), for its structure and shapes alone.
        moments: where parts are windows of time, which share their parameters: the shape (N, t, ...) of the moments of
            the longest window; None for parts in depth.
    """

    part: int
    parts: int
    input: Boundary | None
    output: Boundary | None
    loss: Loss
    blocks: Callable[[], tuple[Block, ...]] = tuple
    modules: Callable[[], Sequence[tuple[str, nn.Module]]] = tuple
    x: Any = None
    moments: tuple[int, ...] | None = None

    @property
    def last(self) -> bool:
        """Whether this is the part that ends in the model's output."""
        return self.part == self.parts - 1

    @property
    def over_time(self) -> bool:
        """Whether parts are windows of time of a recurrent network."""
        return self.moments is not None

    @property
    def boundary(self) -> Boundary:
        """The boundary above this part; only parts before the last have one."""
        assert self.output is not None, "the last part has no boundary above it"
        return self.output


class LayerRule(ABC):
    """How an error passes back through single layers: put in around a part's forward, taken out in a `finally`.

    Attributes:
        compiles: the rule works where the part is compiled; False where it needs what a compiled backward hides.
    """

    compiles: ClassVar[bool] = True

    @abstractmethod
    def installed(self, modules: Iterable[tuple[str, nn.Module]]) -> AbstractContextManager[None]:
        """Put the rule into these (name, module) pairs for the duration of a `with` block."""

    def learn(self, modules: Iterable[tuple[str, nn.Module]]) -> None:  # noqa: B027 - most rules learn nothing
        """Change the rule's own tensors, or the gradients: once a step, when the part's gradients are all there.

        Asked before the optimisers of the part and its objective step; draws come from torch's default generator,
        which is set for (seed, step, part). Nothing unless the rule says otherwise.

        Args:
            modules: the part's (name, module) pairs.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """The rule's own tensors (feedback weights), for a checkpoint."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the rule's tensors back from a checkpoint."""


class Objective(nn.Module, ABC):
    """What one part minimises; its submodules are the part's auxiliary heads.

    The engine calls, in this order, for each part and step:

    1. `forward(context)` once: right after the part's own forward, or, where `waits`, when every later part has
       sent its messages (in `context.feedback`). The signal is differentiated at once.
    2. `messages(context)` after the backward, before the optimiser step: what to tell other parts, by receiver: any
       earlier part that still listens, or a later one, which has it in `feedback` when it learns.
       `context.h_in.grad` is there where `reads_input_gradient` is set.
    3. `hear(context)` where `hears` or `overlaps` is set: once the later parts that read this part's output have sent
       their messages. With `hears` h_out is detached by then, and the signal updates the objective's own parameters
       alone; with `overlaps` it is as it was, and part and objective take their one step after this signal.

    Where `rounds` is set there is a feedback phase between the two ways: when all parts have run and none has learned,
    from the top part down, `rehearse(context)` is asked `rounds` times for a signal of the objective's own parameters,
    which step after each, and then `rehearsed(context)` for messages to the rehearsals below.

    Attributes:
        role: the role of the objective's own parameters (`head`, or `feedback` for inverses and predictors).
        waits: the part learns only after later parts have sent their messages; its graph is kept until then.
        hears: the objective learns from messages after its part has learned.
        overlaps: the loss of the part above reaches this part too (locality `window(2)`): its graph is kept after its
            own backward until `hear` has been asked, then it steps.
        reads_input_gradient: h_in must require a gradient, because a message is made of it.
        recompute: while waiting, keep h_in instead of the graph and run the part again when the message is there.
        rounds: updates of the objective's own parameters in the feedback phase of every step; it must wait, and all
            later parts must, so that every weight is still that of the forward pass.
        looks_ahead: the objective runs later parts (`context.ahead`), which must all wait.
        delay: steps after the forward in which the part learns from its message, with the inputs, labels and draws of
            the forward. With `recompute` the inputs alone are kept and run again with present weights; else the graph,
            with a copy of the weights it was made with.
        rule: how errors pass back through the layers of this part; None for the chain rule.
        taps: names of modules inside this part whose input and output the objective reads in `context.taps`.
        differentiates: the objective differentiates parts within its own call, twice or many vectors at once, which
            neither compiled parts nor parts in pieces on several ranks can do.
        reads_x: the objective reads `context.x`; False spares the model's input the way to other processes, where
            `context.x` then has the right shape and no values.
        per_sample: the loss is a mean over samples, so that slices of a batch can be on several ranks; False where it
            compares samples with one another, or where nobody knows.
    """

    role: ClassVar[Role] = Role.HEAD
    waits: bool = False
    hears: bool = False
    overlaps: bool = False
    reads_input_gradient: bool = False
    recompute: bool = False
    rounds: int = 0
    looks_ahead: bool = False
    delay: int = 0
    rule: LayerRule | None = None
    taps: tuple[str, ...] = ()
    differentiates: bool = False
    reads_x: bool = True
    per_sample: bool = False

    @property
    def talks(self) -> bool:
        """Whether the objective has to do with other parts, so that they must run in the same step."""
        return self.waits or self.hears or self.overlaps or self.reads_input_gradient

    @property
    def classifier(self) -> nn.Module | None:
        """The head that gives logits of the classes from h_out, for early exits; None where there is none."""
        return None

    @abstractmethod
    def forward(self, context: Context) -> Signal:
        """The part's learning signal."""

    def messages(self, context: Context) -> Mapping[int, Any]:
        """Messages to other parts, by receiver; none unless the objective says otherwise.

        Tensors, numbers and words in tuples, lists and mappings, so that they can travel between processes.
        """
        return {}

    def hear(self, context: Context) -> Signal | None:
        """The signal of the messages of later parts, once they have arrived."""
        return None

    def rehearse(self, context: Context) -> Signal | None:
        """One round of the feedback phase: a loss for the objective's own parameters alone; h_out is detached.

        `context.feedback` holds what later parts said in `rehearsed`.
        """
        return None

    def rehearsed(self, context: Context) -> Mapping[int, Any]:
        """After the rounds: messages to the rehearsals of earlier parts, by receiver.

        A message may be a function; it lives until the phase is over. One to the part itself is in `context.feedback`
        when the part learns: a target, say, made while every weight was that of the forward pass.
        """
        return {}
