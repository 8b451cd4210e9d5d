"""What lies where in a store: its mark, weights by hash, cards by name and version; what is read is verified."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as tensors_from
from torch import Tensor

from ...errors import StoreError
from .card import FORMAT, Card
from .files import Files

__all__ = ["Shelves", "as_json", "reason", "spoken"]

_MARK = "store.json"
_HUB_OWN = {".gitattributes", "README.md"}


class Shelves:
    """The files of one store.

    Args:
        files: where they are.

    Raises:
        StoreError: something else is there, or a store of a newer format.
    """

    def __init__(self, files: Files) -> None:
        self.files = files
        with spoken(files, "read"):
            self.check()

    def check(self) -> None:
        """Refuse what is not a store."""
        try:
            held = json.loads(self.files.read(_MARK))
        except FileNotFoundError:
            others = set(self.files.listed()) - _HUB_OWN
            # Whoever begins a store writes its mark first, perhaps at this moment.
            if others and _MARK not in others:
                raise StoreError(
                    f"{self.files.address} holds something else than a store ({min(others)}); give a new or empty one"
                ) from None
            return
        except ValueError as error:
            raise StoreError(f"{self.files.address}/{_MARK} is damaged ({error}); put it back") from error
        number = held.get("format") if isinstance(held, dict) else None
        if not isinstance(number, int) or number > FORMAT:
            raise StoreError(
                f"{self.files.address} is a store of format {number}, this version of modulewise reads up to {FORMAT}; "
                "update it"
            )

    def publish(self, name: str, content: bytes, card: Callable[[int, str], Card]) -> Card:
        """Write weights, then a card under the first free version, then see that the weights are still there.

        Args:
            name: of the part.
            content: the weights' file.
            card: makes the card from a version and the hash of the weights.
        """
        digest = hashlib.sha256(content).hexdigest()
        with spoken(self.files, "written"):
            self.check()
            self.files.create(_MARK, json.dumps({"format": FORMAT}).encode() + b"\n")
            self._keep(digest, content)
            version = 1 + max(self._numbers(name), default=0)
            while not self.files.create(f"cards/{name}/{version}.json", as_json(made := card(version, digest))):
                version += 1
            self._keep(digest, content)  # a removal in another process may have found them without a card
        return made

    def entries(self) -> list[tuple[str, int]]:
        """Every name and version that has a card, sorted."""
        with spoken(self.files, "read"):
            paths = self.files.listed("cards")
        found = (re.fullmatch(r"cards/([^/]+)/(\d+)\.json", path) for path in paths)
        return sorted((match[1], int(match[2])) for match in found if match)

    def card(self, name: str, version: int) -> Card:
        """The card of a version.

        Raises:
            StoreError: it is damaged, altered, newer, or that of another part.
        """
        where = f"the card of {name}@{version} in {self.files.address}"
        try:
            facts = json.loads(self.files.read(f"cards/{name}/{version}.json"))
        except (OSError, ValueError) as error:
            raise StoreError(f"{where} is damaged ({reason(error)}); save the part again") from error
        card = Card.from_json(facts, where=where)
        if (card.name, card.version) != (name, version):
            raise StoreError(f"{where} is that of {card.label}, in the wrong place; save the part again")
        return card

    def blob(self, card: Card) -> bytes:
        """The file of a card's weights, seen to be what was written.

        Raises:
            StoreError: it is missing, damaged or altered.
        """
        try:
            content = self.files.read(f"blobs/{card.sha256}.safetensors")
        except OSError as error:
            raise StoreError(f"the weights of {card.label} are missing ({reason(error)}); save it again") from error
        found = hashlib.sha256(content).hexdigest()
        if found != card.sha256:
            raise StoreError(
                f"the weights of {card.label} are damaged or were altered: their sha256 is {found[:12]}..., the card "
                f"says {card.sha256[:12]}...; save the part again"
            )
        return content

    def tensors(self, card: Card) -> dict[str, Tensor]:
        """The tensors of a card, by name.

        Raises:
            StoreError: they are missing, damaged or altered.
        """
        content = self.blob(card)
        try:
            return tensors_from(content)
        except (ValueError, SafetensorError) as error:
            raise StoreError(f"the weights of {card.label} are no safetensors ({reason(error)})") from error

    def remove(self, name: str, version: int) -> None:
        """Take a card away and leave word that its number is used; weights without a card go with it."""
        with spoken(self.files, "written"):
            self.files.create(f"cards/{name}/{version}.removed", b"")
            self.files.remove(f"cards/{name}/{version}.json")
            try:
                named = {self.card(*entry).sha256 for entry in self.entries()}
            except StoreError:
                return  # a damaged card may name any weights: all are kept
            for path in self.files.listed("blobs"):
                if Path(path).stem not in named:
                    self.files.remove(path)

    def _keep(self, digest: str, content: bytes) -> None:
        path = f"blobs/{digest}.safetensors"
        if self.files.create(path, content):
            return
        try:
            whole = hashlib.sha256(self.files.read(path)).hexdigest() == digest
        except FileNotFoundError:
            whole = False
        if not whole:
            self.files.replace(path, content)

    def _numbers(self, name: str) -> list[int]:
        """Every version that a name has or had."""
        found = (re.fullmatch(r".*/(\d+)\.(?:json|removed)", path) for path in self.files.listed(f"cards/{name}"))
        return [int(match[1]) for match in found if match]


@contextmanager
def spoken(files: Files, verb: str) -> Iterator[None]:
    """Say in one line what the file system refused.

    Raises:
        StoreError: an OSError was raised in the block.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{files.address} cannot be {verb}: {reason(error)}; see to rights, room and network"
        ) from error


def as_json(card: Card) -> bytes:
    """A card as it lies in a store."""
    return json.dumps(card.to_json(), indent=1).encode() + b"\n"


def reason(error: Exception) -> str:
    """The first line of an error's text, or its name."""
    return next(iter(str(error).splitlines()), type(error).__name__)
