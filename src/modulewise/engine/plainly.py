"""Plain data as JSON that keeps integer keys (a scheduler's milestones) apart from words."""

from __future__ import annotations

from typing import Any

__all__ = ["decoded", "encoded"]

ITEMS = "items with keys that are no words"


def encoded(value: Any) -> Any:
    """Plain data with keys that JSON can keep.

    >>> encoded({"milestones": {10: 1}})
    {'milestones': {'items with keys that are no words': [[10, 1]]}}
    """
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: encoded(item) for key, item in value.items()}
        return {ITEMS: [[key, encoded(item)] for key, item in value.items()]}
    return [encoded(item) for item in value] if isinstance(value, list | tuple) else value


def decoded(value: Any) -> Any:
    """What `encoded` was given, tuples as lists.

    >>> decoded(encoded({"milestones": {10: 1}}))
    {'milestones': {10: 1}}
    """
    if isinstance(value, dict):
        items = value[ITEMS] if ITEMS in value else value.items()
        return {key: decoded(item) for key, item in items}
    return [decoded(item) for item in value] if isinstance(value, list) else value
