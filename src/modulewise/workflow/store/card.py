"""What a stored part is: how to rebuild it, what it takes and gives, how it was trained, how good it was measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

import torch

from ...data import Normalize
from ...errors import StoreError

__all__ = ["FORMAT", "Card", "Figure", "ModelSpec", "Quantity", "Sample", "Threshold"]

FORMAT = 1
"""The format of cards that this version writes; a card of a newer one is refused."""

_LIBRARIES = ("torchvision", "timm")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What `mw.models.build` makes a model from; a stored part is a slice of such a model.

    Args:
        name: 'cnn', 'torchvision:NAME', 'timm:NAME', or 'package.module:function' of the user's own.
        shape: (C, H, W) of one image; of a function of one's own what it is given, if it takes `shape`.
        classes: number of classes, >= 1; of a function of one's own likewise.

    >>> ModelSpec(name="lenet5", shape=(1, 28, 28), classes=10).own, ModelSpec(name="my.code:network").own
    (False, True)
    """

    name: str
    shape: tuple[int, int, int] = (1, 1, 1)
    classes: int = 1

    @property
    def own(self) -> bool:
        """Whether rebuilding runs code that the card names, which takes the caller's trust."""
        source, colon, _ = self.name.partition(":")
        return bool(colon) and source not in _LIBRARIES


@dataclass(frozen=True)
class Sample:
    """One sample of a tensor (N, ...).

    Args:
        shape: sizes after the batch axis.
        dtype: element type.

    >>> print(Sample((16, 4, 4), torch.float32))
    (N, 16, 4, 4) float32
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        sizes = "".join(f", {size}" for size in self.shape)
        return f"(N{sizes or ','}) {str(self.dtype).removeprefix('torch.')}"


class Quantity(StrEnum):
    """What is measured of a part."""

    PROXY = "proxy"
    PROBE_ACCURACY = "probe_accuracy"
    LATENCY = "latency"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number.

    Args:
        quantity: which.
        value: the number; seconds for latency.
        on: data it was measured on, in words.
        how: what was measured exactly, in words.
    """

    quantity: Quantity
    value: float
    on: str = ""
    how: str = ""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """What a part must reach to be used: its unit test.

    Args:
        quantity: what is measured.
        at_least: smallest allowed value, or None.
        at_most: largest allowed value, or None.

    Raises:
        StoreError: there is no bound.
    """

    quantity: Quantity
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise StoreError(f"a threshold of {self.quantity} has no bound; give at_least= or at_most=")


@dataclass(frozen=True, kw_only=True)
class Card:
    """A stored part, in facts.

    Args:
        name: what it is stored under.
        version: counted from 1 for every name.
        model: the model that it is a part of.
        cuts: module names at which that model is cut.
        part: index of the part.
        takes: one sample of the model's input, with which the model is cut.
        input: one sample of what the part takes.
        output: one sample of what the part gives.
        normalize: what was done to images before the model saw them; None for nothing.
        data: what it was trained on, as for `mw.data.load`.
        method: what trained it, as data.
        schedule: the order of training, as data.
        seed: of the training run.
        versions: of Python and of libraries, when it was saved.
        figures: what was measured.
        thresholds: what `modulewise check` holds it to.
        sha256: hash of the weights' file.
        bytes: size of the weights' file.
        parameters: number of elements in its parameters.
        licence: under which terms the weights may be used; None where nobody said.
        notes: free text.
    """

    name: str
    version: int
    model: ModelSpec
    cuts: tuple[str, ...]
    part: int
    takes: Sample
    input: Sample
    output: Sample
    sha256: str
    bytes: int
    parameters: int
    versions: Mapping[str, str] = field(default_factory=dict)
    normalize: Normalize | None = None
    data: str | None = None
    method: Any = None
    schedule: Any = None
    seed: int | None = None
    figures: tuple[Figure, ...] = ()
    thresholds: tuple[Threshold, ...] = ()
    licence: str | None = None
    notes: str = ""

    @property
    def label(self) -> str:
        """NAME@VERSION."""
        return f"{self.name}@{self.version}"

    def figure(self, quantity: Quantity) -> Figure | None:
        """The figure of a quantity, if it was measured."""
        return next((figure for figure in self.figures if figure.quantity is quantity), None)

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the format and a digest of everything else."""
        facts = {"format": FORMAT, **{entry.name: _plain(getattr(self, entry.name)) for entry in fields(self)}}
        return {**facts, "digest": _digest(facts)}

    @classmethod
    def from_json(cls, facts: Any, *, where: str) -> Card:
        """What `to_json` gave.

        Args:
            facts: plain data.
            where: named in errors.

        Raises:
            StoreError: it is no card, of a newer format, or was altered.
        """
        if not isinstance(facts, dict) or not isinstance(facts.get("format"), int):
            raise StoreError(f"{where} is no card of a stored part; save the part again")
        if facts["format"] > FORMAT:
            raise StoreError(
                f"{where} has format {facts['format']}, this version of modulewise reads up to {FORMAT}; update it"
            )
        facts = dict(facts)
        if facts.pop("digest", None) != _digest(facts):
            raise StoreError(f"{where} is damaged or was altered: its digest is another; save the part again")
        try:
            return cls(**{key: _read(key, value) for key, value in facts.items() if key != "format"})
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise StoreError(f"{where} is damaged ({type(error).__name__}: {error}); save the part again") from error


def _digest(facts: Mapping[str, Any]) -> str:
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, StrEnum):
        return value.value
    if hasattr(value, "__dataclass_fields__"):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return {str(key): _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _read(key: str, value: Any) -> Any:
    if key == "model":
        return ModelSpec(name=str(value["name"]), shape=tuple(value["shape"]), classes=int(value["classes"]))
    if key in ("takes", "input", "output"):
        dtype = getattr(torch, value["dtype"])
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{value['dtype']!r} is no element type")
        return Sample(tuple(value["shape"]), dtype)
    if key == "normalize":
        return None if value is None else Normalize(mean=tuple(value["mean"]), std=tuple(value["std"]))
    if key == "cuts":
        return tuple(value)
    if key == "figures":
        return tuple(Figure(**{**one, "quantity": Quantity(one["quantity"])}) for one in value)
    if key == "thresholds":
        return tuple(Threshold(**{**one, "quantity": Quantity(one["quantity"])}) for one in value)
    return value
