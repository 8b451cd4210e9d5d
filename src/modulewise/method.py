"""The contract of a method: a frozen dataclass that gives every part of a partition its learning signal."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from .objective import Loss, Objective, Site

if TYPE_CHECKING:
    from .partition import Partition

__all__ = ["Family", "Locality", "Method", "PartwiseMethod", "Reach", "Reference", "Solver", "SolverMethod"]


class Family(StrEnum):
    """The families of the survey."""

    REFERENCE = "reference"
    PROXY = "proxy objective"
    TARGETS = "target propagation"
    GRADIENTS = "synthetic and modified gradients"
    AUXILIARY = "auxiliary variables"


class Reach(StrEnum):
    """What may influence a part's update, from least to most."""

    STRICT = "strict"
    WINDOW = "window"
    PORT = "port"
    TARGETS = "targets"
    GRADIENTS = "gradients"
    DELAYED = "delayed"
    GLOBAL = "global"


@dataclass(frozen=True)
class Locality:
    """What may influence a part's update.

    Args:
        reach: the kind of influence.
        window: for `window`, how many adjacent parts share a gradient (>= 2).
        messages: for `port`, whether a part reads what another sends it in the same step, rather than its weights or
            activations alone.

    >>> str(Locality(Reach.WINDOW, window=2)), Locality(Reach.STRICT).sends_feedback
    ('window(2)', False)
    """

    reach: Reach
    window: int = 1
    messages: bool = False

    @property
    def sends_feedback(self) -> bool:
        """Whether parts tell one another something, so that all of them must run in the same step."""
        return self.messages or self.reach not in (Reach.STRICT, Reach.PORT)

    def __str__(self) -> str:
        return f"window({self.window})" if self.reach is Reach.WINDOW else self.reach.value


@dataclass(frozen=True)
class Reference:
    """Where a method was published."""

    authors: str
    title: str
    venue: str
    year: int
    link: str

    def __str__(self) -> str:
        return f"{self.authors}, {self.title}, {self.venue} {self.year}, {self.link}"


class Method(ABC):
    """What every method has; subclass `PartwiseMethod` or `SolverMethod`, as a frozen dataclass of hyper-parameters.

    Attributes:
        family: the survey's family.
        locality: what may influence a part's update; the widest, where it depends on hyper-parameters.
        references: the papers, the defining one first.
        name: on the command line and in tables, as the paper writes it; made from the class name where left empty.
        views: how many views of every sample the method needs, stacked along the batch; the loader makes them.
        makes_views: whether the method makes views of its own, out of x and y, in `prepare`.
        full_batch: whether every step wants all samples, in the same order (variables for every sample are kept).
    """

    family: ClassVar[Family]
    locality: ClassVar[Locality]
    references: ClassVar[tuple[Reference, ...]]
    name: ClassVar[str] = ""
    views: ClassVar[int] = 1
    makes_views: ClassVar[bool] = False
    full_batch: ClassVar[bool] = False


class PartwiseMethod(Method, ABC):
    """A method that gives every part an objective (an objective alone, with feedback, or with a layer rule)."""

    @abstractmethod
    def objective(self, site: Site) -> Objective:
        """The objective of the part at this site; its heads draw their initial weights from a seed of their own."""

    def prepare(self, x: Any, y: Any) -> tuple[Any, int]:
        """Views made of a batch before part 0 sees it; asked for where `makes_views` is set and there are parts.

        Args:
            x: input (N, ...).
            y: labels (N, ...).

        Returns:
            Views stacked along the batch (views N, ...), and their number. Draws come from torch's default generator,
            which is set for the step.
        """
        return x, 1


class Solver(ABC):
    """The state of a method with its own update; it replaces objectives and optimisers."""

    @abstractmethod
    def step(self, x: Any, y: Any, *, step: int) -> dict[int, Tensor]:
        """Update the partition's parameters in place from one batch; return a detached loss for every part."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """The solver's own tensors, for a checkpoint."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the solver's tensors back from a checkpoint."""


class SolverMethod(Method, ABC):
    """A method that iterates within a step and needs no optimiser (auxiliary variables, gated linear networks)."""

    @abstractmethod
    def solver(self, partition: Partition, *, loss: Loss, seed: int) -> Solver:
        """Bind the method to a partition."""
