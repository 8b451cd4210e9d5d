"""A stored part held to the thresholds on its card, and figures measured for a card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...data import Dataset, Normalize, Split
from ...engine.features import frozen_boundaries
from ...errors import StoreError
from ...methods import KernelProxy
from ...partition import Part
from ...partition.tree import tensors
from .card import Figure, Quantity, Threshold
from .expecting import expect
from .measuring import FITTED, Run, batches_of, probed, proxy_value, some_of
from .rebuilding import StoredPart
from .taking import frozen_run

__all__ = ["Outcome", "check", "figures_of", "thresholds_of"]

_TIMED = 128


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A threshold beside what was measured.

    Args:
        threshold: the bound.
        value: the measured number.
    """

    threshold: Threshold
    value: float

    @property
    def passed(self) -> bool:
        """Whether the value is within the bound; a value that is not a number is not."""
        least, most = self.threshold.at_least, self.threshold.at_most
        return (least is None or self.value >= least) and (most is None or self.value <= most)


def figures_of(
    part: Part | StoredPart, *, train: Split, held: Split, normalize: Normalize | None, on: str
) -> tuple[Figure, ...]:
    """Proxy value and probe accuracy of a part's output on held-out data, for a card.

    Args:
        part: `partition.part(k)`, fed by the parts below it, or a loaded part that takes images.
        train: what the probe is fitted to, 2048 samples at most.
        held: what both are measured on; nothing was trained on it.
        normalize: what images are normalised with.
        on: what `held` is, in words.
    """
    run = _through(part)
    batches = batches_of(held, normalize=normalize)
    fitted = some_of(train, FITTED)
    alignment = proxy_value(run, KernelProxy(), batches)
    accuracy = probed(run, batches, fitted=batches_of(fitted, normalize=normalize))
    return (
        Figure(
            quantity=Quantity.PROXY,
            value=alignment,
            on=on,
            how=f"kernel alignment of KernelProxy(), batches of {len(batches[0][1])}",
        ),
        Figure(
            quantity=Quantity.PROBE_ACCURACY,
            value=accuracy,
            on=on,
            how=f"ridge probe fitted to {len(fitted)} training samples",
        ),
    )


def _through(part: Part | StoredPart) -> Run:
    """From the model's input to the part's output, frozen."""
    if isinstance(part, StoredPart):
        return frozen_run(part)
    partition, index = part._partition, part.index
    return lambda x: tensors(frozen_boundaries(partition, index + 1, x, {})[index])[0]


def check(part: StoredPart, thresholds: Sequence[Threshold], *, dataset: Dataset) -> tuple[Outcome, ...]:
    """Measure a loaded part on a data set's test split and compare with bounds.

    The proxy is the kernel alignment of `KernelProxy()`; the probe is fitted to 2048 training samples; latency is that
    of one forward of 128 test samples.

    Args:
        part: takes images of the data set.
        thresholds: at least one.
        dataset: what to measure on.

    Raises:
        StoreError: there is no threshold, or the part takes what another part gives.
    """
    card = part.card
    if not thresholds:
        raise StoreError(f"the card of {card.label} holds no thresholds; give --at-least or --at-most")
    if card.part != 0:
        raise StoreError(
            f"{card.label} takes {card.input}, what the part below it gives, not images of {dataset.name}; store it "
            "with the parts below it (--below)"
        )
    expected = expect(part)
    found = []
    for threshold in thresholds:
        if threshold.quantity is Quantity.PROXY:
            value = expected.proxy(KernelProxy(), on=dataset).value
        elif threshold.quantity is Quantity.PROBE_ACCURACY:
            value = expected.probe_accuracy(on=dataset).value
        else:
            ((x, _), *_) = batches_of(some_of(dataset.test, _TIMED), normalize=card.normalize)
            value = expected.latency(x).value
        found.append(Outcome(threshold=threshold, value=value))
    return tuple(found)


def thresholds_of(at_least: str, at_most: str) -> tuple[Threshold, ...]:
    """Thresholds from words such as 'proxy=0.9,probe_accuracy=0.8'.

    Args:
        at_least: lower bounds; "" for none.
        at_most: upper bounds; "" for none.

    Raises:
        StoreError: a quantity is unknown or a bound is no number.

    >>> thresholds_of("proxy=0.9", "")
    (Threshold(quantity=<Quantity.PROXY: 'proxy'>, at_least=0.9, at_most=None),)
    """
    least, most = _bounds("at-least", at_least), _bounds("at-most", at_most)
    return tuple(
        Threshold(quantity=quantity, at_least=least.get(quantity), at_most=most.get(quantity))
        for quantity in Quantity
        if quantity in least or quantity in most
    )


def _bounds(option: str, text: str) -> dict[Quantity, float]:
    found = {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        name, _, bound = word.partition("=")
        try:
            found[Quantity(name.strip().replace("-", "_"))] = float(bound)
        except ValueError:
            raise StoreError(
                f"--{option} {word!r} is malformed, expected QUANTITY=NUMBER with one of {', '.join(Quantity)}"
            ) from None
    return found
