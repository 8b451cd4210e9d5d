"""What can be measured of one part on data: a proxy's value, a probe's accuracy, seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ... import losses
from ...compare.probing import probe_accuracy
from ...data import Dataset, Loader, Normalize, Split
from ...errors import StoreError
from ...method import Method, PartwiseMethod
from ...objective import Context, Objective, Site
from ...partition import Boundary

__all__ = [
    "FITTED",
    "Data",
    "Proxy",
    "Run",
    "batches_of",
    "features_of",
    "probed",
    "proxy_name",
    "proxy_value",
    "some_of",
]

Run = Callable[[Tensor], Any]
"""A part as a function of one tensor (N, ...)."""

Data = Dataset | Split | tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]
"""A data set (its test split), a split, one pair (x, y), or batches (x, y)."""

Proxy = Method | Objective | Callable[[Tensor, Tensor], Any]
"""A method or objective, whose value is minus its loss, or a function (features (N, D), y (N,)) -> number."""

_BATCH = 1024
FITTED = 2048
"""Most samples that a probe is fitted to."""


def batches_of(on: Data, *, normalize: Normalize | None = None) -> list[tuple[Tensor, Tensor]]:
    """Batches (x, y) of data.

    Args:
        on: splits and data sets are shuffled, scaled and normalised, in batches of 1024; other data is as it is.
        normalize: what splits and data sets are normalised with.

    Raises:
        StoreError: there is no batch.
    """
    if isinstance(on, Dataset):
        on = on.test
    if isinstance(on, Split):
        # A last batch of a few samples would weigh pairs otherwise: all batches are of nearly one size.
        count = -(-len(on) // _BATCH)
        on = Loader(on, batch_size=-(-len(on) // count), seed=0, normalize=normalize)
    elif isinstance(on, tuple) and len(on) == 2 and isinstance(on[0], Tensor):
        on = [(on[0], on[1])]
    found: list[tuple[Tensor, Tensor]] = [(x, y) for x, y in on]
    if not found:
        raise StoreError("the data holds no batch, expected at least one pair (x, y)")
    return found


def some_of(split: Split, count: int) -> Split:
    """At most so many samples of a split, evenly spread.

    >>> import torch
    >>> some_of(Split(torch.arange(5), torch.arange(5)), 2).x.tolist()
    [0, 3]
    """
    stride = -(-len(split) // count)
    return Split(split.x[::stride], split.y[::stride])


def _given(run: Run, x: Tensor) -> Tensor:
    h = run(x)
    if not isinstance(h, Tensor):
        raise StoreError(f"the part gives {type(h).__name__}, expected one tensor (N, ...)")
    return h.detach()


def features_of(run: Run, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """What a part gives for every sample, flattened (N, D) float32 on the CPU, and the labels (N,)."""
    pairs = [(_given(run, x).flatten(1).float().cpu(), y.cpu()) for x, y in batches]
    features, labels = zip(*pairs, strict=True)
    return torch.cat(features), torch.cat(labels)


def proxy_value(run: Run, proxy: Proxy, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """How well a part does by a proxy; larger is better.

    The value of a method or objective is minus its loss on h_out, the mean over batches weighted by their samples: for
    `KernelProxy()` that is its kernel alignment, in [-1, 1]. A function of features and labels is asked once, of all
    samples, and its value is what it returns.

    Args:
        run: the part, in eval mode without gradients.
        proxy: a method whose hidden parts need no head, a trained objective, or a function.
        batches: (x, y).

    Raises:
        StoreError: the method's objective needs a head, messages or other parts.
    """
    if isinstance(proxy, type) or not (isinstance(proxy, Method) or callable(proxy)):
        raise StoreError(f"{proxy!r} was given, expected a method such as KernelProxy(), an objective or a function")
    if not isinstance(proxy, Method | Objective):
        return float(proxy(*features_of(run, batches)))
    total, samples = 0.0, 0
    objective: Objective | None = None
    for x, y in batches:
        h = _given(run, x)
        if objective is None:
            objective = proxy if isinstance(proxy, Objective) else _hidden(proxy, h)
        context = Context(h_in=x, h_out=h, x=x, y=y, views=1, part=0, step=0)
        with torch.no_grad():
            loss = objective(context).loss
        if loss is None:
            raise StoreError(f"{proxy_name(proxy)} gives a gradient and no loss; give a proxy objective")
        total, samples = total - float(loss) * len(x), samples + len(x)
    return total / samples


def _hidden(method: Method, h: Tensor) -> Objective:
    """The objective that a method gives a hidden part with this output."""
    name = type(method).__name__
    if not isinstance(method, PartwiseMethod):
        raise StoreError(f"{name} has no objective for one part alone; give a proxy such as KernelProxy()")
    boundary = Boundary("", tuple(h.shape), h.dtype, -1 if h.ndim == 3 else 1)
    objective = method.objective(Site(0, 2, None, boundary, losses.classification))
    if objective.talks or objective.taps or objective.rule is not None or method.makes_views or method.views != 1:
        raise StoreError(f"the objective of {name} needs more than one part's output; give one such as KernelProxy()")
    if next(objective.parameters(), None) is not None:
        raise StoreError(
            f"{name} gives a part a head, which is untrained here; give the trained objective "
            "(trainer.objectives[k]) or a method without heads such as KernelProxy()"
        )
    return objective


def proxy_name(proxy: Proxy) -> str:
    """A proxy in a word, for messages and cards."""
    name = getattr(proxy, "__name__", None) or getattr(proxy, "name", None) or type(proxy).__name__
    return type(proxy).__name__ if isinstance(proxy, Method | Objective) else str(name)


def probed(run: Run, held: list[tuple[Tensor, Tensor]], *, fitted: list[tuple[Tensor, Tensor]] | None = None) -> float:
    """Accuracy of a linear probe on a part's flattened output, see `compare.probing.probe_accuracy`.

    Args:
        run: the part, in eval mode without gradients.
        held: batches (x, y) that the probe is scored on.
        fitted: batches that it is fitted to; the even samples of `held`, scored on the odd ones, where left out.

    Raises:
        StoreError: there are fewer than two samples.
    """
    features, labels = features_of(run, held)
    if fitted is not None:
        fit = features_of(run, fitted)
    else:
        if len(labels) < 2:
            raise StoreError(f"{len(labels)} sample was given to fit a probe and to score it; expected at least two")
        fit, features, labels = (features[::2], labels[::2]), features[1::2], labels[1::2]
    classes = 1 + int(max(fit[1].max(), labels.max()))
    return probe_accuracy(fit, (features, labels), classes=classes)
