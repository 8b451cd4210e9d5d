"""Words on the command line as values of a method's fields, by the type of the field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from . import heads, losses
from .errors import MethodError
from .method import Method

__all__ = ["FROM_DATA", "settable", "value_of"]

FROM_DATA = ("classes", "outputs", "normalize")
"""Fields that the data decides: number of classes, of outputs, and how images were normalised."""

_WORDS: Mapping[Any, Mapping[str, Any]] = MappingProxyType(
    {
        heads.HeadFactory: {
            "conv": heads.conv,
            "linear": heads.linear,
            "mlp": heads.mlp,
            "mlp-sr": heads.mlp_sr,
            "projection": heads.projection,
        },
        losses.DependenceMeasure: losses.DEPENDENCE_MEASURES,
        losses.Kernel: losses.KERNELS,
        losses.PairwiseObjective: losses.PAIRWISE_OBJECTIVES,
    }
)


def settable(cls: type[Method]) -> dict[str, Any]:
    """The fields of a method that words can set, with their types; what the data decides is not among them."""
    hints = get_type_hints(cls)
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    return {
        name: hints[name]
        for name in names
        if name not in FROM_DATA and any(_has_words(kind) for kind in _kinds(hints[name]))
    }


def _has_words(kind: Any) -> bool:
    return kind in _WORDS or kind in (bool, int, float) or bool(_members(kind))


def _members(kind: Any) -> dict[str, Any]:
    """The members of an enumeration, by their words: the value, or the name where that is no text; none otherwise."""
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        return {}
    return {(m.value if isinstance(m.value, str) else m.name.replace("_", "-")).lower(): m for m in kind}


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def value_of(method: str, key: str, text: str, hint: Any) -> Any:
    """A word as the type of a field.

    Args:
        method: the method's name, for the message.
        key: the field's name.
        text: what was typed.
        hint: the field's type.

    Raises:
        MethodError: the word does not fit.

    >>> value_of("predsim", "beta", "0.5", float), value_of("greedy", "width", "none", int | None)
    (0.5, None)
    """
    expected: list[str] = []
    for kind in _kinds(hint):
        if kind in _WORDS:
            words = _WORDS[kind]
            width = re.fullmatch(r"gaussian\(([0-9.e+-]+)\)", text) if kind is losses.Kernel else None
            if width is not None:
                return losses.gaussian(float(width[1]))
            if text in words:
                return words[text]
            expected += [*words, *(["gaussian(WIDTH)"] if kind is losses.Kernel else [])]
        elif members := _members(kind):
            if text.lower() in members:
                return members[text.lower()]
            expected += members
        elif kind is bool:
            if text.lower() in ("true", "yes", "1", "false", "no", "0"):
                return text.lower() in ("true", "yes", "1")
            expected.append("true or false")
        elif kind is NoneType:
            if text.lower() == "none":
                return None
            expected.append("none")
        elif kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                expected.append("a whole number" if kind is int else "a number")
    raise MethodError(f"{method}:{key}={text} was given, expected {', '.join(expected)}")
