"""Parts that learn some steps after their forward: from which batch, and with which weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .local import LocalEngine
    from .session import Session

__all__ = ["WeightCopies", "due"]


class WeightCopies:
    """Copies of parameters, which a graph made now keeps in place of the parameters themselves.

    Args:
        parameters: of one part.
        values: what to copy, in the same order; None for their present values.

    >>> weight = torch.nn.Parameter(torch.ones(()))
    >>> copies, x = WeightCopies([weight]), torch.ones((), requires_grad=True)
    >>> with copies.kept():
    ...     y = weight * x
    >>> _ = weight.data.fill_(5.0)
    >>> y.backward()
    >>> x.grad
    tensor(1.)
    """

    def __init__(self, parameters: Sequence[Tensor], values: Sequence[Tensor] | None = None) -> None:
        self.parameters = list(parameters)
        self._storages = {p.untyped_storage()._cdata: p.untyped_storage().clone() for p in self.parameters}
        self.values = [self._copy(p.detach()) for p in self.parameters]
        for own, value in zip(self.values, self.values if values is None else values, strict=True):
            own.copy_(value)

    def _copy(self, tensor: Tensor) -> Tensor:
        """The tensor itself, or its like in the copies where it lies in a parameter's memory."""
        storage = self._storages.get(tensor.untyped_storage()._cdata)
        if storage is None:
            return tensor
        empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return empty.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())

    def kept(self) -> AbstractContextManager[object]:
        """While this is open, graphs save the copies."""
        # Detached: a node that held its own output would hold itself, and never be let go without a backward.
        return torch.autograd.graph.saved_tensors_hooks(lambda t: self._copy(t.detach()), lambda tensor: tensor)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """While this is open, the parameters have the copies' values."""
        present = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.values, strict=True):
                parameter.copy_(value)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, present, strict=True):
                    parameter.copy_(value)


def due(engine: LocalEngine, session: Session, part: int) -> Session | None:
    """The batch from which a waiting part learns in this session's step; None while the first ones are under way."""
    delay = engine.objectives[part].delay
    if delay == 0:
        return session
    return next((s for s in engine.pending if s.step == session.step - delay and part in s.waiting), None)
