"""A store in a model repository of the Hugging Face Hub."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from ...errors import StoreError
from .files import Files

__all__ = ["HubFiles"]

_ATTEMPTS = 20


class HubFiles(Files):
    """A repository: one commit a file, made on top of the commit that was looked at, so that no writer is lost.

    Args:
        repository: OWNER/NAME, optionally followed by a folder.
        api: an object with the methods of `huggingface_hub.HfApi` used here; that of the library where left out.

    Raises:
        StoreError: the library is not installed, or the repository's name is malformed.
    """

    def __init__(self, repository: str, *, api: Any = None) -> None:
        pieces = repository.strip("/").split("/")
        if len(pieces) < 2 or not all(pieces):
            raise StoreError(f"'hf://{repository}' names no repository, expected hf://OWNER/NAME")
        try:
            self.library: Any = importlib.import_module("huggingface_hub")
            self.errors: Any = importlib.import_module("huggingface_hub.errors")
        except ImportError as error:
            raise StoreError(
                f"'hf://{repository}' needs huggingface_hub, which cannot be imported; pip install 'modulewise[hub]'"
            ) from error
        self.repository, self.folder = "/".join(pieces[:2]), "/".join(pieces[2:])
        self.address = f"hf://{repository.strip('/')}"
        self.api = self.library.HfApi() if api is None else api

    def listed(self, folder: str = "") -> list[str]:
        """Files below a folder."""
        return self._listed(folder, self._head())

    def read(self, path: str) -> bytes:
        """A file's content; a missing one is a FileNotFoundError."""
        try:
            return Path(self.api.hf_hub_download(self.repository, self._path(path))).read_bytes()
        except (self.errors.EntryNotFoundError, self.errors.RepositoryNotFoundError) as error:
            raise FileNotFoundError(path) from error

    def create(self, path: str, content: bytes) -> bool:
        """Commit a new file, if there is none in the commit that it is made on top of."""
        for _ in range(_ATTEMPTS):
            head = self._head()
            if path in self._listed("", head):
                return False
            if self._committed(path, content, head):
                return True
        raise StoreError(f"{self.address} changed {_ATTEMPTS} times while {path} was written; try again later")

    def replace(self, path: str, content: bytes) -> None:
        """Commit a file."""
        self._committed(path, content, None)

    def remove(self, path: str) -> None:
        """Commit the removal of a file."""
        head = self._head()
        if path in self._listed("", head):
            operation = self.library.CommitOperationDelete(path_in_repo=self._path(path))
            self.api.create_commit(self.repository, [operation], commit_message=f"Remove {path}")

    def _path(self, path: str) -> str:
        return "/".join(piece for piece in (self.folder, path) if piece)

    def _head(self) -> str | None:
        try:
            return str(self.api.repo_info(self.repository).sha)
        except self.errors.RepositoryNotFoundError:
            return None

    def _listed(self, folder: str, head: str | None) -> list[str]:
        if head is None:
            return []
        prefix = self._path(folder)
        prefix = f"{prefix}/" if prefix else ""
        found = self.api.list_repo_files(self.repository, revision=head)
        own = f"{self.folder}/" if self.folder else ""
        return sorted(path.removeprefix(own) for path in found if path.startswith(prefix))

    def _committed(self, path: str, content: bytes, head: str | None) -> bool:
        """Whether the commit was made; False where another writer was faster."""
        if head is None:
            self.api.create_repo(self.repository, exist_ok=True)
        operation = self.library.CommitOperationAdd(path_in_repo=self._path(path), path_or_fileobj=content)
        try:
            self.api.create_commit(self.repository, [operation], commit_message=f"Store {path}", parent_commit=head)
        except self.errors.HfHubHTTPError as error:
            if getattr(error.response, "status_code", None) in (409, 412):
                return False
            raise
        return True
