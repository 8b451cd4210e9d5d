"""What a frozen part gives for data: one pass, every module in eval mode, nothing left changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...engine.features import evaluating
from ...errors import DataError, ModulewiseError
from ...partition import Part

__all__ = ["AnyPart", "AveragePool", "Pooling", "collect", "parameters_of"]

AnyPart = nn.Module | Part | Callable[[Tensor], Tensor]
"""Takes one tensor (N, ...) and gives one tensor."""


class Pooling(Protocol):
    """pool(h) -> h with fewer positions."""

    def __call__(self, h: Tensor, /) -> Tensor:
        """Pool h (N, ...)."""


@dataclass(frozen=True)
class AveragePool:
    """Averages the spatial axes of (N, C, H, W) or (N, C, T) to a size; leaves (N, D) as it is.

    Args:
        size: positions along every axis, >= 1; 1 (default) is global average pooling.

    Raises:
        DataError: the size is below 1.

    >>> AveragePool()(torch.ones(2, 3, 4, 4)).shape, AveragePool(2)(torch.ones(2, 3, 4, 4)).shape
    (torch.Size([2, 3, 1, 1]), torch.Size([2, 3, 2, 2]))
    """

    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise DataError(f"size={self.size} was given, expected at least 1")

    def __call__(self, h: Tensor) -> Tensor:
        """Pool h (N, C, ...)."""
        if h.ndim == 4:
            return F.adaptive_avg_pool2d(h, (min(self.size, h.shape[2]), min(self.size, h.shape[3])))
        return F.adaptive_avg_pool1d(h, min(self.size, h.shape[2])) if h.ndim == 3 else h


@contextmanager
def _frozen(part: AnyPart) -> Iterator[None]:
    """No gradients, and eval mode for whatever modules the part consists of."""
    with ExitStack() as stack:
        if isinstance(part, nn.Module):
            stack.enter_context(evaluating(part))
        elif isinstance(part, Part):
            for _, module in part.modules():
                stack.enter_context(evaluating(module))
        stack.enter_context(torch.no_grad())
        yield


def parameters_of(part: AnyPart) -> list[nn.Parameter]:
    """The parameters of a part; none of a plain function.

    >>> sum(p.numel() for p in parameters_of(nn.Linear(3, 2)))
    8
    """
    return list(part.parameters()) if isinstance(part, nn.Module | Part) else []


def collect(
    part: AnyPart,
    loader: Iterable[Any],
    *,
    device: torch.device | str | None = None,
    pool: Pooling | None = None,
) -> tuple[Tensor, Tensor]:
    """The features of a frozen part for every sample of a loader, and the labels; one forward pass.

    The part runs in eval mode without gradients; each module's own mode is back afterwards.

    Args:
        part: a stored part, a part of a partition or any module; one tensor in, one tensor out.
        loader: batches (x, y), gone through once: one without augmentation, for one and the same features each time.
        device: where batches are put; where the part's parameters are, if left out.
        pool: what averages positions before features are flattened, such as `AveragePool()`; None keeps all.

    Returns:
        Features (N, D) and labels (N,), on the CPU, in the order of the loader.

    Raises:
        DataError: there is no batch, or the part does not take these batches or does not give one tensor.

    >>> split = torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 0])
    >>> x, y = collect(nn.Identity(), [split])
    >>> x.tolist(), y.tolist()
    ([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], [0, 1, 0])
    """
    parameters = parameters_of(part)
    place = torch.device(device) if device is not None else parameters[0].device if parameters else None
    features, labels = [], []
    with _frozen(part):
        for x, y in loader:
            features.append(_flat(_called(part, x if place is None else x.to(place)), pool).cpu())
            labels.append(y.cpu())
    if not features:
        raise DataError("the loader gave no batch, expected at least one of (x, y)")
    return torch.cat(features), torch.cat(labels)


def _called(part: AnyPart, x: Tensor) -> Tensor:
    try:
        h = part(x)
    except ModulewiseError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"the part does not take batches {tuple(x.shape)} ({reason}); give data of its shape"
        ) from error
    if not isinstance(h, Tensor) or h.ndim < 1 or len(h) != len(x):
        raise DataError(f"the part gave {type(h).__name__} for {len(x)} samples, expected one tensor (N, ...)")
    return h


def _flat(h: Tensor, pool: Pooling | None) -> Tensor:
    return (h if pool is None else pool(h)).reshape(len(h), -1)
