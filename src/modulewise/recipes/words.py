"""Keys of a recipe's file as typed values; what does not fit is said with the file and the key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar

import torch

from .. import models
from ..compare import Balancing, Descent, Experiment, RateSchedule
from ..errors import ModulewiseError, suggest

__all__ = ["Table", "experiment_values"]

T = TypeVar("T")
_FIXED = frozenset({"methods", "data", "seeds", "device", "probe", "threads"})
_ENUMS: Mapping[str, type[StrEnum]] = MappingProxyType(
    {"optimizer": Descent, "schedule_lr": RateSchedule, "balance": Balancing}
)
_PRECISIONS = ("float32", "bfloat16", "float16")
_WHOLE = ("epochs", "batch_size", "train_limit", "test_limit")
_NUMBERS = ("lr", "last_lr", "feedback_lr", "momentum", "weight_decay", "decay")
_FLAGS = ("normalize", "recompute")


@dataclass(frozen=True)
class Table:
    """A table of a file.

    Args:
        file: its name, for messages.
        path: of the table in the file, empty for the whole.
        facts: what stands in it.
    """

    file: str
    path: str
    facts: Mapping[str, Any]

    def key(self, key: str) -> str:
        """A key with the path to it."""
        return f"{self.path}.{key}" if self.path else key

    def wrong(self, key: str, why: str) -> NoReturn:
        """Refuse a key.

        Raises:
            ModulewiseError: always.
        """
        raise ModulewiseError(f"{self.file}, {self.key(key)}: {why}")

    def made(self, key: str, make: Callable[[], T]) -> T:
        """What a function makes; its refusal is the key's."""
        try:
            return make()
        except ModulewiseError as error:
            self.wrong(key, str(error))

    def only(self, known: Sequence[str], *, required: Sequence[str] = ()) -> None:
        """Refuse what is not known, and that something required is missing."""
        for key in self.facts:
            if key not in known:
                self.wrong(key, f"unknown{suggest(key, known)}; expected one of {', '.join(known)}")
        for key in required:
            if key not in self.facts:
                self.wrong(key, "missing")

    def text(self, key: str) -> str:
        """A line of text."""
        value = self.facts[key]
        if not isinstance(value, str) or not value.strip():
            self.wrong(key, f"expected text, {value!r} was given")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of lines, empty where it is left out."""
        value = self.facts.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
            self.wrong(key, f"expected a list of texts, {value!r} was given")
        return tuple(value)

    def text_or_texts(self, key: str) -> tuple[str, ...]:
        """One text, or a list of at least one, each once."""
        value = self.facts[key]
        found = self.texts(key) if isinstance(value, list) else (self.text(key),)
        if not found or len(set(found)) != len(found):
            self.wrong(key, f"expected a text or a list of different texts, {value!r} was given")
        return found

    def whole(self, key: str) -> int:
        """A whole number, >= 1."""
        value = self.facts[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.wrong(key, f"expected a whole number of at least 1, {value!r} was given")
        return value

    def number(self, key: str) -> float:
        """A number."""
        value = self.facts[key]
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.wrong(key, f"expected a number, {value!r} was given")
        return float(value)

    def positive(self, key: str) -> float:
        """A number above 0."""
        value = self.number(key)
        if not value > 0:
            self.wrong(key, f"expected a number above 0, {value!r} was given")
        return value

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self.facts[key]
        if not isinstance(value, bool):
            self.wrong(key, f"expected true or false, {value!r} was given")
        return value

    def numbers(self, key: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """A list of whole numbers, at least one."""
        if key not in self.facts and default is not None:
            return default
        value = self.facts[key]
        plain = isinstance(value, list) and all(isinstance(item, int) and not isinstance(item, bool) for item in value)
        if not plain or not value:
            self.wrong(key, f"expected a list of whole numbers, {value!r} was given")
        return tuple(value)

    def one_of(self, key: str, words: Sequence[str], *, default: str | None = None) -> str:
        """One of some words."""
        value = self.facts.get(key, default)
        if value not in words:
            close = suggest(value, words) if isinstance(value, str) else ""
            self.wrong(key, f"expected one of {', '.join(words)}, {value!r} was given{close}")
        return str(value)

    def table(self, key: str) -> Table:
        """A table inside."""
        value = self.facts[key]
        if not isinstance(value, dict):
            self.wrong(key, f"expected a table, {value!r} was given")
        return Table(self.file, self.key(key), value)

    def tables(self, key: str) -> list[Table]:
        """A list of tables, at least one."""
        value = self.facts[key]
        if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
            self.wrong(key, f"expected [[{key}]] at least once")
        return [Table(self.file, f"{self.key(key)}[{index}]", item) for index, item in enumerate(value)]


def experiment_values(table: Table) -> dict[str, Any]:
    """The fields of `compare.Experiment` that a table sets, as values.

    Raises:
        ModulewiseError: a field does not exist, is not the file's to set, or its value is malformed.
    """
    table.only([field.name for field in fields(Experiment) if field.name not in _FIXED])
    return {key: _value(table, key) for key in table.facts}


def _value(table: Table, key: str) -> Any:
    if key in _ENUMS:
        return _ENUMS[key](table.one_of(key, tuple(_ENUMS[key])))
    if key == "precision":
        return getattr(torch, table.one_of(key, _PRECISIONS))
    if key in _WHOLE:
        return table.whole(key)
    if key in _NUMBERS:
        return table.number(key)
    if key in _FLAGS:
        return table.flag(key)
    if key in ("parts", "milestones"):
        return table.numbers(key)
    if key in ("cuts", "augment"):
        return table.texts(key)
    return _model(table, key)


def _model(table: Table, key: str) -> str:
    name = table.text(key)
    if ":" not in name and name not in models.names():
        table.wrong(key, f"there is no model {name!r}{suggest(name, models.names())}")
    return name
