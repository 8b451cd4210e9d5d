"""What can go wrong, said in one line: what was given, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from functools import partial

__all__ = [
    "ActorError",
    "CheckpointError",
    "DataError",
    "MethodError",
    "ModulewiseError",
    "NonFiniteBoundaryError",
    "NonFiniteLossError",
    "PartitionError",
    "PlanError",
    "RankError",
    "StoreError",
    "suggest",
]


class ModulewiseError(ValueError):
    """Every error that modulewise raises on purpose; the command line prints it and exits with 2."""


class PartitionError(ModulewiseError):
    """The model cannot be cut as asked."""


class MethodError(ModulewiseError):
    """The method does not fit the partition, the schedule or the batch."""


class PlanError(ModulewiseError):
    """Nothing fits the memory or the devices asked for; says what would."""


class DataError(ModulewiseError):
    """The data cannot be read, or labels and inputs do not fit."""


class CheckpointError(ModulewiseError):
    """A checkpoint is missing, damaged or belongs to another experiment."""


class ActorError(ModulewiseError):
    """The process of a part died too often, hung or failed.

    Attributes:
        part: index of the part.
    """

    def __init__(self, message: str, *, part: int) -> None:
        super().__init__(message)
        self.part = part


class RankError(ModulewiseError):
    """Ranks do not fit together, or another rank has stopped, hangs or is too slow."""


class StoreError(ModulewiseError):
    """A stored part is unknown, damaged, altered, of a newer format, or does not fit."""


class NonFiniteBoundaryError(ModulewiseError, ArithmeticError):
    """Activations are not finite; they have not been sent to the next rank.

    Attributes:
        boundary: index of the boundary, that of the part below it.
        step: index of the training step.
    """

    def __init__(self, *, boundary: int, step: int) -> None:
        super().__init__(
            f"boundary {boundary}, the output of part {boundary}, is not finite at step {step} and was not sent on; "
            "lower the learning rate, clip gradients or inspect this batch"
        )
        self.boundary, self.step = boundary, step


class NonFiniteLossError(ModulewiseError, ArithmeticError):
    """A part's loss is not finite; its weights have not been touched.

    Attributes:
        part: index of the part whose loss is not finite.
        step: index of the training step.
        stepped: indices of the parts that had already been updated in this step.
    """

    def __init__(self, *, part: int, step: int, stepped: tuple[int, ...]) -> None:
        done = ", ".join(map(str, stepped)) or "none"
        super().__init__(
            f"the loss of part {part} is not finite at step {step}; its weights are untouched, parts already "
            f"stepped: {done}; lower the learning rate, clip gradients or inspect this batch"
        )
        self.part, self.step, self.stepped = part, step, stepped

    def __reduce__(self) -> tuple[Callable[..., NonFiniteLossError], tuple[()]]:
        """From one process to another."""
        return partial(type(self), part=self.part, step=self.step, stepped=self.stepped), ()


def suggest(word: str, known: Iterable[str]) -> str:
    """Say which known word is closest to a misspelt one, as the tail of an error message.

    >>> suggest("layer9", ["layer1", "layer2"])
    "; did you mean 'layer2'?"
    >>> suggest("xyz", ["layer1"])
    ''
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
