"""A folder with one safetensors file a part, each replaced in one step; and a reader that is one part ahead."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..engine.state_files import apart, flush
from ..errors import CheckpointError
from .holdings import Holdings

__all__ = ["INDEX", "Reader", "Shards", "replace_file", "shard_name"]

INDEX = "model.safetensors.index.json"


def shard_name(part: int) -> str:
    """The file of a part.

    >>> shard_name(3)
    'part-00003.safetensors'
    """
    return f"part-{part:05d}.safetensors"


def replace_file(path: Path, write: Any) -> None:
    """Let `write(draft)` make a file beside `path`, then put it there in one step.

    Raises:
        CheckpointError: it could not be written; what was at `path` is as it was.
    """
    draft = path.with_name(f".writing-{path.name}")
    try:
        write(draft)
        flush(draft)
        draft.replace(path)
        flush(path.parent)
    except (OSError, SafetensorError) as error:
        draft.unlink(missing_ok=True)
        raise CheckpointError(f"{path} could not be written ({error}); what was there is as it was") from error


class Shards:
    """The parameters and buffers of every part, by the names in the model's `state_dict()`.

    Buffers that are not persistent lie apart (`aside-00003.safetensors`), so that `part-*.safetensors` together are
    the model's `state_dict()`; `model.safetensors.index.json` says which name is in which file.

    Args:
        folder: where they are.
        holdings: what belongs to which part.
    """

    def __init__(self, folder: Path, holdings: Holdings) -> None:
        self.folder, self.holdings = folder, holdings

    def path(self, part: int) -> Path:
        """The file of a part."""
        return self.folder / shard_name(part)

    @property
    def complete(self) -> bool:
        """Whether every part has been written once."""
        return (self.folder / INDEX).is_file()

    def write(self, part: int, tensors: Mapping[str, Tensor]) -> None:
        """Replace a part.

        Args:
            part: which.
            tensors: its parameters and buffers, by first name.
        """
        aliases = self.holdings.aliases
        aside = {name: tensor for name, tensor in tensors.items() if not aliases[name]}
        if aside:
            replace_file(self._aside(part), lambda draft: save_file(apart(aside), draft))
        kept = {alias: tensor for name, tensor in tensors.items() for alias in aliases[name]}
        replace_file(self.path(part), lambda draft: save_file(apart(kept), draft, metadata={"format": "pt"}))

    def read(
        self, part: int, device: torch.device | str = "cpu", *, names: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """A part's parameters and buffers, by first name, copied out of the mapped file.

        Args:
            part: which.
            device: where to.
            names: some of them; all where left out.

        Raises:
            CheckpointError: the file is missing, damaged or of another model.
        """
        aliases = self.holdings.aliases
        found: dict[str, Tensor] = {}
        wanted = self.holdings.names[part] if names is None else names
        named = {aliases[name][0]: name for name in wanted if aliases[name]}
        aside = {name: name for name in wanted if not aliases[name]}
        for path, keys in ((self.path(part), named), (self._aside(part), aside)):
            found |= _read(path, keys, device) if keys else {}
        for name, tensor in found.items():
            shell = self.holdings.shells[name]
            if tensor.shape != shell.shape or tensor.dtype != shell.dtype:
                raise CheckpointError(
                    f"{self.path(part)} holds {name!r} as {tensor.dtype} {tuple(tensor.shape)}, expected {shell.dtype} "
                    f"{tuple(shell.shape)}; it is of another model"
                )
        return found

    def borrowed(self, part: int, device: torch.device | str, *, present: int | None = None) -> dict[str, Tensor]:
        """What a part reads of earlier parts, but for a part that the model holds at present."""
        found: dict[str, Tensor] = {}
        for owner, own in self.holdings.names.items():
            names = sorted(set(own) & set(self.holdings.borrowed[part]))
            if names and owner != present:
                found |= self.read(owner, device, names=names)
        return found

    def finish(self) -> None:
        """Write the index: from now on the folder is complete."""
        parts = self.holdings.names.items()
        files = {
            alias: shard_name(part) for part, names in parts for name in names for alias in self.holdings.aliases[name]
        }
        total = sum(self.holdings.bytes(part) for part in self.holdings.names)
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": files}, indent=1)
        replace_file(self.folder / INDEX, lambda draft: draft.write_text(text))

    def _aside(self, part: int) -> Path:
        return self.folder / shard_name(part).replace("part-", "aside-")


def _read(path: Path, names: Mapping[str, str], device: torch.device | str) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            # Copied, since a mapped tensor may begin at any address, and sums may be rounded by where it begins.
            return {name: _copied(file.get_tensor(key), device) for key, name in names.items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is missing or damaged ({error}); start in a new folder") from error


def _copied(tensor: Tensor, device: torch.device | str) -> Tensor:
    return tensor.clone() if torch.device(device).type == "cpu" else tensor.to(device)


class Reader:
    """Reads parts, the next one in the background.

    Args:
        shards: where from.
        device: where to.
    """

    def __init__(self, shards: Shards, device: torch.device | str) -> None:
        self.shards, self.device = shards, device
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="next-part")
        self.coming: dict[int, Future[dict[str, Tensor]]] = {}

    def ahead(self, part: int) -> None:
        """Begin to read a part; nothing beyond the last one."""
        if part in self.shards.holdings.names and part not in self.coming:
            self.coming[part] = self.thread.submit(self.shards.read, part, self.device)

    def take(self, part: int, *, present: int | None = None) -> dict[str, Tensor]:
        """A part and what it borrows, read now unless it was begun before; of the present part nothing."""
        # What is borrowed is read late: the part that it belongs to may still be in training while others are read.
        borrowed = self.shards.borrowed(part, self.device, present=present)
        self.ahead(part)
        return self.coming.pop(part).result() | borrowed

    def stream(self, parts: Iterable[int], *, present: int | None = None) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """One part after another, each while the next one is read."""
        order = list(parts)
        for position, part in enumerate(order):
            tensors = self.take(part, present=present)
            for following in order[position + 1 : position + 2]:
                self.ahead(following)
            yield part, tensors
            del tensors

    def close(self) -> None:
        """Wait for what is under way and let it go."""
        self.thread.shutdown(wait=True, cancel_futures=True)
        self.coming.clear()
