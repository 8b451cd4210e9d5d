"""Unit tests for parts: what is measured, and the bound that it is held to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...data import Dataset, Normalize
from ...errors import StoreError
from ...metering.timing import step_seconds
from ...partition import Part
from .measuring import FITTED, Data, Proxy, Run, batches_of, probed, proxy_name, proxy_value, some_of
from .rebuilding import StoredPart
from .taking import frozen_run

__all__ = ["Expectation", "Measured", "expect"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A measured value; every bound that it misses is an AssertionError of one line, as pytest shows it.

    Args:
        subject: what was measured of what, for messages.
        value: a number, or a shape.

    >>> Measured(subject="accuracy", value=0.8).at_least(0.7).at_most(0.9).value
    0.8
    """

    subject: str
    value: Any

    def at_least(self, bound: float) -> Measured:
        """The value is no smaller."""
        __tracebackhide__ = True
        if not self.value >= bound:
            raise AssertionError(f"{self._told()}, expected at least {bound:g}")
        return self

    def at_most(self, bound: float) -> Measured:
        """The value is no larger."""
        __tracebackhide__ = True
        if not self.value <= bound:
            raise AssertionError(f"{self._told()}, expected at most {bound:g}")
        return self

    def equals(self, wanted: Any) -> Measured:
        """The value is this one; shapes may be given as tuples, lists or `torch.Size`."""
        __tracebackhide__ = True
        wanted = tuple(wanted) if isinstance(self.value, tuple) else wanted
        if self.value != wanted:
            raise AssertionError(f"{self._told()}, expected {wanted}")
        return self

    def _told(self) -> str:
        value = f"{self.value:.4g}" if isinstance(self.value, float) else str(self.value)
        return f"{self.subject} is {value}"


@dataclass(frozen=True)
class Expectation:
    """What can be expected of one part; see `expect`.

    Args:
        part: of a partition, loaded, or any module that takes one tensor.
    """

    part: Part | nn.Module

    def proxy(self, proxy: Proxy, *, on: Data) -> Measured:
        """A proxy's value: minus the loss of a method or objective, for `KernelProxy()` its kernel alignment.

        Args:
            proxy: a method whose hidden parts need no head, a trained objective, or a function (features (N, D), labels
                (N,)) -> number such as a score.
            on: a data set (its test split), a split, a pair (x, y), or batches. Splits and data sets are scaled, and
                normalised as the card of a loaded part says.
        """
        value = proxy_value(self._run, proxy, batches_of(on, normalize=self._normalize))
        return Measured(subject=f"{proxy_name(proxy)} of {self._name}", value=value)

    def probe_accuracy(self, *, on: Data, fit: Data | None = None) -> Measured:
        """Accuracy, 0 to 1, of a linear probe (ridge regression on the flattened output).

        Args:
            on: data that it is scored on, as for `proxy`.
            fit: data that it is fitted to. Where left out, 2048 samples of the training split of a data set; of other
                data the probe is fitted to every other sample, and scored on the rest.
        """
        if fit is None and isinstance(on, Dataset):
            fit = some_of(on.train, FITTED)
        held = batches_of(on, normalize=self._normalize)
        fitted = None if fit is None else batches_of(fit, normalize=self._normalize)
        return Measured(subject=f"probe accuracy of {self._name}", value=probed(self._run, held, fitted=fitted))

    def latency(self, x: Tensor, *, repeats: int = 5) -> Measured:
        """Seconds of one forward: the median of repeated runs, after one that is not timed.

        Args:
            x: input (N, ...).
            repeats: runs that are timed, >= 1.
        """
        seconds = step_seconds(lambda: self._run(x), repeats=repeats).median
        return Measured(subject=f"latency of {self._name} in seconds", value=seconds)

    def output_shape(self, x: Tensor) -> Measured:
        """The shape (N, ...) of what the part gives for x (N, ...)."""
        out = self._run(x)
        if not isinstance(out, Tensor):
            raise StoreError(f"the part gives {type(out).__name__}, expected one tensor (N, ...)")
        return Measured(subject=f"output shape of {self._name}", value=tuple(out.shape))

    @property
    def _run(self) -> Run:
        return frozen_run(self.part)

    @property
    def _name(self) -> str:
        if isinstance(self.part, StoredPart):
            return self.part.card.label
        return f"part {self.part.index}" if isinstance(self.part, Part) else type(self.part).__name__

    @property
    def _normalize(self) -> Normalize | None:
        return self.part.card.normalize if isinstance(self.part, StoredPart) else None


def expect(part: Part | nn.Module) -> Expectation:
    """A unit test for a part, in pytest or anywhere: `expect(part).proxy(KernelProxy(), on=data).at_least(0.9)`.

    The part is run in eval mode without gradients; nothing of it changes.

    Args:
        part: `partition.part(k)`, a loaded part, or any module that takes one tensor.

    Returns:
        What can be measured: `proxy`, `probe_accuracy`, `latency`, `output_shape`, each with the bounds `at_least`,
        `at_most` and `equals`, which raise an AssertionError of one line.

    Raises:
        StoreError: the part is neither.

    >>> import torch
    >>> expect(nn.Linear(4, 2)).output_shape(torch.zeros(3, 4)).equals((3, 2)).value
    (3, 2)
    """
    if not isinstance(part, Part | nn.Module):
        raise StoreError(f"{type(part).__name__} was given, expected partition.part(k), a loaded part or a module")
    return Expectation(part)
