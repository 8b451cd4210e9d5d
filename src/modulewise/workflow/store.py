"""A store of modules: weights by their hash, names that point to cards, every version kept."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from
from safetensors.torch import save as as_bytes
from torch import Tensor, nn

from ..checkpoint import describe
from ..data import Normalize
from ..engine.state_files import apart
from ..errors import StoreError, suggest
from ..method import Method
from ..partition import Part
from ..schedules import Schedule
from .card import FORMAT, Card, Figure, ModelSpec, Threshold
from .files import Files, LocalFiles, open_files
from .rebuilding import StoredPart, skeleton
from .rendering import markdown
from .taking import Taken, taken

__all__ = ["Store"]

_MARK = "store.json"
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
_HUB_OWN = {".gitattributes", "README.md"}


class Store:
    """Parts of trained networks, by name and version.

    Weights lie at `blobs/SHA256.safetensors`, once for all cards that name them; cards at `cards/NAME/VERSION.json`. A
    card is written after its weights and under a version that nobody has taken, so that a writer that dies leaves
    nothing half-written, and two that save one name at once both find their version there.

    Args:
        address: a folder, an fsspec address (`memory://`, `s3://`, ...), `hf://OWNER/NAME`, or opened `Files`.

    Raises:
        StoreError: it cannot be opened, holds something else, or is of a newer format.

    >>> store = Store("memory://doctest-store")
    >>> spec = ModelSpec(name="mlp", shape=(1, 2, 2), classes=3)
    >>> from modulewise import models, Partition
    >>> model = models.build(spec.name, shape=spec.shape, classes=spec.classes)
    >>> partition = Partition(model, parts=2, example=torch.zeros(2, 1, 2, 2))
    >>> store.save(partition.part(0), "corners", model=spec, licence="CC0-1.0").label
    'corners@1'
    >>> part = store.load("corners")
    >>> torch.equal(part(torch.ones(2, 1, 2, 2)), partition.part(0)(torch.ones(2, 1, 2, 2)))
    True
    >>> store.names(), any(parameter.requires_grad for parameter in part.parameters())
    (('corners',), False)
    """

    def __init__(self, address: str | Path | Files) -> None:
        self.files = address if isinstance(address, Files) else open_files(address)
        self._opened()

    def save(
        self,
        part: Part | nn.Module,
        name: str,
        *,
        model: ModelSpec | None = None,
        example: Tensor | None = None,
        normalize: Normalize | None = None,
        data: str | None = None,
        method: Method | str | None = None,
        schedule: Schedule | str | None = None,
        seed: int | None = None,
        figures: Sequence[Figure] = (),
        thresholds: Sequence[Threshold] = (),
        licence: str | None = None,
        notes: str = "",
    ) -> Card:
        """Store a part under a name, as its next version.

        Args:
            part: `partition.part(k)`, a whole module, or a part that was loaded (and trained further).
            name: letters, digits, `_`, `.`, `+` and `-`.
            model: how the whole model is built; not needed for a part that was loaded.
            example: an input (N, ...), for a whole module alone.
            normalize: what was done to images before the model saw them.
            data: what it was trained on, as for `mw.data.load`.
            method: what trained it.
            schedule: the order of training.
            seed: of the training run.
            figures: what was measured.
            thresholds: what `modulewise check` holds it to.
            licence: under which terms the weights may be used.
            notes: free text.

        Raises:
            StoreError: the name is malformed, the part cannot be rebuilt from the spec, or nothing can be written.
        """
        if not _NAME.fullmatch(name):
            raise StoreError(f"name {name!r} was given, expected letters, digits and any of _.+- only")
        found = taken(part, model=model, example=example)
        content = as_bytes(apart(found.tensors), metadata={"format": "pt"})
        facts = {
            "normalize": normalize, "data": data, "method": describe(method), "schedule": describe(schedule),
            "seed": seed, "figures": tuple(figures), "thresholds": tuple(thresholds), "licence": licence,
            "notes": notes,
        }  # fmt: skip
        try:
            self._begin()
            return self._published(name, found, content, facts)
        except OSError as error:
            raise StoreError(f"{self.files.address} cannot be written: {_reason(error)}") from error

    def load(self, name: str, *, trust_code: bool = False) -> StoredPart:
        """A stored part as a frozen module: eval mode, no parameter requires a gradient.

        Args:
            name: NAME for its latest version, or NAME@VERSION.
            trust_code: allow that a function named on the card is imported and called.

        Raises:
            StoreError: nothing is stored there, it is damaged, altered or newer, or needs trust.
        """
        card = self.card(name)
        tensors = self._tensors(card)
        bare = skeleton(card.model, cuts=card.cuts, part=card.part, takes=card.takes, trust_code=trust_code)
        return StoredPart(bare, tensors, card=card)

    def card(self, name: str) -> Card:
        """What is known of a stored part.

        Args:
            name: NAME for its latest version, or NAME@VERSION.

        Raises:
            StoreError: nothing is stored there, or the card is damaged, altered or newer.
        """
        plain, at, word = name.partition("@")
        versions = self.versions(plain)
        if not versions:
            known = self.names()
            told = suggest(plain, known) or (f"; it has {', '.join(known[:8])}" if known else "; it is empty")
            raise StoreError(f"{self.files.address} has no part {plain!r}{told}")
        if at and (not word.isdecimal() or int(word) not in versions):
            raise StoreError(f"{plain!r} has no version {word!r}, expected one of {', '.join(map(str, versions))}")
        return self._card(plain, int(word) if at else versions[-1])

    def names(self) -> tuple[str, ...]:
        """The names under which something is stored, sorted."""
        return tuple(dict.fromkeys(name for name, _ in self._entries()))

    def versions(self, name: str) -> tuple[int, ...]:
        """The versions of a name, oldest first; none where nothing is stored under it."""
        return tuple(sorted(version for other, version in self._entries() if other == name))

    def cards(self) -> tuple[Card, ...]:
        """The latest card of every name.

        Raises:
            StoreError: one is damaged, altered or newer.
        """
        return tuple(self.card(name) for name in self.names())

    def remove(self, name: str) -> tuple[str, ...]:
        """Remove a version, or all of them, and the weights that no other card names.

        A version number is not given again.

        Args:
            name: NAME for all versions, or NAME@VERSION.

        Returns:
            What was removed, as NAME@VERSION.
        """
        last = self.card(name) if "@" in name else None
        plain = name.partition("@")[0]
        versions = (last.version,) if last is not None else self.versions(plain) or (self.card(name).version,)
        for version in versions:
            self.files.create(f"cards/{plain}/{version}.removed", b"")
            self.files.remove(f"cards/{plain}/{version}.json")
        named = {self._card(other, version).sha256 for other, version in self._entries()}
        for path in self.files.listed("blobs"):
            if Path(path).stem not in named:
                self.files.remove(path)
        return tuple(f"{plain}@{version}" for version in versions)

    def verify(self) -> tuple[str, ...]:
        """Read every card and its weights; what is wrong, one line each, nothing where all is well."""
        found = []
        for name, version in self._entries():
            try:
                self._tensors(self._card(name, version))
            except StoreError as error:
                found.append(f"{name}@{version}: {error}")
        return tuple(found)

    def export(self, name: str, folder: str | Path) -> Path:
        """Write `part.safetensors`, `card.json` and `card.md` of a stored part to a new folder.

        Args:
            name: NAME or NAME@VERSION.
            folder: new or empty.

        Raises:
            StoreError: the folder is in use, or the part cannot be read.
        """
        card, target = self.card(name), Path(folder)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise StoreError(f"{target} is in use; give a new or empty folder")
        content = self._blob(card)
        files = LocalFiles(target)
        files.create("part.safetensors", content)
        files.create("card.md", markdown(card).encode())
        files.create("card.json", _json(card))
        return target

    def _opened(self) -> None:
        """Refuse what is not a store."""
        try:
            held = json.loads(self.files.read(_MARK))
        except FileNotFoundError:
            others = set(self.files.listed()) - _HUB_OWN
            # Whoever begins a store writes its mark first.
            if others and not any(path == _MARK for path in others):
                raise StoreError(
                    f"{self.files.address} holds something else than a store ({min(others)}); give a new or empty one"
                ) from None
            return
        except ValueError as error:
            raise StoreError(f"{self.files.address}/{_MARK} is damaged ({error})") from error
        if not isinstance(held, dict) or not isinstance(held.get("format"), int) or held["format"] > FORMAT:
            raise StoreError(
                f"{self.files.address} is a store of format {held.get('format') if isinstance(held, dict) else held}, "
                f"this version of modulewise reads up to {FORMAT}; update it"
            )

    def _begin(self) -> None:
        self._opened()
        self.files.create(_MARK, json.dumps({"format": FORMAT}).encode() + b"\n")

    def _published(self, name: str, found: Taken, content: bytes, facts: dict[str, object]) -> Card:
        """Write the weights, then the card under the first free version, then see that the weights are still there."""
        digest = hashlib.sha256(content).hexdigest()
        self._keep(digest, content)
        version = 1 + max(self._numbers(name), default=0)
        while True:
            card = Card(
                name=name, version=version, model=found.model, cuts=found.cuts, part=found.part, takes=found.takes,
                input=found.input, output=found.output, sha256=digest, bytes=len(content),
                parameters=found.parameters, versions=_versions(), **facts,  # type: ignore[arg-type]
            )  # fmt: skip
            if self.files.create(f"cards/{name}/{version}.json", _json(card)):
                break
            version += 1
        self._keep(digest, content)  # a removal in another process may have found them without a card
        return card

    def _keep(self, digest: str, content: bytes) -> None:
        path = f"blobs/{digest}.safetensors"
        if not self.files.create(path, content) and hashlib.sha256(self.files.read(path)).hexdigest() != digest:
            self.files.replace(path, content)

    def _entries(self) -> list[tuple[str, int]]:
        """Every name and version that has a card."""
        found = (re.fullmatch(r"cards/([^/]+)/(\d+)\.json", path) for path in self.files.listed("cards"))
        return sorted((match[1], int(match[2])) for match in found if match)

    def _numbers(self, name: str) -> list[int]:
        """Every version that a name has or had."""
        found = (re.fullmatch(r".*/(\d+)\.(?:json|removed)", path) for path in self.files.listed(f"cards/{name}"))
        return [int(match[1]) for match in found if match]

    def _card(self, name: str, version: int) -> Card:
        path = f"cards/{name}/{version}.json"
        where = f"the card of {name}@{version} in {self.files.address}"
        try:
            facts = json.loads(self.files.read(path))
        except (OSError, ValueError) as error:
            raise StoreError(f"{where} is damaged ({_reason(error)}); save the part again") from error
        card = Card.from_json(facts, where=where)
        if (card.name, card.version) != (name, version):
            raise StoreError(f"{where} is that of {card.label}, in the wrong place; save the part again")
        return card

    def _blob(self, card: Card) -> bytes:
        try:
            content = self.files.read(f"blobs/{card.sha256}.safetensors")
        except OSError as error:
            raise StoreError(f"the weights of {card.label} are missing ({_reason(error)}); save it again") from error
        found = hashlib.sha256(content).hexdigest()
        if found != card.sha256:
            raise StoreError(
                f"the weights of {card.label} are damaged or were altered: their sha256 is {found[:12]}..., the card "
                f"says {card.sha256[:12]}...; save the part again"
            )
        return content

    def _tensors(self, card: Card) -> dict[str, Tensor]:
        try:
            return tensors_from(self._blob(card))
        except (ValueError, SafetensorError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"the weights of {card.label} are no safetensors ({_reason(error)})") from error


def _json(card: Card) -> bytes:
    return json.dumps(card.to_json(), indent=1).encode() + b"\n"


def _versions() -> dict[str, str]:
    try:
        own = metadata.version("modulewise")
    except metadata.PackageNotFoundError:
        own = "unknown"
    return {"python": sys.version.split()[0], "torch": torch.__version__, "modulewise": own}


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
