"""What a meter looks through: a dispatch mode that shows every operator's tensors to the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .ledger import Category, Ledger

__all__ = ["Watch", "resizes_seen"]

_lift = torch.ops.aten.lift_fresh.default  # how torch.tensor and torch.from_numpy end; its schema claims a view
_Mode: Any = TorchDispatchMode  # its constructor has no types


class Watch(_Mode):
    """Shows the ledger every tensor that an operator may have made, met or resized."""

    supports_higher_order_operators = True

    def __init__(self, ledger: Ledger, regions: list[Category]) -> None:
        super().__init__()
        self._ledger, self._regions = ledger, regions
        self._only_views: dict[Any, bool] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        only_views = self._only_views.get(func)
        if only_views is None:
            only_views = self._only_views[func] = _returns_only_views(func)
        if only_views:
            return func(*args, **kwargs)
        see_all = self._ledger.see_all
        if func is not _lift:  # whose argument is a tensor in the making
            see_all(args, Category.INPUTS)
            if kwargs:
                see_all(kwargs.values(), Category.INPUTS)
        result = func(*args, **kwargs)
        made = self._regions[-1] if self._regions else Category.ACTIVATIONS
        see_all((args, kwargs) if result is None else (result,), made)
        return result


def _returns_only_views(func: Any) -> bool:
    """Whether an operator's schema promises that it writes nothing and returns views of what it was given."""
    schema = getattr(func, "_schema", None)
    if schema is None or schema.is_mutable or func is _lift:
        return False
    return bool(schema.returns) and all(value.alias_info is not None for value in schema.returns)


@contextmanager
def resizes_seen(ledger: Ledger) -> Iterator[None]:
    """Tell the ledger of every `storage.resize_()`, which does not pass the dispatcher, within the block."""
    own = vars(torch.UntypedStorage).get("resize_")
    plain = torch.UntypedStorage.resize_

    def resize_(storage: torch.UntypedStorage, size: int) -> Any:
        result = plain(storage, size)
        ledger.resize(storage)
        return result

    setattr(torch.UntypedStorage, "resize_", resize_)  # noqa: B010 - to the checker a method is no variable
    try:
        yield
    finally:
        if own is None:
            delattr(torch.UntypedStorage, "resize_")
        else:
            setattr(torch.UntypedStorage, "resize_", own)  # noqa: B010
