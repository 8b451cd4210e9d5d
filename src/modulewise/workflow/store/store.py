"""A store of modules: weights by their hash, names that point to cards, every version kept."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch
from safetensors.torch import save as as_bytes
from torch import Tensor, nn

from ...checkpoint import describe
from ...data import Normalize
from ...engine.state_files import apart
from ...errors import StoreError, suggest
from ...method import Method
from ...partition import Part
from ...schedules import Schedule
from .card import Card, Figure, ModelSpec, Threshold
from .files import Files, LocalFiles
from .opening import open_files
from .rebuilding import StoredPart, skeleton
from .rendering import markdown
from .shelves import Shelves, as_json, spoken
from .taking import taken

__all__ = ["Store"]

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


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
        self._shelves = Shelves(self.files)

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

        def card(version: int, digest: str) -> Card:
            return Card(
                name=name,
                version=version,
                model=found.model,
                cuts=found.cuts,
                part=found.part,
                takes=found.takes,
                input=found.input,
                output=found.output,
                sha256=digest,
                bytes=len(content),
                parameters=found.parameters,
                versions=_versions(),
                normalize=normalize,
                data=data,
                method=describe(method),
                schedule=describe(schedule),
                seed=seed,
                figures=tuple(figures),
                thresholds=tuple(thresholds),
                licence=licence,
                notes=notes,
            )

        return self._shelves.publish(name, content, card)

    def load(self, name: str, *, trust_code: bool = False) -> StoredPart:
        """A stored part as a frozen module: eval mode, no parameter requires a gradient.

        Args:
            name: NAME for its latest version, or NAME@VERSION.
            trust_code: allow that a function named on the card is imported and called.

        Raises:
            StoreError: nothing is stored there, it is damaged, altered or newer, or needs trust.
        """
        card = self.card(name)
        tensors = self._shelves.tensors(card)
        bare = skeleton(card.model, cuts=card.cuts, part=card.part, takes=card.takes, trust_code=trust_code)
        return StoredPart(bare, tensors, card=card)

    def card(self, name: str) -> Card:
        """What is known of a stored part.

        Args:
            name: NAME for its latest version, or NAME@VERSION.

        Raises:
            StoreError: nothing is stored there, or the card is damaged, altered or newer.
        """
        return self._shelves.card(*self._found(name))

    def names(self) -> tuple[str, ...]:
        """The names under which something is stored, sorted."""
        return tuple(dict.fromkeys(name for name, _ in self._shelves.entries()))

    def versions(self, name: str) -> tuple[int, ...]:
        """The versions of a name, oldest first; none where nothing is stored under it."""
        return tuple(sorted(version for other, version in self._shelves.entries() if other == name))

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
        plain, version = self._found(name)
        versions = (version,) if "@" in name else self.versions(plain)
        for version in versions:
            self._shelves.remove(plain, version)
        return tuple(f"{plain}@{version}" for version in versions)

    def verify(self) -> tuple[str, ...]:
        """Read every card and its weights; what is wrong, one line each, nothing where all is well."""
        found = []
        for name, version in self._shelves.entries():
            try:
                self._shelves.tensors(self._shelves.card(name, version))
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
        content = self._shelves.blob(card)
        files = LocalFiles(target)
        with spoken(files, "written"):
            files.create("part.safetensors", content)
            files.create("card.md", markdown(card).encode())
            files.create("card.json", as_json(card))
        return target

    def _found(self, name: str) -> tuple[str, int]:
        """A name and a version that are there."""
        plain, at, word = name.partition("@")
        versions = self.versions(plain)
        if not versions:
            known = self.names()
            told = suggest(plain, known) or (f"; it has {', '.join(known[:8])}" if known else "; it is empty")
            raise StoreError(f"{self.files.address} has no part {plain!r}{told}")
        if at and (not word.isdecimal() or int(word) not in versions):
            raise StoreError(f"{plain!r} has no version {word!r}, expected one of {', '.join(map(str, versions))}")
        return plain, int(word) if at else versions[-1]


def _versions() -> dict[str, str]:
    try:
        own = metadata.version("modulewise")
    except metadata.PackageNotFoundError:
        own = "unknown"
    return {"python": sys.version.split()[0], "torch": torch.__version__, "modulewise": own}
